"""What a hospital keeps of a model that it has published encrypted: the description, and the bias that stays at home.

Later training writes other models into the vault; answers of the published one are read with what is kept here.

Trust: site only.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Final, Self

from clients.secrets.vault import Vault
from protocol.errors import ConfigurationError, ProtocolError
from protocol.prediction.description import ModelDescription

_DIRECTORY: Final = "published-models"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Published:
    """An encrypted model of one's own.

    Attributes:
        description: As it was published.
        bias: What is added to each decrypted score.
    """

    description: ModelDescription
    bias: float

    def write(self, vault: Vault) -> None:
        """Keep it, under the digest of its description."""
        entry = {"description": self.description.to_bytes().decode(), "bias": self.bias}
        vault.write(_file(self.description.digest), json.dumps(entry).encode())

    @classmethod
    def read(cls, vault: Vault, digest: bytes) -> Self:
        """Return what was kept of the model whose description has this digest.

        Raises:
            ConfigurationError: Nothing was kept, or the file is damaged.
        """
        if not vault.has(_file(digest)):
            raise ConfigurationError(
                f"{vault.directory} has published no such encrypted model: only the vault from which it was published "
                "reads its scores; a device asks with `cipherward predict --public-key`"
            )
        try:
            entry = json.loads(vault.read(_file(digest)))
            found = cls(
                description=ModelDescription.from_bytes(entry["description"].encode()), bias=float(entry["bias"])
            )
        except (ValueError, KeyError, TypeError, AttributeError, ProtocolError):
            raise ConfigurationError(f"{_file(digest)} is damaged: restore it from backup, or publish anew") from None
        if found.description.digest != digest or not math.isfinite(found.bias):
            raise ConfigurationError(f"{_file(digest)} is damaged: restore it from backup, or publish anew")
        return found


def _file(digest: bytes) -> str:
    return f"{_DIRECTORY}/{digest.hex()}.json"
