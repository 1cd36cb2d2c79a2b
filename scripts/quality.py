"""The project's own checks: format, lint, types, import contracts, tests.

Trust: runs at a developer's machine.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from protocol.errors import ConfigurationError
from scripts.environment import program, project_root

CHECKS: Final[tuple[tuple[str, ...], ...]] = (
    ("ruff", "format", "--check"),
    ("ruff", "check"),
    ("mypy",),
    ("lint-imports",),
)


def run_checks() -> bool:
    """Run all checks, also after one has failed; return whether all passed."""
    return all([_run(command) for command in CHECKS])  # noqa: C419 - a list, so that none is skipped


def run_tests(arguments: Sequence[str]) -> int:
    """Run pytest on all cores with the arguments, deployments one after the other; return its exit code."""
    return _exit_code(["pytest", "-n", "auto", "--dist", "loadgroup", *arguments])


def _run(command: Sequence[str]) -> bool:
    return _exit_code(command) == 0


def _exit_code(command: Sequence[str]) -> int:
    if not Path(program(command[0])).exists():
        raise ConfigurationError(f"{command[0]} is not installed: scripts/check and scripts/test install it, once")
    print("$", *command, flush=True)
    return subprocess.run([program(command[0]), *command[1:]], cwd=project_root(), check=False).returncode
