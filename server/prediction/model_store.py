"""The models that the service computes with: a directory each, written at once and never changed.

`description.json` is for whoever may use the model; beside it lie the weights, `model.safetensors` in plain or
`model.cwm` encrypted under its owner's key, and for an encrypted model `allowed.json`: who may use it beside the owner.

Trust: runs at the provider, which sees plain models, and of encrypted ones the shape.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter, ValidationError

from protocol.errors import ConfigurationError, ProtocolError
from protocol.prediction.description import ModelDescription
from protocol.prediction.publication import Publication
from server.prediction.client_registry import AdmittedClient
from server.prediction.evaluation import DESCRIPTION_FILE, ENCRYPTED_FILE
from server.prediction.files import remove_directory, write_directory
from server.prediction.problems import Cause, ProblemError

ALLOWED_FILE: Final = "allowed.json"
_ALLOWED_PARSER: Final = TypeAdapter(tuple[str, ...])
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredModel:
    """A model of the store.

    Attributes:
        directory: Its files.
        description: What its users know of it.
        allowed: Clients that may use it beside its owner; a plain model is every admitted client's.
    """

    directory: Path
    description: ModelDescription
    allowed: tuple[str, ...]

    def is_for(self, client: str) -> bool:
        """Return whether an admitted client may use it."""
        return not self.description.is_encrypted or client == self.description.owner or client in self.allowed


class ModelStore:
    """The models.

    Args:
        directory: Holds a directory per model; made if it is missing.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def publish(self, description: ModelDescription, files: dict[str, bytes], *, may_replace: bool = False) -> None:
        """Keep a model that has been checked.

        Args:
            description: Of the model.
            files: What lies beside the description.
            may_replace: Whether it may take the place of a plain model of the provider's; that one stays until an
                instant before.

        Raises:
            FileExistsError: The name is taken.
            ConfigurationError: The model that it would replace is a client's, or damaged.
        """
        name = description.name

        def check_old() -> None:
            old = self._find(name)
            if old is None:
                raise ConfigurationError(f"the model {name} is damaged: `cipherward service withdraw {name}`")
            if old.description.owner or old.description.is_encrypted:
                raise ConfigurationError(f"the model {name} was published by a client: only its owner takes it back")

        write_directory(
            self._directory / name,
            {DESCRIPTION_FILE: description.to_bytes(), **files},
            check_old=check_old if may_replace else None,
        )

    def publish_encrypted(self, client: AdmittedClient, publication: Publication) -> None:
        """Keep a client's encrypted model that has been checked.

        Raises:
            ProblemError: NAME_TAKEN or TOO_MANY_MODELS.
        """
        if len(self.owned_by(client.name)) >= client.allowance.models:
            raise ProblemError(Cause.TOO_MANY_MODELS)
        try:
            self.publish(
                publication.description,
                {ENCRYPTED_FILE: publication.weights, ALLOWED_FILE: json.dumps(publication.allowed).encode()},
            )
        except FileExistsError:
            raise ProblemError(Cause.NAME_TAKEN) from None

    def withdraw(self, name: str) -> None:
        """Remove a model.

        Raises:
            ConfigurationError: There is none of that name.
        """
        missing = ConfigurationError(f"there is no model {name}; `cipherward service status` lists them")
        if name not in self.names():
            raise missing
        try:
            remove_directory(self._directory / name)
        except FileNotFoundError:  # someone else has removed it in this moment
            raise missing from None

    def names(self) -> list[str]:
        """Return all models' names, those of damaged ones as well."""
        return sorted(path.parent.name for path in self._directory.glob(f"[!.]*/{DESCRIPTION_FILE}"))

    def models(self) -> list[StoredModel]:
        """Return all models, by name; a damaged one is passed over."""
        found = [self._find(name) for name in self.names()]
        return [model for model in found if model is not None]

    def owned_by(self, client: str) -> list[StoredModel]:
        """Return a client's own models."""
        return [model for model in self.models() if model.description.owner == client]

    def model_for(self, client: str, name: str) -> StoredModel:
        """Return a model, by a name that may come from anywhere.

        Raises:
            ProblemError: UNKNOWN_MODEL, also if the client may not use it, or if it is damaged.
        """
        model = self._find(name) if name in self.names() else None
        if model is None or not model.is_for(client):
            raise ProblemError(Cause.UNKNOWN_MODEL)
        return model

    def _find(self, name: str) -> StoredModel | None:
        directory = self._directory / name
        try:
            description = (directory / DESCRIPTION_FILE).stat()
            return _read(directory, (description.st_mtime_ns, description.st_ino))  # numbers of files are used again
        except FileNotFoundError:  # withdrawn in this moment
            return None


@lru_cache(maxsize=1024)
def _read(directory: Path, version: tuple[int, int]) -> StoredModel | None:
    """Read a model; of a damaged one the log tells, once."""
    del version  # a model that was published anew is read anew
    allowed = directory / ALLOWED_FILE
    try:
        return StoredModel(
            directory=directory,
            description=ModelDescription.from_bytes((directory / DESCRIPTION_FILE).read_bytes()),
            allowed=_ALLOWED_PARSER.validate_json(allowed.read_bytes()) if allowed.exists() else (),
        )
    except (ProtocolError, ValidationError) as error:
        _logger.warning(
            "%s is damaged (%s): `cipherward service withdraw %s`", directory, type(error).__name__, directory.name
        )
        return None
