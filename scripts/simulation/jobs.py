"""Compose configurations with Hydra and run each as a simulation.

Trust: runs at the simulation's observer.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console

import conf
from protocol.errors import ConfigurationError, FederationError, RunFailedError
from scripts.complaint import print_complaint
from scripts.events import check_completed
from scripts.simulation.launcher import resume, simulate


def run_jobs(overrides: Sequence[str]) -> bool:
    """Run what Hydra makes of the overrides: one job, or with -m one for each combination.

    A job that fails is reported, and the others still run.

    Args:
        overrides: Hydra's command line, such as ["strategy.rounds=3", "-m"].

    Returns:
        Whether every job completed.

    Raises:
        SystemExit: Hydra refused the command line, having said why.
    """
    failures: list[FederationError] = []

    def job(composed: DictConfig) -> None:
        try:
            run_job(composed, Path(HydraConfig.get().runtime.output_dir))
        except FederationError as error:
            print_complaint(error)
            failures.append(error)

    conf.register()
    # Hydra reads its command line here, and takes no override after an option that came between two.
    sys.argv = ["cipherward run", *sorted(overrides, key=_is_override)]
    hydra.main(version_base="1.3", config_path=str(conf.CONFIG_DIRECTORY), config_name="config")(job)()
    return not failures


def _is_override(argument: str) -> bool:
    return not argument.startswith("-") and ("=" in argument or argument.startswith("~"))


def run_job(composed: DictConfig, run_directory: Path) -> None:
    """Run one simulation and print its summary.

    Raises:
        FederationError: It did not complete.
    """
    config = conf.from_hydra(composed)
    try:
        simulate(config, run_directory, Console())
    except RunFailedError:
        _write_summary(run_directory)
        raise
    report_run(run_directory, verify=config.federation.verify)


def resume_run(run_directory: Path) -> None:
    """Go on with a run, and print its summary.

    Args:
        run_directory: Absolute path.

    Raises:
        FederationError: It did not complete.
    """
    config = resume(run_directory, Console())
    report_run(run_directory, verify=config.federation.verify)


def _write_summary(run_directory: Path) -> None:
    """Leave a summary of a run that ended early, if it got far enough for one."""
    from scripts.simulation.observer import summarise  # noqa: PLC0415 - as in report_run

    with suppress(ConfigurationError):
        summarise(run_directory, verify=False).write(run_directory)


def report_run(run_directory: Path, *, verify: bool) -> None:
    """Sum up a run in its directory and print the summary; the last line is the directory.

    Args:
        run_directory: Absolute path.
        verify: Whether to compare with the same run without encryption.

    Raises:
        ConfigurationError: The directory holds no run.
        FederationError: The run did not complete.
    """
    # Scoring loads torch and scikit-learn, and a mistyped override should be answered at once.
    from scripts.simulation.observer import summarise  # noqa: PLC0415
    from scripts.simulation.summary_table import print_summary  # noqa: PLC0415

    console = Console()
    summary = summarise(run_directory, verify=verify)
    summary.write(run_directory)
    print_summary(summary, console)
    console.print(str(run_directory), markup=False, highlight=False, soft_wrap=True)
    check_completed(summary.outcome)
