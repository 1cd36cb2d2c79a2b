"""The command `cipherward`.

Trust: runs on the machine of whoever types it.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated, Final, NoReturn

import typer

from protocol.errors import FederationError
from scripts.complaint import print_complaint
from scripts.local.commands import local_commands
from scripts.prediction.key_commands import key_commands
from scripts.prediction.predict_command import open_scores, predict
from scripts.prediction.service_commands import serve, service_commands
from scripts.provider.commands import logs, provider_commands, submit
from scripts.site.agreement_commands import agreement_commands
from scripts.site.commands import site_commands
from scripts.site.publish_command import publish_model, withdraw_model
from scripts.site.release_command import release_model

# Commands import what they need when they run: torch, Hydra and Flower take seconds, `--help` must not.
# ruff: noqa: PLC0415

PASS_ON: Final = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
"""For commands whose arguments belong to another program, `--help` included."""

app = typer.Typer(
    help="Hospitals train and use a model together; whoever runs the service sees only ciphertexts.",
    epilog="Start with: cipherward run",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


@app.command(context_settings=PASS_ON)
def run(context: typer.Context) -> None:
    """Simulate a federation on this machine: `cipherward run [OVERRIDE]... [-m]`.

    Arguments are Hydra's: `cipherward run --help` lists what can be chosen, `--cfg job` prints the result.

    - `cipherward run`
    - `cipherward run strategy.rounds=3 federation.sites=4`
    - `cipherward run model=mlp crypto=precise`
    - `cipherward run -m crypto=compact,default,precise`
    """
    from scripts.simulation.jobs import run_jobs

    if not run_jobs(context.args):
        raise typer.Exit(1)


@app.command()
def resume(
    run_directory: Annotated[Path, typer.Argument(exists=True, file_okay=False, resolve_path=True)],
) -> None:
    """Go on with a run that was paused, failed or interrupted, from what its provider and its sites have kept.

    Nothing is summed twice, and no site uploads twice: the models are those of a run that nothing interrupted.

    Example: `cipherward resume runs/2026-01-31/12-00-00-000000`
    """
    from scripts.simulation.jobs import resume_run

    resume_run(run_directory)


@app.command()
def summary(
    run_directory: Annotated[Path, typer.Argument(exists=True, file_okay=False, resolve_path=True)],
) -> None:
    """Sum up a run from its directory: print the table and write summary.json.

    Also for runs that `flwr run` started. A completed run is compared with the same run without encryption.

    Example: `cipherward summary runs/2026-01-31/12-00-00-000000`
    """
    from scripts.simulation.jobs import report_run

    report_run(run_directory, verify=True)


@app.command()
def study(
    experiment: Annotated[str, typer.Argument(help="A file in conf/experiment, such as heart_disease.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Hydra overrides on top, such as model=mlp.")] = None,
    *,
    repeats: Annotated[int, typer.Option(help="How often patients are dealt into folds anew.", min=1, max=100)] = 5,
    folds: Annotated[int, typer.Option(help="Folds per repeat; each is held out once.", min=2, max=20)] = 5,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the numbers to this file.")] = None,
    output: Annotated[Path | None, typer.Option(help="Directory of table, numbers and pictures.")] = None,
) -> None:
    """Cross-validate an experiment inside each site: alone, pooled, federated, with personal parameters, constant.

    Every federation is encrypted, runs in this process without Flower's simulation engine, and is compared with its
    plaintext twin. Results are below `studies/`.

    - `cipherward study heart_disease`
    - `cipherward study heart_disease strategy=fedadam --json fedadam.json`
    - `cipherward study breast_cancer --repeats 1`
    """
    from rich.console import Console

    from scripts.study.comparison import run_study

    run_study(
        experiment,
        overrides or [],
        repeats=repeats,
        folds=folds,
        json_file=json_file,
        output=output,
        console=Console(),
    )


app.add_typer(agreement_commands, name="agreement")
for model_command in (release_model, publish_model, withdraw_model):
    site_commands.command()(model_command)
app.add_typer(site_commands, name="site")
app.add_typer(local_commands, name="local")
app.add_typer(provider_commands, name="provider")
app.add_typer(service_commands, name="service")
app.command()(serve)
app.add_typer(key_commands, name="keys")
app.command()(predict)
app.command()(open_scores)
app.command()(submit)
app.command()(logs)


@app.command()
def check() -> None:
    """Check the code: format, lint, types, import contracts."""
    from scripts.quality import run_checks

    if not run_checks():
        raise typer.Exit(1)


@app.command(context_settings=PASS_ON)
def test(context: typer.Context) -> None:
    """Run the tests: `cipherward test [PYTEST ARGUMENT]...`.

    Example: `cipherward test tests/protocol -x`
    """
    from scripts.quality import run_tests

    raise typer.Exit(run_tests(context.args))


@app.command(context_settings=PASS_ON)
def bench(context: typer.Context) -> None:
    """Measure: `cipherward bench update` for one encrypted update, `cipherward bench round` for a whole round.

    `cipherward bench sites` is for sums over few and many sites, `cipherward bench predict` for encrypted prediction.
    Each takes options of its own, such as `cipherward bench update --help`.
    """
    from scripts.benchmarks.predict import predict as predict_
    from scripts.benchmarks.round import round_
    from scripts.benchmarks.sites import sites
    from scripts.benchmarks.update import update

    benchmarks = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
    benchmarks.command("update")(update)
    benchmarks.command("round")(round_)
    benchmarks.command("sites")(sites)
    benchmarks.command("predict")(predict_)
    benchmarks(context.args, prog_name="cipherward bench")


def main() -> NoReturn:
    """Run the command line; errors raised on purpose end it with one block of text and exit code 1."""
    signal.signal(signal.SIGTERM, _exit_on_signal)  # so that contexts are left, and with them everything started
    try:
        app()
    except FederationError as error:
        print_complaint(error)
        sys.exit(1)
    sys.exit(0)


def _exit_on_signal(number: int, frame: FrameType | None) -> NoReturn:
    del frame
    sys.exit(128 + number)
