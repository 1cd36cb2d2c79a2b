"""A client's prediction keys in its vault: made, replaced and deleted by its people, found by what an answer names.

Below `prediction-keys/<number>/` lie the key's 32 secret bytes, and the public keys that were made of it. They are
kept, because making one gives another each time, with another id. The highest number is in use; lower ones read answers
that are under way until they are deleted. A deleted key's directory stays, empty, so that no number is given twice.

Trust: site only. The log names numbers and ids, never key bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from clients.prediction.keys import SEED_BYTES, PredictionKey
from clients.secrets.vault import Vault
from protocol.errors import ConfigurationError
from protocol.prediction.messages import key_id
from protocol.prediction.parameters import PARAMETER_SETS, PredictionParameters

KEYS: Final = "prediction-keys"
PUBLIC_SUFFIX: Final = ".cwk"
_SECRET: Final = "key.secret"  # noqa: S105 - a file's name


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredKey:
    """One key of a vault, for all parameter sets.

    Attributes:
        vault: Where it lies.
        number: Counts from 1; the highest is in use.
    """

    vault: Vault
    number: int

    def secret_key(self, parameters: PredictionParameters) -> PredictionKey:
        """Return the key for a parameter set.

        Raises:
            ConfigurationError: Its file is missing, damaged, or others may read it.
        """
        seed = self.vault.read_secret(self._name(_SECRET))
        if len(seed.reveal()) != SEED_BYTES:
            raise ConfigurationError(f"{self._name(_SECRET)} is damaged: restore it, or `cipherward keys rotate`")
        return PredictionKey(seed, parameters)

    def public_key(self, parameters: PredictionParameters) -> bytes:
        """Return the public key for a parameter set: the message that is given away, always the same."""
        name = self._name(parameters.name + PUBLIC_SUFFIX)
        with self.vault.locked():
            if not self.vault.has(name):
                made = self.secret_key(parameters).public_key().to_bytes(parameters)
                self.vault.write(name, made)
                self.vault.record("public prediction key made", number=self.number, key=key_id(made).hex())
            return self.vault.read(name)

    def given_away(self) -> Iterator[tuple[PredictionParameters, bytes]]:
        """Yield each public key that was made of it, with its parameter set."""
        for parameters in PARAMETER_SETS:
            name = self._name(parameters.name + PUBLIC_SUFFIX)
            if self.vault.has(name):
                yield parameters, self.vault.read(name)

    def _name(self, file: str) -> str:
        return f"{KEYS}/{self.number}/{file}"


class KeyStore:
    """The prediction keys of a vault; keys of training are elsewhere, and have nothing to do with these.

    Args:
        vault: The client's vault.
    """

    def __init__(self, vault: Vault) -> None:
        self._vault = vault

    def stored_keys(self) -> list[StoredKey]:
        """Return all keys, the one in use last."""
        names = (path.parent.name for path in self._directory.glob(f"*/{_SECRET}"))
        return [
            StoredKey(vault=self._vault, number=number)
            for number in sorted(int(name) for name in names if name.isdecimal())
        ]

    def current(self) -> StoredKey:
        """Return the key in use.

        Raises:
            ConfigurationError: There is none.
        """
        keys = self.stored_keys()
        if not keys:
            raise ConfigurationError(
                f"{self._vault.directory} has no prediction key: `cipherward keys create --vault "
                f"{self._vault.directory}` makes one"
            )
        return keys[-1]

    def create(self) -> StoredKey:
        """Make the first key.

        Raises:
            ConfigurationError: There is one.
        """
        with self._vault.locked():
            keys = self.stored_keys()
            if keys:
                raise ConfigurationError(
                    f"{self._vault.directory} has a prediction key; `cipherward keys rotate` replaces it"
                )
            return self._draw("prediction key created")

    def rotate(self) -> StoredKey:
        """Make a key that takes the place of the one in use, which stays until it is deleted.

        Raises:
            ConfigurationError: There is none to be replaced.
        """
        with self._vault.locked():
            self.current()
            return self._draw("prediction key rotated")

    def numbered(self, number: int) -> StoredKey:
        """Return a key by its number.

        Raises:
            ConfigurationError: There is no such key.
        """
        for key in self.stored_keys():
            if key.number == number:
                return key
        raise ConfigurationError(f"there is no prediction key {number}; `cipherward keys list` shows those there are")

    def check_deletable(self, key: StoredKey) -> None:
        """Raise if deleting a key would put an older one back in use.

        Raises:
            ConfigurationError: It is the one in use, and not the only one.
        """
        keys = self.stored_keys()
        if len(keys) > 1 and key == keys[-1]:
            raise ConfigurationError(
                f"prediction key {key.number} is in use, and without it key {keys[-2].number} would be again: "
                "`cipherward keys rotate` first, or delete all (--all)"
            )

    def delete(self, key: StoredKey) -> None:
        """Delete a key: answers under it, and models that are encrypted under it, can be read no more.

        Raises:
            ConfigurationError: As `check_deletable`.
        """
        with self._vault.locked():
            self.check_deletable(key)
            self._vault.record("prediction key deleted", number=key.number)
            directory = self._directory / str(key.number)
            (directory / _SECRET).unlink(missing_ok=True)  # the first to go
            for file in directory.glob("*"):
                file.unlink()

    def find(self, identifier: bytes) -> tuple[StoredKey, PredictionParameters]:
        """Return the key that belongs to a public key's id, as an answer's header names it.

        Raises:
            ConfigurationError: There is none, or none any more.
        """
        for key in self.stored_keys():
            for parameters, public_key in key.given_away():
                if key_id(public_key) == identifier:
                    return key, parameters
        raise ConfigurationError(
            f"no prediction key of {self._vault.directory} has the public key {identifier.hex()[:16]}...: it was "
            "deleted (`cipherward keys list`), or is another client's, whose devices ask with --public-key"
        )

    @property
    def _directory(self) -> Path:
        return self._vault.path(KEYS)

    def _draw(self, event: str) -> StoredKey:
        used = [int(path.name) for path in self._directory.glob("*") if path.name.isdecimal()]
        key = StoredKey(vault=self._vault, number=max(used, default=0) + 1)
        self._vault.write_secret(f"{KEYS}/{key.number}/{_SECRET}", PredictionKey.draw_seed())
        self._vault.record(event, number=key.number)
        return key
