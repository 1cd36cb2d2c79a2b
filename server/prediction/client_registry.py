"""Who may use the prediction service, how much, and under which public keys.

Below the registry's directory each client has one of its own: `card.json`, which the client made when it enrolled,
`allowance.json`, which the provider's people made, and `keys/`, which the client put there. The service looks at the
files at each request, so that admitting and expelling take effect at once.

Trust: runs at the provider; cards and keys are public.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter, ValidationError

from protocol.checks import check_range
from protocol.enrolment import EnrolmentCard
from protocol.errors import ConfigurationError, ProtocolError
from server.prediction.files import remove_directory, write_directory, write_file
from server.prediction.problems import Cause, ProblemError

MOST_KEYS: Final = 4
_CARD: Final = "card.json"
_ALLOWANCE: Final = "allowance.json"
_KEYS: Final = "keys"
_KEY_SUFFIX: Final = ".cwk"
_NAME: Final = re.compile(r"[a-z0-9-]{1,64}")  # an enrolment card's; checked before it becomes a path
_KEY_ID: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """What one client may take of the service.

    Attributes:
        patients_per_day: Patients that it may have scored in a day (UTC), over all models.
        requests_per_minute: Signed requests of any kind.
        keys: Public keys that may be registered at the same time.
        models: Encrypted models that it may publish at the same time.
    """

    patients_per_day: int = 100_000
    requests_per_minute: int = 600
    keys: int = MOST_KEYS
    models: int = 16

    def __post_init__(self) -> None:
        check_range("patients_per_day", self.patients_per_day, 0, 1_000_000_000)
        check_range("requests_per_minute", self.requests_per_minute, 1, 1_000_000)
        check_range("keys", self.keys, 0, MOST_KEYS)
        check_range("models", self.models, 0, 1024)


_ALLOWANCE_PARSER: Final = TypeAdapter(Allowance)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmittedClient:
    """A client that may use the service.

    Attributes:
        enrolment: Its card, by whose signing key its requests are signed.
        allowance: What it may take.
    """

    enrolment: EnrolmentCard
    allowance: Allowance

    @property
    def name(self) -> str:
        """The name on its card."""
        return self.enrolment.card.name


class ClientRegistry:
    """Admitted clients.

    Args:
        directory: Holds a directory per client; made if it is missing.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def admit(self, enrolment: EnrolmentCard, allowance: Allowance) -> bool:
        """Let a client in, or change what it may take.

        Returns:
            Whether it is new.

        Raises:
            ConfigurationError: Another card is admitted under this name.
        """
        old = self.find(enrolment.card.name)
        if old is None:
            files = {_CARD: enrolment.to_bytes(), _ALLOWANCE: _allowance_bytes(allowance)}
            write_directory(self._directory / enrolment.card.name, files)
            return True
        if old.enrolment != enrolment:
            raise ConfigurationError(
                f"{old.name} is admitted with another card, {old.enrolment.fingerprint}; if the client says by "
                f"telephone that {enrolment.fingerprint} is its new one, expel {old.name} first, which also removes "
                "its keys and models"
            )
        write_file(self._directory / old.name / _ALLOWANCE, _allowance_bytes(allowance))
        return False

    def expel(self, name: str) -> None:
        """Let a client in no more; its public keys go.

        Raises:
            ConfigurationError: There is no such client.
        """
        if self.find(name) is None:
            raise ConfigurationError(f"{name} is not admitted; `cipherward service status` shows who is")
        remove_directory(self._directory / name)

    def find(self, name: str) -> AdmittedClient | None:
        """Return an admitted client, by a name that may come from anywhere.

        Raises:
            ConfigurationError: Its files are damaged.
        """
        if not _NAME.fullmatch(name):
            return None
        directory = self._directory / name
        try:
            versions = [(path.stat().st_mtime_ns, path.stat().st_ino) for path in _files(directory)]
        except FileNotFoundError:
            return None
        return _read(directory, tuple(versions))

    def clients(self) -> list[AdmittedClient]:
        """Return all admitted clients, by name."""
        found = [self.find(path.name) for path in sorted(self._directory.iterdir())]
        return [client for client in found if client is not None]

    def put_key(self, client: AdmittedClient, key: str, data: bytes) -> bool:
        """Keep a client's public key, which has been checked.

        Returns:
            Whether it is new.

        Raises:
            ProblemError: TOO_MANY_KEYS.
        """
        if self.key_file(client.name, key) is not None:
            return False
        if len(self.keys(client.name)) >= client.allowance.keys:
            raise ProblemError(Cause.TOO_MANY_KEYS)
        path = self._key_path(client.name, key)
        path.parent.mkdir(exist_ok=True)
        write_file(path, data)
        return True

    def delete_key(self, name: str, key: str) -> None:
        """Forget a client's public key.

        Raises:
            ProblemError: UNKNOWN_KEY.
        """
        path = self.key_file(name, key)
        if path is None:
            raise ProblemError(Cause.UNKNOWN_KEY)
        path.unlink()

    def keys(self, name: str) -> list[str]:
        """Return the ids of a client's public keys."""
        return sorted(path.stem for path in (self._directory / name / _KEYS).glob(f"*{_KEY_SUFFIX}"))

    def key_file(self, name: str, key: str) -> Path | None:
        """Return the file with a client's public key, None if it is not registered."""
        path = self._key_path(name, key)
        return path if _NAME.fullmatch(name) and _KEY_ID.fullmatch(key) and path.is_file() else None

    def _key_path(self, name: str, key: str) -> Path:
        return self._directory / name / _KEYS / f"{key}{_KEY_SUFFIX}"


def _files(directory: Path) -> tuple[Path, Path]:
    return directory / _CARD, directory / _ALLOWANCE


@lru_cache(maxsize=1024)
def _read(directory: Path, versions: tuple[tuple[int, int], ...]) -> AdmittedClient:
    del versions  # another file is read anew
    card, allowance = _files(directory)
    try:
        client = AdmittedClient(
            enrolment=EnrolmentCard.from_bytes(card.read_bytes()),
            allowance=_ALLOWANCE_PARSER.validate_json(allowance.read_bytes()),
        )
    except (ProtocolError, ValidationError, OSError) as error:
        raise ConfigurationError(f"{directory} is damaged ({type(error).__name__}): expel and admit anew") from None
    if client.name != directory.name:
        raise ConfigurationError(f"{directory} holds the card of {client.name}: expel and admit anew")
    return client


def _allowance_bytes(allowance: Allowance) -> bytes:
    return (json.dumps(asdict(allowance), indent=2) + "\n").encode()
