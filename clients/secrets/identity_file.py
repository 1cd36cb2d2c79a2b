"""The file of a site's identity: as it is, or encrypted under a passphrase that only people or a service know.

An encrypted one is header | salt | both keys under ChaCha20-Poly1305 | SHA-256 of all that. Its key is scrypt's; its
nonce is fixed, because each salt, hence each key, is used once. The digest is no protection: it tells a damaged file
from a wrong passphrase.

Trust: site only. No error holds a passphrase or a key.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from clients.secrets.identity import Identity
from clients.secrets.secret import SecretBytes
from clients.secrets.vault import Vault
from protocol.errors import ConfigurationError
from protocol.schedule import DIGEST_BYTES, KEY_BYTES

IDENTITY: Final = "identity.secret"
PASSPHRASE_FILE_VARIABLE: Final = "CIPHERWARD_PASSPHRASE_FILE"  # noqa: S105 - the name of a variable
SHORTEST_PASSPHRASE: Final = 12
"""Bytes of a passphrase, at least."""

_HEADER: Final = b"cipherward identity 1: scrypt n=2^17 r=8 p=1, ChaCha20-Poly1305\n"
_SCRYPT_N, _SCRYPT_R, _SCRYPT_P = 1 << 17, 8, 1
_SALT_BYTES: Final = 16
_NONCE: Final = bytes(12)


def write_identity(vault: Vault, identity: Identity, passphrase: SecretBytes | None) -> None:
    """Write a vault's identity, encrypted if there is a passphrase.

    Raises:
        ConfigurationError: The passphrase is too short.
    """
    vault.write_secret(IDENTITY, identity.to_secret() if passphrase is None else _encrypted(identity, passphrase))


def is_encrypted(vault: Vault) -> bool:
    """Return whether a vault's identity needs a passphrase.

    Raises:
        ConfigurationError: There is no identity, or others may read it.
    """
    return _is_encrypted(vault.read_secret(IDENTITY).reveal())


def read_identity(vault: Vault, passphrase: SecretBytes | None = None) -> Identity:
    """Read a vault's identity.

    Args:
        vault: The site's vault.
        passphrase: Of an encrypted one; one that is not encrypted is read without.

    Raises:
        ConfigurationError: There is no identity, others may read it, it is damaged, or it needs a passphrase, or
            another one.
    """
    secret = vault.read_secret(IDENTITY)
    if not _is_encrypted(secret.reveal()):
        return Identity.from_secret(secret)
    if passphrase is None:
        raise ConfigurationError(
            f"{IDENTITY} is encrypted under a passphrase: give the command a terminal, where it asks for it, or name a "
            f"file that holds it in {PASSPHRASE_FILE_VARIABLE}"
        )
    return _decrypted(secret.reveal(), passphrase)


def passphrase_from_file() -> SecretBytes | None:
    """Return the passphrase of the file that CIPHERWARD_PASSPHRASE_FILE names, or None if it names none.

    Raises:
        ConfigurationError: It cannot be read, or everybody can.
    """
    name = os.environ.get(PASSPHRASE_FILE_VARIABLE)
    if not name:
        return None
    path = Path(name)
    try:
        mode, data = path.stat().st_mode, path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{PASSPHRASE_FILE_VARIABLE}: {path}: {error.strerror}") from None
    # not the group's bits: under an access-control list, as service managers set it, they do not stand for the group
    if mode & 0o007:
        raise ConfigurationError(f"{PASSPHRASE_FILE_VARIABLE}: {path} may be read by everybody; set its mode to 600")
    return SecretBytes(data.rstrip(b"\r\n"))


def _is_encrypted(data: bytes) -> bool:
    return data.startswith(_HEADER[: _HEADER.index(b":")])  # two random keys never begin like that


def _encrypted(identity: Identity, passphrase: SecretBytes) -> SecretBytes:
    if len(passphrase.reveal()) < SHORTEST_PASSPHRASE:
        raise ConfigurationError(f"the passphrase is shorter than {SHORTEST_PASSPHRASE} characters; take several words")
    start = _HEADER + os.urandom(_SALT_BYTES)
    key = _key(passphrase, start[len(_HEADER) :])
    content = start + key.encrypt(_NONCE, identity.to_secret().reveal(), start)
    return SecretBytes(content + hashlib.sha256(content).digest())


def _decrypted(data: bytes, passphrase: SecretBytes) -> Identity:
    content, checksum = data[:-DIGEST_BYTES], data[-DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != checksum or not content.startswith(_HEADER):
        raise ConfigurationError(f"{IDENTITY} is damaged: restore it from backup, or enrol again")
    start, sealed = content[: len(_HEADER) + _SALT_BYTES], content[len(_HEADER) + _SALT_BYTES :]
    try:
        raw = _key(passphrase, start[len(_HEADER) :]).decrypt(_NONCE, sealed, start)
    except InvalidTag:
        raise ConfigurationError(f"the passphrase does not open {IDENTITY}") from None
    return Identity.from_secret(SecretBytes(raw))


def _key(passphrase: SecretBytes, salt: bytes) -> ChaCha20Poly1305:
    scrypt = Scrypt(salt=salt, length=KEY_BYTES, n=_SCRYPT_N, r=_SCRYPT_R, p=_SCRYPT_P)
    return ChaCha20Poly1305(scrypt.derive(passphrase.reveal()))
