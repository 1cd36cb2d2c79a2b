"""The commands `cipherward keys ...`: the keys that a client's predictions are read with.

Trust: runs at the client, on its vault.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from protocol.errors import ConfigurationError, ServiceError
from scripts.prediction.service_options import CaOption, connected
from scripts.site.vault_option import VaultOption, opened_vault

if TYPE_CHECKING:
    from clients.prediction.key_store import StoredKey
    from clients.prediction.service import PredictionService

# As in scripts.cli, commands import what they need when they run.
# ruff: noqa: PLC0415

key_commands = typer.Typer(
    help="The keys that a client's predictions are read with; they have nothing to do with those of training.",
    epilog="Start with: cipherward keys create",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)


@key_commands.command()
def create(*, vault: VaultOption) -> None:
    """Make this client's first prediction key. It never leaves the vault; its public halves are made when needed.

    Example: `cipherward keys create --vault /srv/cipherward`
    """
    from clients.prediction.key_store import KeyStore

    key = KeyStore(opened_vault(vault)).create()
    typer.echo(f"prediction key {key.number} is made; nothing but prediction-keys/ in the vault reads scores under it")


@key_commands.command("list")
def list_(*, vault: VaultOption) -> None:
    """List the prediction keys, and the ids of the public keys that were made of them.

    Example: `cipherward keys list --vault /srv/cipherward`
    """
    from rich.console import Console
    from rich.table import Table

    from clients.prediction.key_store import KeyStore
    from protocol.prediction.messages import key_id

    keys = KeyStore(opened_vault(vault)).stored_keys()
    table = Table("key", "", "parameters", "public key")
    for key in keys:
        use = "in use" if key is keys[-1] else "reads old answers"
        made = list(key.given_away())
        for parameters, public_key in made:
            table.add_row(str(key.number), use, parameters.name, key_id(public_key).hex())
        if not made:
            table.add_row(str(key.number), use, "-", "-")
    table.columns[-1].overflow = "fold"  # an id is to be compared whole
    Console().print(table)


@key_commands.command()
def rotate(*, vault: VaultOption) -> None:
    """Make a new prediction key for what is asked from now on; the old one reads answers under way.

    A model that is published encrypted stays under the old key, and so do its devices, until it is published anew.

    Example: `cipherward keys rotate --vault /srv/cipherward`
    """
    from clients.prediction.key_store import KeyStore

    key = KeyStore(opened_vault(vault)).rotate()
    typer.echo(f"""prediction key {key.number} is in use

Next:
1. If this site has published an encrypted model: `cipherward site withdraw-model`, `cipherward site publish-model`,
   and give the devices the new file of `cipherward keys export`.
2. When no answer under an older key is under way: `cipherward keys delete {key.number - 1} --service HOST:PORT`""")


@key_commands.command()
def delete(
    number: Annotated[int | None, typer.Argument(help="The key's number; see `cipherward keys list`.")] = None,
    *,
    vault: VaultOption,
    every: Annotated[bool, typer.Option("--all", help="Delete all prediction keys.")] = False,
    service: Annotated[
        str, typer.Option("--service", help="HOST:PORT of a prediction service that is to forget the public keys, too.")
    ] = "",
    ca: CaOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete a prediction key, or all: answers and scores' files under it can be read no more, by nobody.

    - `cipherward keys delete 1 --vault /srv/cipherward`
    - `cipherward keys delete --all --service ps.example.org:8443 --ca ca.crt --vault /srv/cipherward`
    """
    from clients.prediction.key_store import KeyStore

    if every == (number is not None):
        raise ConfigurationError("name one key by its number, or all of them by --all")
    opened = opened_vault(vault)
    store = KeyStore(opened)
    doomed = store.stored_keys() if number is None else [store.numbered(number)]
    if not doomed:
        raise ConfigurationError(f"{opened.directory} has no prediction key")
    numbers = ", ".join(str(key.number) for key in doomed)
    if not yes:
        typer.confirm(f"{opened.directory}: delete prediction key {numbers}, for good?", abort=True)
    if service:
        with connected(opened, service, ca) as connection:
            for key in doomed:
                _forget(connection, key)
    for key in doomed:
        store.delete(key)
    typer.echo(f"prediction key {numbers} is deleted")


@key_commands.command()
def export(
    *,
    vault: VaultOption,
    output: Annotated[Path, typer.Option(help="Where to write it; must not be there yet.", dir_okay=False)],
    parameters: Annotated[
        str, typer.Option(help="linear-4096 for logistic regression, quadratic-8192 for a hidden layer.")
    ] = "linear-4096",
) -> None:
    """Write the public key for devices: with it they encrypt records, and cannot read any.

    Hand it over on a way on which nobody swaps it: whoever does reads the records.

    Example: `cipherward keys export --output cleveland.cwk --vault /srv/cipherward`
    """
    from clients.prediction.key_store import KeyStore
    from protocol.prediction.messages import key_id
    from protocol.prediction.parameters import parameters_named
    from scripts.prediction.score_output import check_output, write_private

    check_output(output)
    public_key = KeyStore(opened_vault(vault)).current().public_key(parameters_named(parameters))
    write_private(output, public_key)
    typer.echo(f"{output} is the public key {key_id(public_key).hex()}")


def _forget(connection: PredictionService, key: StoredKey) -> None:
    from protocol.prediction.messages import key_id

    for _, public_key in key.given_away():
        try:
            connection.delete_key(key_id(public_key))
        except ServiceError as error:
            if error.cause != "unknown-key":  # it has never been there, or is gone
                raise
