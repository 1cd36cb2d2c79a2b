"""Ask people for the passphrase of a site's identity, or take it from the file that a service is given.

Trust: runs at the hospital; what is typed is not shown.
"""

from __future__ import annotations

import sys

import typer

from clients.secrets.identity import Identity
from clients.secrets.identity_file import PASSPHRASE_FILE_VARIABLE, is_encrypted, passphrase_from_file, read_identity
from clients.secrets.secret import SecretBytes
from clients.secrets.vault import Vault
from protocol.errors import ConfigurationError


def unlocked_identity(vault: Vault) -> Identity:
    """Return a vault's identity, asking for a passphrase if it needs one.

    Raises:
        ConfigurationError: As `read_identity`.
    """
    return read_identity(vault, _passphrase("Passphrase of this site's identity") if is_encrypted(vault) else None)


def new_passphrase() -> SecretBytes:
    """Return the passphrase for an identity that is made, asked for twice."""
    return _passphrase("Passphrase for the new identity", is_new=True)


def _passphrase(question: str, *, is_new: bool = False) -> SecretBytes:
    from_file = passphrase_from_file()
    if from_file is not None:
        return from_file
    try:
        typed: str = typer.prompt(question, hide_input=True, confirmation_prompt=is_new)
    except typer.Abort:
        if sys.stdin.isatty():  # somebody pressed Ctrl-C
            raise
        raise ConfigurationError(
            f"nobody is there to type the passphrase: name a file that holds it in {PASSPHRASE_FILE_VARIABLE}"
        ) from None
    return SecretBytes(typed.encode(errors="surrogateescape"))  # the bytes that the same keys would put into a file
