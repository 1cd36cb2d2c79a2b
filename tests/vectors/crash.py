"""A process that dies between two of its file operations, as if it were killed there.

Trust: tests only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from unittest.mock import patch


class Killed(BaseException):
    """The process is dead; nothing in it may catch this."""


@dataclass
class Death:
    """Whether the process came to its death."""

    came: bool = False


@contextmanager
def killed_after(operations: int) -> Iterator[Death]:
    """Die before the next file operation after some have been done.

    What counts is what a vault's files are made and deleted with: syncing, renaming, unlinking. What was written and
    not renamed stays behind, as it would after a crash.
    """
    death = Death()
    left = iter(range(operations))

    def until_then(operation: Callable[..., object]) -> Callable[..., object]:
        def step(*arguments: object, **options: object) -> object:
            if death.came or next(left, None) is None:
                death.came = True
                raise Killed
            return operation(*arguments, **options)

        return step

    with (
        patch.object(os, "fsync", until_then(os.fsync)),
        patch.object(os, "replace", until_then(os.replace)),
        patch.object(os, "unlink", until_then(os.unlink)),
        suppress(Killed),
    ):
        yield death
