"""The option by which every command of a hospital's is told where the vault is.

Trust: runs at the hospital.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from protocol.errors import ConfigurationError

if TYPE_CHECKING:
    from clients.secrets.vault import Vault

VAULT_VARIABLE: Final = "CIPHERWARD_VAULT"

VaultOption = Annotated[
    Path,
    typer.Option(
        "--vault", envvar=VAULT_VARIABLE, help="The site's vault.", exists=True, file_okay=False, resolve_path=True
    ),
]
NewVaultOption = Annotated[
    Path,
    typer.Option(
        "--vault",
        envvar=VAULT_VARIABLE,
        help="The site's vault, a directory of its own; made if needed.",
        file_okay=False,
        resolve_path=True,
    ),
]


def new_vault(directory: Path) -> Vault:
    """Return the vault to enrol in; a directory that others use is not taken from them.

    Raises:
        ConfigurationError: There are files in it already, and others may get at them.
    """
    from clients.secrets.vault import Vault  # noqa: PLC0415 - as in scripts.cli

    is_others = directory.exists() and directory.stat().st_mode & 0o077 and any(directory.iterdir())
    if is_others:
        raise ConfigurationError(
            f"{directory} is not empty, and others may enter it, which a vault forbids: name a new directory, or make "
            "this one private first (chmod 700)"
        )
    return Vault(directory)


def opened_vault(directory: Path) -> Vault:
    """Return the vault in a directory.

    Raises:
        ConfigurationError: No site was enrolled there.
    """
    from clients.secrets.enrolment import CARD  # noqa: PLC0415 - as in scripts.cli
    from clients.secrets.vault import Vault  # noqa: PLC0415

    if not (directory / CARD).exists():  # looked for first: making a `Vault` takes other people's access away
        raise ConfigurationError(f"{directory} is no site's vault: it has no {CARD}; see `cipherward site enrol`")
    return Vault(directory)
