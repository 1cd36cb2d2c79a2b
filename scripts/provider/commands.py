"""The commands of whoever runs the service: `cipherward provider ...`, `cipherward submit` and `cipherward logs`.

Trust: runs at the provider.
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

_INTERRUPTED: Final = 130
_ANYWHERE: Final = "0.0.0.0"  # noqa: S104 - hospitals come from other machines; only the gate listens there

provider_commands = typer.Typer(
    help="Run the service between hospitals: it carries ciphertexts, and can read none.",
    epilog="Start with: cipherward provider init --host NAME",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

DirectoryOption = Annotated[
    Path, typer.Option("--directory", envvar="CIPHERWARD_PROVIDER", file_okay=False, help="The provider's directory.")
]


@provider_commands.command()
def init(
    *,
    directory: DirectoryOption = Path("provider"),
    host: Annotated[list[str], typer.Option(help="Name or address under which hospitals reach this machine.")],
    port: Annotated[int, typer.Option(help="Port that hospitals connect to.", min=1, max=65_535)] = 9092,
    listen: Annotated[str, typer.Option(help="This machine's address to listen on.")] = _ANYWHERE,
    certificate: Annotated[Path | None, typer.Option(help="Your own certificate with its chain, PEM.")] = None,
    key: Annotated[Path | None, typer.Option(help="Its key, PEM.")] = None,
    ca: Annotated[Path | None, typer.Option(help="The authority that hospitals check it against, PEM.")] = None,
) -> None:
    """Make a provider's directory: settings, and certificates for the line.

    Without --certificate it makes an authority of its own, which is good for trying things out; its ca.crt is the one
    file that every hospital needs. Nothing is ever overwritten.

    - `cipherward provider init --host fl.example.org`
    - `cipherward provider init --host fl.example.org --certificate fl.crt --key fl.key --ca house-ca.crt`
    """
    from scripts.provider.directory import OwnCertificate, ProviderDirectory, ProviderSettings

    own = None
    if certificate is not None and key is not None and ca is not None:
        own = OwnCertificate(certificate=certificate, key=key, authority=ca)
    elif (certificate, key, ca) != (None, None, None):
        raise ConfigurationError("--certificate, --key and --ca are one certificate: give all three, or none")
    provider = ProviderDirectory(directory)
    settings = ProviderSettings(hosts=tuple(host), listen=listen, port=port)
    provider.found(settings, own)
    typer.echo(f"made {provider.path} for {settings.address}")
    typer.echo(f"hospitals need one file of it, which is no secret: {provider.tls.authority}")
    typer.echo(f"next: cipherward provider start --directory {directory}")


@provider_commands.command()
def start(
    *,
    directory: DirectoryOption = Path("provider"),
    log_json: Annotated[bool, typer.Option("--log-json", help="Say what happens in JSON, a line for each.")] = False,
) -> None:
    """Serve hospitals, until Ctrl-C.

    Starts Flower's SuperLink on loopback and the gate on the public network, and starts them again if they end. When
    this command ends, all that it has started ends with it.

    Example: `cipherward provider start --directory provider`
    """
    from scripts.event_lines import event_lines
    from scripts.provider.directory import ProviderDirectory
    from scripts.provider.service import serve

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    serve(ProviderDirectory(directory), event_lines(is_json=log_json), stop)


@provider_commands.command()
def admit(
    cards: Annotated[list[Path], typer.Argument(help="Cards that hospitals have sent: NAME.card.json.")],
    *,
    directory: DirectoryOption = Path("provider"),
    replace: Annotated[bool, typer.Option("--replace", help="Expel the node of an older card of that name.")] = False,
) -> None:
    """Let hospitals' nodes in. The provider must be running.

    Compare the fingerprints with the hospitals by telephone. Taking part in a run needs more than this: the agreement
    that all hospitals have pinned.

    Example: `cipherward provider admit cleveland.card.json zurich.card.json`
    """
    from scripts.provider import admission
    from scripts.provider.directory import ProviderDirectory
    from scripts.received_files import read_card

    provider = ProviderDirectory(directory)
    enrolments = [read_card(path) for path in cards]
    commands = provider.commands()
    for enrolment in enrolments:
        is_new = admission.admit(provider, commands, enrolment, replace=replace)
        said = "admitted" if is_new else "admitted already"
        typer.echo(f"{enrolment.card.name}: {enrolment.fingerprint} {said}")


@provider_commands.command()
def expel(
    name: Annotated[str, typer.Argument(help="The site.")], *, directory: DirectoryOption = Path("provider")
) -> None:
    """Let a hospital's node in no more. The provider must be running.

    A run that goes on waits for it as for any site that is away. To come back, the hospital enrols again.

    Example: `cipherward provider expel zurich`
    """
    from scripts.provider import admission
    from scripts.provider.directory import ProviderDirectory

    provider = ProviderDirectory(directory)
    admission.expel(provider, provider.commands(), name)
    typer.echo(f"{name} is expelled")


@provider_commands.command()
def status(
    *,
    directory: DirectoryOption = Path("provider"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show how runs and sites stand.

    Example: `cipherward provider status`
    """
    from rich.console import Console

    from scripts.provider.directory import ProviderDirectory
    from scripts.provider.status import print_status, status_json

    provider = ProviderDirectory(directory)
    provider.settings()
    if as_json:
        typer.echo(status_json(provider))
    else:
        print_status(provider, Console())


def submit(
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Hydra overrides, such as experiment=heart_disease strategy.rounds=30.")
    ] = None,
    *,
    directory: DirectoryOption = Path("provider"),
    agreement: Annotated[
        Path | None, typer.Option(help="The sites' agreement.json, which fixes the experiment.", dir_okay=False)
    ] = None,
    resume: Annotated[str, typer.Option(metavar="RUN", help="Go on with this run instead.")] = "",
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the run until it has ended.")] = True,
) -> None:
    """Start a run on a provider's sites, or go on with one. The provider must be running.

    A site takes part only if the experiment is what its agreement fixes; with --agreement it is. Ctrl-C ends the
    following, not the run. The exit code is 0 if the run has completed.

    - `cipherward submit --agreement agreement.json`
    - `cipherward submit experiment=heart_disease strategy.rounds=30`
    - `cipherward submit --resume 2026-01-31_12-00-00`
    """
    from rich.console import Console

    from scripts.events import PROVIDER_EVENTS, EventTail
    from scripts.provider import submission
    from scripts.provider.admission import admitted_sites
    from scripts.provider.directory import ProviderDirectory
    from scripts.received_files import read_agreement

    provider, console = ProviderDirectory(directory), Console()
    provider.commands()  # a provider that does not run is the first thing to tell
    if resume:
        if overrides or agreement is not None:
            raise ConfigurationError(f"run {resume} goes on as it was submitted: no overrides and no agreement")
        name, tail = resume, EventTail(provider.run(resume) / PROVIDER_EVENTS)
        tail.read()  # what the earlier start has left
        flower_run = submission.submit_again(provider, name)
        typer.echo(f"going on with run {name}")
    else:
        if agreement is None:
            config = submission.compose_deployed(overrides or [], len(admitted_sites(provider)))
        else:
            agreed = read_agreement(agreement)
            submission.check_roster(provider, agreed)
            submission.check_first_run(provider, agreed)
            config = submission.compose_agreed(agreed, overrides or [])
        name, flower_run = submission.submit_new(provider, config)
        tail = EventTail(provider.run(name) / PROVIDER_EVENTS)
        typer.echo(f"submitted run {name} for {config.federation.sites} sites")
    if not wait:
        return
    try:
        submission.follow(provider, name, flower_run, tail, console)
    except KeyboardInterrupt:
        typer.echo(f"the run goes on; see `cipherward logs {name} --directory {directory}`")
        raise typer.Exit(_INTERRUPTED) from None
    typer.echo(str(provider.run(name)))


def logs(
    run: Annotated[str, typer.Argument(help="The run; the latest one if none is named.")] = "",
    *,
    directory: DirectoryOption = Path("provider"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the events as they are kept.")] = False,
) -> None:
    """Print what happened in a run of a provider's, a line for each event.

    Example: `cipherward logs 2026-01-31_12-00-00`
    """
    from scripts.provider.directory import ProviderDirectory
    from scripts.provider.status import print_log

    provider = ProviderDirectory(directory)
    provider.settings()
    names = provider.run_names()
    if not run and not names:
        raise ConfigurationError(f"{provider.runs} holds no run yet; `cipherward submit` starts one")
    print_log(provider, run or names[-1], as_json=as_json)
