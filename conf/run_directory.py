"""Where a run keeps its files.

Trust: both sides ask; each uses only its own part below the directory. A run's name comes with the run config, so it is
checked before it becomes a path.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from platformdirs import user_data_path

from protocol.errors import ConfigurationError

RUN_DIRECTORY_VARIABLE: Final = "CIPHERWARD_RUN_DIRECTORY"
"""Tells ServerApp and ClientApps of a simulation where their run directory is; an absolute path."""

RUNS_VARIABLE: Final = "CIPHERWARD_RUNS"
"""Tells a deployed provider's ServerApps below which directory their runs are; an absolute path."""

RUN_NAME_FORMAT: Final = "%Y-%m-%d_%H-%M-%S"
"""A run is named by the moment in which it was submitted."""

_RUN_NAME: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}_[0-9]{2}-[0-9]{2}-[0-9]{2}")


def run_directory(run_id: int, run_config: Mapping[str, str | int | float | bool] | None = None) -> Path:
    """Return the directory of a run.

    Args:
        run_id: Flower's id of the run, which names the directory unless the launcher has named one.
        run_config: Flower's run config; at a deployed provider its key `run` names the directory.

    Raises:
        ConfigurationError: `run` is no run's name.
    """
    named = os.environ.get(RUN_DIRECTORY_VARIABLE)
    if named:
        return Path(named)
    runs = os.environ.get(RUNS_VARIABLE)
    home = Path(runs) if runs else user_data_path("cipherward") / "runs"
    name = (run_config or {}).get("run", "")
    return home / (check_run_name(str(name)) if name else str(run_id))


def check_run_name(name: str) -> str:
    """Return a run's name, if it is one: a file name that leads nowhere else.

    Raises:
        ConfigurationError: It is none.
    """
    if not _RUN_NAME.fullmatch(name):
        raise ConfigurationError("a run is named by its moment, such as 2026-01-31_12-00-00")
    return name
