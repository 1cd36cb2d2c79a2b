"""Where a simulated run keeps its files.

Trust: both sides ask; each uses only its own part below the directory.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from platformdirs import user_data_path

RUN_DIRECTORY_VARIABLE: Final = "CIPHERWARD_RUN_DIRECTORY"
"""Tells ServerApp and ClientApps of a simulation where their run directory is; an absolute path."""


def run_directory(run_id: int) -> Path:
    """Return the directory of a run.

    Args:
        run_id: Flower's id of the run, which names the directory unless the launcher has named one.
    """
    named = os.environ.get(RUN_DIRECTORY_VARIABLE)
    return Path(named) if named else user_data_path("cipherward") / "runs" / str(run_id)
