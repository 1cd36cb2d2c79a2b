"""The commands `cipherward local ...`: a whole deployed federation on this machine, to try it.

Trust: runs on the machine of whoever types it, who sees every site's secrets.
"""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Annotated, Final

import typer

from protocol.errors import ConfigurationError

# As in scripts.cli, commands import what they need when they run.
# ruff: noqa: PLC0415

local_commands = typer.Typer(
    help="Try a deployed federation on this machine: a provider and its hospitals, each a process of its own.",
    epilog="Start with: cipherward local up",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

_DEFAULT: Final = Path("local")

DirectoryOption = Annotated[
    Path, typer.Option("--directory", file_okay=False, resolve_path=True, help="Where all of it is kept.")
]


@local_commands.command()
def up(
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Hydra overrides, such as experiment=heart_disease.")
    ] = None,
    *,
    sites: Annotated[
        int | None, typer.Option(help="How many hospitals share the patients; else as the experiment says.")
    ] = None,
    directory: DirectoryOption = _DEFAULT,
) -> None:
    """Start a provider and hospitals in the background, with TLS and node authentication.

    The first time it makes them: keys, vaults with public patients, an agreement that all have pinned. `cipherward
    local down` ends them and keeps the directory; `up` starts them again.

    - `cipherward local up --sites 4`
    - `cipherward local up experiment=heart_disease`
    """
    import conf
    from scripts.local.federation import LocalFederation

    federation = LocalFederation(directory=directory)
    if not federation.is_founded():
        chosen = [] if sites is None else [f"federation.sites={sites}"]
        federation.found(conf.compose([*(overrides or []), *chosen]))
    elif overrides or sites is not None:
        raise ConfigurationError(
            f"{directory} is made already: `cipherward local up --directory {directory}` starts it as it is; for other "
            "settings name another directory"
        )
    if federation.keeper() is not None:
        raise ConfigurationError(f"the federation in {directory} is up already; `cipherward local down` ends it")
    typer.echo("starting; this takes about half a minute")
    federation.up()
    typer.echo(f"""{len(federation.vaults)} hospitals are connected to a provider on this machine

cipherward submit --agreement {federation.agreement} --directory {federation.provider.path}
cipherward provider status --directory {federation.provider.path}
cipherward local down --directory {directory}

vaults {directory / "sites"}
logs   {directory / "logs"}""")


@local_commands.command()
def down(*, directory: DirectoryOption = _DEFAULT) -> None:
    """End everything that `up` has started; its directory stays.

    Example: `cipherward local down`
    """
    from scripts.local.federation import LocalFederation

    federation = LocalFederation(directory=directory)
    if not federation.is_founded():
        raise ConfigurationError(
            f"{directory} holds no federation; name the directory that `up` was given. If it was deleted while the "
            f"federation was up, end its process: pkill -f 'local keep --directory {directory}$'"
        )
    federation.down()
    typer.echo("all processes have ended")


@local_commands.command(hidden=True)
def keep(*, directory: DirectoryOption = _DEFAULT) -> None:
    """Run what `up` starts, until asked to end."""
    from scripts.event_lines import event_lines
    from scripts.local.federation import LocalFederation

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    LocalFederation(directory=directory).keep(event_lines(is_json=False), stop)
