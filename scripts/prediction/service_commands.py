"""The commands of whoever runs the prediction service: `cipherward serve` and `cipherward service ...`.

Trust: runs at the provider.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Final

import typer

from scripts.prediction.publication_commands import publish
from scripts.provider.commands import DirectoryOption

# As in scripts.cli, commands import what they need when they run.
# ruff: noqa: PLC0415

_PORT: Final = 9093
_METRICS_PORT: Final = 9094

service_commands = typer.Typer(
    help="Who may use the prediction service, and with which models.",
    epilog="Start with: cipherward service admit CARD, then cipherward serve",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)


def serve(
    *,
    directory: DirectoryOption = Path("provider"),
    host: Annotated[str, typer.Option(help="This machine's address to listen on; the provider's, if not given.")] = "",
    port: Annotated[int, typer.Option(help="Port that clients connect to.", min=1, max=65_535)] = _PORT,
    workers: Annotated[int, typer.Option(help="Processes that compute; 0 for one per core.", min=0, max=256)] = 0,
    metrics_port: Annotated[
        int, typer.Option(help="Port of 127.0.0.1 for Prometheus.", min=1, max=65_535)
    ] = _METRICS_PORT,
) -> None:
    """Serve predictions on encrypted records, until Ctrl-C.

    It needs a provider's directory, for its certificates (`cipherward provider init`), but no running provider. Clients
    are let in with `cipherward service admit`, before or while it runs. What was served is in
    `prediction/served.jsonl`: who, when, which model, how many patients; never a value.

    - `cipherward serve`
    - `cipherward serve --directory provider --port 443 --workers 8`
    """
    from scripts.alone import alone
    from scripts.provider.directory import ProviderDirectory
    from scripts.provider.service import check_port
    from server.prediction.service import ServiceSettings, run_service
    from server.tls import check_certificates

    provider = ProviderDirectory(directory)
    settings = provider.settings()
    check_certificates(provider.tls, settings.hosts)
    provider.prediction.path.mkdir(mode=0o700, exist_ok=True)
    with alone(provider.prediction.path / ".serve.lock", f"a prediction service runs on {provider.path} already"):
        listen = host or settings.listen
        check_port(listen, port, way_out="take another with --port")
        check_port("127.0.0.1", metrics_port, way_out="take another with --metrics-port")
        count = workers or os.cpu_count() or 1
        typer.echo(f"starting {count} workers")
        run_service(
            ServiceSettings(
                directory=provider.prediction,
                tls=provider.tls,
                hosts=settings.hosts,
                listen=listen,
                port=port,
                workers=count,
                metrics_port=metrics_port,
            ),
            lambda: typer.echo(f"ready for clients at {settings.hosts[0]}:{port}; they need {provider.tls.authority}"),
        )


@service_commands.command()
def admit(
    cards: Annotated[list[Path], typer.Argument(help="Cards that clients have sent: NAME.card.json.")],
    *,
    directory: DirectoryOption = Path("provider"),
    patients: Annotated[int, typer.Option(help="Patients per day that each may have scored.", min=0)] = 100_000,
    requests: Annotated[int, typer.Option(help="Requests per minute that each may make.", min=1)] = 600,
    models: Annotated[int, typer.Option(help="Encrypted models that each may publish.", min=0)] = 16,
) -> None:
    """Let clients use the service, or change what they may take. It need not be running.

    A card is what `cipherward site enrol` makes. Compare the fingerprints with the clients by telephone.

    The number of patients bounds what a client can learn of a model that lies here in plain: it makes it slower to
    copy, not impossible. A query to a quadratic model counts as 4,096, because that many fit in unseen. A linear model
    is known from the scores of as many chosen patients as it has inputs, and one; and, to a client that cheats with its
    public key, from about 240 in one query, however many inputs it has.

    - `cipherward service admit cleveland.card.json`
    - `cipherward service admit *.card.json --patients 500`
    """
    from scripts.provider.directory import ProviderDirectory
    from scripts.received_files import read_card
    from server.prediction.client_registry import Allowance, ClientRegistry

    provider = ProviderDirectory(directory)
    provider.settings()
    allowance = Allowance(patients_per_day=patients, requests_per_minute=requests, models=models)
    enrolments = [read_card(path) for path in cards]
    registry = ClientRegistry(provider.prediction.clients)
    for enrolment in enrolments:
        said = "admitted" if registry.admit(enrolment, allowance) else "admitted already; it may now take this much"
        typer.echo(f"{enrolment.card.name}: {enrolment.fingerprint} {said}")


@service_commands.command()
def expel(
    name: Annotated[str, typer.Argument(help="The client.")], *, directory: DirectoryOption = Path("provider")
) -> None:
    """Let a client use the service no more, at once. Its public keys and its encrypted models are deleted.

    Example: `cipherward service expel zurich`
    """
    from scripts.provider.directory import ProviderDirectory
    from server.prediction.client_registry import ClientRegistry
    from server.prediction.model_store import ModelStore

    provider = ProviderDirectory(directory)
    provider.settings()
    registry, store = ClientRegistry(provider.prediction.clients), ModelStore(provider.prediction.models)
    if registry.find(name) is not None or not store.owned_by(name):
        registry.expel(name)
    # a second time, of a client that is gone, for models that were left
    for model in store.owned_by(name):
        store.withdraw(model.description.name)
        typer.echo(f"{model.description.name} is deleted")
    typer.echo(f"{name} is expelled")


@service_commands.command()
def status(
    *,
    directory: DirectoryOption = Path("provider"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show clients, what they have used today, and models.

    Example: `cipherward service status`
    """
    from rich.console import Console

    from scripts.prediction.service_status import print_status, status_json
    from scripts.provider.directory import ProviderDirectory

    provider = ProviderDirectory(directory)
    provider.settings()
    if as_json:
        typer.echo(status_json(provider.prediction))
    else:
        print_status(provider.prediction, Console())


@service_commands.command()
def withdraw(
    model: Annotated[str, typer.Argument(help="The model.")], *, directory: DirectoryOption = Path("provider")
) -> None:
    """Delete a model from the service, at once.

    Example: `cipherward service withdraw heart-disease`
    """
    from scripts.provider.directory import ProviderDirectory
    from server.prediction.model_store import ModelStore

    provider = ProviderDirectory(directory)
    provider.settings()
    ModelStore(provider.prediction.models).withdraw(model)
    typer.echo(f"{model} is withdrawn")


service_commands.command()(publish)
