"""Run one federation on this machine, from a composed configuration to its summary.

Trust: runs at the simulation's observer, who owns every simulated site.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Final

from rich.console import Console

import conf
from clients.data.public_data import located
from clients.learning.epsilon import epsilon_of
from clients.learning.noise import noise_of
from clients.simulation import SITES, check_hospitals
from conf import ExperimentConfig
from protocol.errors import ConfigurationError, RunFailedError
from protocol.parameters import advise
from scripts.environment import core_count, project_root
from scripts.events import (
    FINAL_EVENTS,
    PROVIDER_EVENTS,
    Event,
    EventTail,
    check_completed,
    outcome_from_events,
    site_complaints,
)
from scripts.flower_commands import RunId
from scripts.progress import ProgressDisplay, progress_display
from scripts.simulation.summary import privacy_in_words
from scripts.superlink import SuperLink, running_superlink

EXPERIMENT: Final = "experiment.yaml"
"""The composed configuration, kept below the run directory."""

RUN_LOG: Final = Path("logs", "run.log")
"""What ServerApp and ClientApps logged, kept below the run directory when a run fails."""

_POLL_SECONDS: Final = 0.2
_SILENCE_SECONDS: Final = 10.0
"""Asking Flower costs two seconds of a core, so it is asked only when the provider has been silent for so long."""
_CLOSING_SECONDS: Final = 60.0


def simulate(config: ExperimentConfig, run_directory: Path, console: Console) -> None:
    """Run a federation and leave its records in the run directory.

    Args:
        config: The composed configuration.
        run_directory: Absolute path of a directory that no other run uses.
        console: Where progress is shown.

    Raises:
        ConfigurationError: Nothing was started.
        RunPausedError: An upload is missing.
        RunFailedError: The run failed; a note names its run directory.
    """
    check_simulation(config)
    config = replace(config, data=located(config.data))  # Flower's processes work in a directory of their own
    claim_directory(run_directory)
    (run_directory / EXPERIMENT).write_text(conf.to_yaml(config), encoding="utf-8")
    console.print(f"starting {config.federation.sites} sites and a provider on this machine", highlight=False)
    if config.privacy.has_noise:
        console.print(f"noise: {privacy_in_words(epsilon_of(config.terms), config.privacy.delta)}", highlight=False)
    _run(config, run_directory, console)


def resume(run_directory: Path, console: Console) -> ExperimentConfig:
    """Go on with a run that was paused, failed or interrupted: sites and provider start from what they have kept.

    Args:
        run_directory: Absolute path of the run's directory.
        console: Where progress is shown.

    Returns:
        The run's configuration.

    Raises:
        ConfigurationError: The directory holds no run that can be gone on with.
        RunPausedError: An upload is missing, still or again.
        RunFailedError: The run failed; a note names its run directory.
    """
    experiment = run_directory / EXPERIMENT
    if not experiment.exists():
        raise ConfigurationError(f"{run_directory} holds no run: it has no {EXPERIMENT}")
    config = conf.from_yaml(experiment.read_text(encoding="utf-8"))
    console.print(f"going on with {config.federation.sites} sites and a provider on this machine", highlight=False)
    _run(config, run_directory, console)
    return config


def _run(config: ExperimentConfig, run_directory: Path, console: Console) -> None:
    log = EventTail(run_directory / PROVIDER_EVENTS)
    log.read()  # what an earlier start has left
    try:
        with running_superlink(run_directory) as superlink:
            run = superlink.submit(
                project_root(),
                conf.run_config(config),
                sites=config.federation.sites,
                client_cpus=config.federation.client_cpus,
            )
            with progress_display(console) as display:
                follow(superlink, run, run_directory, log, display)
    except RunFailedError as error:
        # the sites know why; what the provider can say is only that nobody was ready
        error.__notes__ = [*site_complaints(run_directory / SITES), *getattr(error, "__notes__", [])]
        from clients.run.results import model_path  # noqa: PLC0415 - loads torch

        if any((run_directory / SITES).glob(f"*/{model_path('best')}")):
            error.add_note(
                f"each site keeps the model with the lowest training loss so far: {SITES}/*/{model_path('best')}"
            )
        error.add_note(f"run directory: {run_directory}")
        error.add_note(f"to go on with it: cipherward resume {run_directory}")
        raise


def claim_directory(run_directory: Path) -> None:
    """Make the directory this run's own, also against a run that is started at the same moment.

    Raises:
        ConfigurationError: It is another run's.
    """
    try:
        (run_directory / SITES).mkdir(parents=True)
    except FileExistsError:
        raise ConfigurationError(f"hydra.run.dir = {run_directory} holds another run; choose a new directory") from None


def check_simulation(config: ExperimentConfig) -> None:
    """Refuse what could only fail after everything was started.

    Raises:
        ConfigurationError: Names what cannot work and what it needs.
    """
    cores = core_count()
    if config.federation.client_cpus > cores:
        raise ConfigurationError(
            f"federation.client_cpus = {config.federation.client_cpus:g} is more than this machine's {cores} cores"
        )
    terms, federation = config.terms, config.federation
    advice = advise(
        sites=federation.sites,
        value_bits=terms.crypto.value_bits,
        values=terms.shared_values,
        security_bits=terms.crypto.security_bits,
    )
    if terms.privacy.has_noise:
        noise_of(terms, advice.parameters, records=1)  # whether there is room for it does not depend on the patients
    check_hospitals(config)


def follow(superlink: SuperLink, run: RunId, run_directory: Path, log: EventTail, display: ProgressDisplay) -> None:
    """Show a run's progress until it has completed.

    Raises:
        RunPausedError: The provider waits for people.
        RunFailedError: The run failed, with the reason; what was logged is kept in `RUN_LOG`.
    """
    try:
        final = _final_event(superlink, run, log, display)
        if final is not None:
            check_completed(outcome_from_events([final]))
        _check_closed(superlink, run)
    except RunFailedError as error:
        if superlink.is_alive:
            flower_log = run_directory / RUN_LOG
            flower_log.write_text(superlink.commands.run_log(run), encoding="utf-8")
            error.add_note(f"log: {flower_log}")
        raise


def _final_event(superlink: SuperLink, run: RunId, log: EventTail, display: ProgressDisplay) -> Event | None:
    """Show events up to the last one of the run; None if Flower ended the run without one."""
    is_finished = False
    heard = time.monotonic()
    while True:
        for event in log.read():
            heard = time.monotonic()
            display.show(event)
            if event["event"] in FINAL_EVENTS:
                return event
        if is_finished:
            return None
        if not superlink.is_alive:
            raise RunFailedError(f"the Flower SuperLink ended; the end of its log:\n{superlink.log_tail()}")
        if time.monotonic() - heard > _SILENCE_SECONDS:
            is_finished = superlink.commands.status(run).is_finished
            heard = time.monotonic()
        time.sleep(_POLL_SECONDS)


def _check_closed(superlink: SuperLink, run: RunId) -> None:
    """Wait until Flower has closed the run, and see how it ended."""
    deadline = time.monotonic() + _CLOSING_SECONDS
    while not (status := superlink.commands.status(run)).is_finished:
        if time.monotonic() > deadline:
            raise RunFailedError(f"Flower did not close the run within {_CLOSING_SECONDS:.0f} s")
        time.sleep(_POLL_SECONDS)
    if not status.is_completed:
        raise RunFailedError(f"the run failed: {status.details}")
