"""The commands `cipherward keys ...`: the keys that a client's predictions are read with.

Trust: runs at the client, on its vault.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from protocol.errors import ConfigurationError
from scripts.prediction.service_options import CaOption, connected
from scripts.site.vault_option import VaultOption, opened_vault

if TYPE_CHECKING:
    from clients.prediction.key_store import StoredKey

# As in scripts.cli, commands import what they need when they run.
# ruff: noqa: PLC0415

ForgetOption = Annotated[
    str, typer.Option("--service", help="HOST:PORT of a prediction service that has public keys of this client.")
]

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
def list_(*, vault: VaultOption, service: ForgetOption = "", ca: CaOption = None) -> None:
    """List the prediction keys, and the ids of the public keys that were made of them.

    With `--service` also those that a prediction service has of this client, with or without a key here.

    - `cipherward keys list --vault /srv/cipherward`
    - `cipherward keys list --service ps.example.org:8443 --ca ca.crt --vault /srv/cipherward`
    """
    from rich.console import Console
    from rich.table import Table

    from clients.prediction.key_store import KeyStore
    from protocol.prediction.messages import key_id

    opened = opened_vault(vault)
    keys, there = KeyStore(opened).stored_keys(), set[str]()
    if service:
        with connected(opened, service, ca) as connection:
            there = set(connection.registered_keys())
    table = Table("key", "", "parameters", "public key", *(["at the service"] if service else []))
    for key in keys:
        use = "in use" if key is keys[-1] else "reads old answers"
        made = [(parameters.name, key_id(public_key).hex()) for parameters, public_key in key.given_away()]
        for parameters, identifier in made or [("-", "-")]:
            table.add_row(str(key.number), use, parameters, identifier, *_told(identifier in there, service))
        there -= {identifier for _, identifier in made}
    for identifier in sorted(there):
        table.add_row("-", "not in this vault", "-", identifier, *_told(True, service))
    table.columns[3].overflow = "fold"  # an id is to be compared whole
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
    lost: Annotated[
        bool, typer.Option("--lost", help="Have the service forget public keys whose key is not in this vault.")
    ] = False,
    service: ForgetOption = "",
    ca: CaOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete a prediction key, or all: answers and scores' files under it can be read no more, by nobody.

    With `--service` the service forgets the public keys first: with `--all` every one that it has of this client.

    - `cipherward keys delete 1 --vault /srv/cipherward`
    - `cipherward keys delete --all --service ps.example.org:8443 --ca ca.crt --vault /srv/cipherward`
    - `cipherward keys delete --lost --service ps.example.org:8443 --ca ca.crt --vault /srv/cipherward`
    """
    from clients.prediction.key_store import KeyStore

    if (number is not None) + every + lost != 1:
        raise ConfigurationError(
            "name one key by its number, all of them by --all, or by --lost those that only the service has"
        )
    if lost and not service:
        raise ConfigurationError("--lost is about keys at a service: name it with --service")
    opened = opened_vault(vault)
    store = KeyStore(opened)
    stored = store.stored_keys()
    doomed = [store.numbered(number)] if number is not None else stored if every else []
    if number is not None:
        store.check_deletable(doomed[0])
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(connected(opened, service, ca)) if service else None
        there = set() if connection is None else set(connection.registered_keys())
        if number is not None:
            there &= _ids(doomed)
        elif lost:
            there -= _ids(stored)
        what = [f"prediction key {', '.join(str(key.number) for key in doomed)}"] if doomed else []
        what += [f"{len(there)} of its public keys at the service"] if there else []
        if not what:
            raise ConfigurationError(f"there is no such prediction key of {opened.directory}")
        if not yes:
            typer.confirm(f"{opened.directory}: delete {' and '.join(what)}, for good?", abort=True)
        if connection is not None:
            for identifier in sorted(there):
                connection.delete_key(bytes.fromhex(identifier))
    for key in doomed:
        store.delete(key)
    typer.echo(f"deleted: {' and '.join(what)}")


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


def _ids(keys: Iterable[StoredKey]) -> set[str]:
    from protocol.prediction.messages import key_id

    return {key_id(public_key).hex() for key in keys for _, public_key in key.given_away()}


def _told(is_there: bool, service: str) -> list[str]:
    return ["yes" if is_there else "no"] if service else []
