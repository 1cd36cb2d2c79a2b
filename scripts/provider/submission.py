"""Submit a run to a provider's SuperLink, go on with one, and follow it.

Trust: runs at the provider. What it submits is public; sites compare it with the agreement that they have pinned.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Final

from rich.console import Console

import conf
from conf import DataConfig, ExperimentConfig
from conf.run_directory import RUN_NAME_FORMAT
from protocol.agreement import Agreement
from protocol.errors import ConfigurationError, RunFailedError
from scripts.environment import project_root
from scripts.events import (
    FINAL_EVENTS,
    PROVIDER_EVENTS,
    Event,
    EventTail,
    check_completed,
    outcome_from_events,
    read_events,
)
from scripts.flower_commands import FlowerCommands, RunId
from scripts.progress import ProgressDisplay, progress_display
from scripts.provider.admission import admitted_sites
from scripts.provider.directory import ProviderDirectory, write_whole
from scripts.simulation.launcher import EXPERIMENT, RUN_LOG
from server.record import RunRecord, is_worked_on, sync_directory
from strategies.history import RunHistory

FLOWER_RUN: Final = "flower-run"
"""Flower's id of the run that was submitted last, kept below the run directory."""

_DEPLOYED: Final = {"federation": "deployment", "federation.partition": "iid"}
"""What a deployment composes unless it is told otherwise; an experiment's partition is about simulations."""

_WAITS: Final = ("federation.join_seconds=", "federation.ready_seconds=", "federation.upload_seconds=")
_POLL_SECONDS: Final = 0.2
_SILENCE_SECONDS: Final = 10.0
_DEAF_SECONDS: Final = 120.0
"""A SuperLink that was killed is back sooner."""


def compose_deployed(overrides: Sequence[str], sites: int) -> ExperimentConfig:
    """Compose an experiment for sites that are there, each with its own table.

    Args:
        overrides: Hydra's; they win over what follows from the deployment.
        sites: Number of sites, unless an override says another one.

    Raises:
        ConfigurationError: There are no sites, or as `conf.compose`.
    """
    given = {override.lstrip("+~").partition("=")[0] for override in overrides}
    if not sites and "federation.sites" not in given:
        raise ConfigurationError("no site is admitted yet: `cipherward provider admit CARD...` admits some")
    deployed = {**_DEPLOYED, "federation.sites": str(sites)}
    return conf.compose([*(f"{key}={value}" for key, value in deployed.items() if key not in given), *overrides])


def compose_agreed(agreement: Agreement, overrides: Sequence[str]) -> ExperimentConfig:
    """Return the experiment that an agreement fixes.

    Args:
        agreement: Of the sites.
        overrides: Hydra's; only how long the provider waits is its own to say.

    Raises:
        ConfigurationError: An override changes what the agreement fixes.
    """
    for override in overrides:
        if not override.startswith(_WAITS):
            raise ConfigurationError(
                f"{override}: the agreement fixes the experiment; beside it, only {', '.join(_WAITS)} can be chosen"
            )
    terms = agreement.terms
    composed = compose_deployed(overrides, max(len(agreement.roster), terms.cohort.smallest_cohort))
    return ExperimentConfig(
        data=DataConfig(**{field.name: getattr(terms.data, field.name) for field in fields(terms.data)}),
        model=terms.model,
        strategy=terms.training,
        crypto=terms.crypto,
        privacy=terms.privacy,
        federation=replace(composed.federation, cohort=terms.cohort),
    )


def check_roster(directory: ProviderDirectory, agreement: Agreement) -> None:
    """Refuse an agreement with hospitals whose nodes cannot connect.

    Raises:
        ConfigurationError: Names them.
    """
    admitted = {site.enrolment.card for site in admitted_sites(directory).values()}
    strangers = [card.name for card in agreement.roster if card not in admitted]
    if strangers:
        raise ConfigurationError(
            f"the agreement's sites {', '.join(strangers)} are not admitted with these keys; admit their cards first"
        )


def check_first_run(directory: ProviderDirectory, agreement: Agreement) -> None:
    """Refuse an agreement whose run has begun: its sites would refuse another one.

    Raises:
        ConfigurationError: Names the run, and what can be done.
    """
    for name in directory.run_names():
        record = directory.run(name) / PROVIDER_EVENTS.parent
        if not record.is_dir() or not RunHistory(RunRecord(record)).is_begun_run_of(agreement):
            continue  # runs of other releases, whose files only those can read, among them
        is_over = any(event["event"] == "finished" for event in read_events(directory.run(name) / PROVIDER_EVENTS))
        raise ConfigurationError(
            f"this agreement's run is {name}, and has {'ended' if is_over else 'begun already'}: "
            + ("" if is_over else f"go on with it by `cipherward submit --resume {name}`; ")
            + "for another run make a new agreement (`cipherward agreement create`)"
        )


def submit_new(directory: ProviderDirectory, config: ExperimentConfig) -> tuple[str, RunId]:
    """Start a new run.

    Returns:
        Its name, and Flower's id of it.

    Raises:
        ConfigurationError: The provider does not run.
        RunFailedError: Flower refused the project.
    """
    commands = directory.commands()
    name = _claim_run(directory)
    write_whole(directory.run(name) / EXPERIMENT, conf.to_yaml(config).encode())
    return name, _start(directory, commands, name, config)


def submit_again(directory: ProviderDirectory, name: str) -> RunId:
    """Go on with a run from what provider and sites have kept.

    Raises:
        ConfigurationError: There is no such run, it has completed or goes on, or the provider does not run.
        RunFailedError: Flower refused the project.
    """
    run = directory.run(name)
    if not (run / EXPERIMENT).exists():
        raise ConfigurationError(f"{run} cannot be gone on with: it has no {EXPERIMENT}")
    config = conf.from_yaml((run / EXPERIMENT).read_text(encoding="utf-8"))
    if is_worked_on(run / PROVIDER_EVENTS.parent):
        raise ConfigurationError(f"run {name} goes on already; see `cipherward logs {name}`")
    return _start(directory, directory.commands(), name, config)


def follow(directory: ProviderDirectory, name: str, flower_run: RunId, tail: EventTail, console: Console) -> None:
    """Show a run's progress until it has ended.

    Args:
        directory: The provider's.
        name: The run.
        flower_run: Flower's id of it.
        tail: Has read what an earlier start of the run has left.
        console: Where to show it.

    Raises:
        RunPausedError: The provider waits for people.
        RunFailedError: The run failed, with the reason.
    """
    commands = FlowerCommands(directory.environment)
    try:
        with progress_display(console) as display:
            check_completed(outcome_from_events([_final_event(commands, flower_run, tail, display)]))
    except RunFailedError as error:
        if directory.is_running():
            log = directory.run(name) / RUN_LOG
            with contextlib.suppress(OSError):  # a full disk may be what the error is about
                log.parent.mkdir(exist_ok=True)
                log.write_text(commands.run_log(flower_run), encoding="utf-8")
                error.add_note(f"log: {log}")
        error.add_note(f"to go on with it: cipherward submit --resume {name} --directory {directory.path}")
        raise


def _final_event(commands: FlowerCommands, flower_run: RunId, tail: EventTail, display: ProgressDisplay) -> Event:
    heard = answered = time.monotonic()
    details: str | None = None
    while True:
        for event in tail.read():
            heard = answered = time.monotonic()
            display.show(event)
            if event["event"] in FINAL_EVENTS:
                return event
        if details is not None:
            raise RunFailedError(f"the run ended without a word of the provider's: {details}")
        if time.monotonic() - heard > _SILENCE_SECONDS:  # asking costs two seconds of a core
            try:
                status = commands.status(flower_run)
                answered = time.monotonic()
                details = status.details or status.text if status.is_finished else None
            except RunFailedError:
                if time.monotonic() - answered > _DEAF_SECONDS:
                    raise
            heard = time.monotonic()
        time.sleep(_POLL_SECONDS)


def _claim_run(directory: ProviderDirectory) -> str:
    """Make the directory of a new run, named by this moment; two in one second get two names."""
    while True:
        name = time.strftime(RUN_NAME_FORMAT)
        try:
            (directory.runs / name).mkdir()
        except FileExistsError:
            time.sleep(_POLL_SECONDS)
        else:
            sync_directory(directory.runs)
            return name


def _start(directory: ProviderDirectory, commands: FlowerCommands, name: str, config: ExperimentConfig) -> RunId:
    flower_run = commands.submit(project_root(), {**conf.run_config(config), "run": name}, federation={})
    write_whole(directory.run(name) / FLOWER_RUN, flower_run.encode())
    return flower_run
