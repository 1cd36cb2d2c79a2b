"""Where this project and its programs are, and the environments that simulations and providers run in.

Trust: runs at the simulation's observer, or at the provider.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

from conf.run_directory import RUN_DIRECTORY_VARIABLE, RUNS_VARIABLE
from protocol.errors import ConfigurationError

_MALLOC: Final = {"MALLOC_MMAP_THRESHOLD_": str(256 << 10), "MALLOC_ARENA_MAX": "2"}
"""Have glibc give every large block back when it is freed: updates come and go by the dozen."""


def project_root() -> Path:
    """Return the directory with pyproject.toml, which Flower builds its bundle from.

    Raises:
        ConfigurationError: Cipherward is installed without its project directory.
    """
    root = Path(__file__).resolve().parent.parent
    if not (root / "pyproject.toml").is_file():
        raise ConfigurationError(
            f"{root} has no pyproject.toml: install Cipherward from its checkout with `pip install -e .`"
        )
    return root


def program(name: str) -> str:
    """Return the path of a program of this Python's environment, whatever PATH says."""
    return str(Path(sys.executable).with_name(name))


def core_count() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def simulation_environment(home: Path, run_directory: Path) -> dict[str, str]:
    """Return the environment for a simulation's SuperLink, what it starts, and the commands that talk to it.

    Args:
        home: Private directory for Flower and Ray.
        run_directory: Absolute path of the run directory.
    """
    return {
        **flower_environment(home),
        RUN_DIRECTORY_VARIABLE: str(run_directory),
        "RAY_TMPDIR": str(home),
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def provider_environment(home: Path, runs: Path) -> dict[str, str]:
    """Return the environment for a provider's SuperLink, what it starts, and the commands that talk to it.

    Args:
        home: Private directory for Flower.
        runs: Absolute path of the directory below which runs are kept.
    """
    environment = {**flower_environment(home), RUNS_VARIABLE: str(runs), **_MALLOC}
    environment.pop(RUN_DIRECTORY_VARIABLE, None)  # each run has a directory of its own, whatever the shell says
    return environment


def flower_environment(home: Path) -> dict[str, str]:
    """Return the environment for Flower's programs and what they start.

    Args:
        home: Private directory for Flower.
    """
    # A proxy of the house must not be asked for connections within this machine.
    direct = ",".join(filter(None, [os.environ.get("NO_PROXY") or os.environ.get("no_proxy"), "127.0.0.1"]))
    return {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "NO_PROXY": direct,
        "no_proxy": direct,
    }
