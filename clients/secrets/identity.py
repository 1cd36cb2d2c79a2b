"""A site's long-lived identity: who signs its messages, and which static key its peers know.

Trust: private halves exist at the site only; `card` is what others get.
"""

from __future__ import annotations

import os
from typing import NoReturn, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from clients.secrets.secret import SecretBytes
from protocol.agreement import SiteCard, SiteId
from protocol.errors import ConfigurationError, SecretMaterialError

_KEY_BYTES = 32


class Identity:
    """An Ed25519 signing key and a static X25519 key, made at the site.

    Args:
        signing_key: Signs.
        exchange_key: Agrees on pair keys.
    """

    __slots__ = ("_signing_key", "exchange_key")

    def __init__(self, signing_key: Ed25519PrivateKey, exchange_key: X25519PrivateKey) -> None:
        self._signing_key = signing_key
        self.exchange_key = exchange_key

    @classmethod
    def generate(cls) -> Self:
        """Make a new identity from the operating system's randomness."""
        return cls.from_secret(SecretBytes(os.urandom(2 * _KEY_BYTES)))

    @classmethod
    def from_secret(cls, secret: SecretBytes) -> Self:
        """Restore an identity from what `to_secret` gave.

        Raises:
            ConfigurationError: The secret has another length.
        """
        raw = secret.reveal()
        if len(raw) != 2 * _KEY_BYTES:
            raise ConfigurationError("the identity file is damaged: restore it from backup, or enrol again")
        return cls(
            Ed25519PrivateKey.from_private_bytes(raw[:_KEY_BYTES]),
            X25519PrivateKey.from_private_bytes(raw[_KEY_BYTES:]),
        )

    def to_secret(self) -> SecretBytes:
        """Return both private keys, for the vault."""
        return SecretBytes(self._signing_key.private_bytes_raw() + self.exchange_key.private_bytes_raw())

    def card(self, name: SiteId) -> SiteCard:
        """Return the public card."""
        return SiteCard(
            name=name,
            signing_key=self._signing_key.public_key().public_bytes_raw().hex(),
            exchange_key=self.exchange_key.public_key().public_bytes_raw().hex(),
        )

    def sign(self, message: bytes) -> bytes:
        """Return the Ed25519 signature."""
        return self._signing_key.sign(message)

    def __repr__(self) -> str:
        return "Identity(<redacted>)"

    def __reduce__(self) -> NoReturn:
        raise SecretMaterialError("an identity must not leave its process")
