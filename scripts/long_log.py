"""Keep the log of a program that runs for months from filling the disk.

Trust: runs wherever the program does; the log is Flower's or the gate's.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

LONGEST_LOG_BYTES: Final = 16 << 20
"""Flower logs every call; a longer log becomes the previous one, and that one goes."""


def shorten_log(log: Path) -> None:
    """Begin a log anew that has grown long; its writers must append, and go on at its new end.

    Args:
        log: The log; the previous one is kept beside it, as NAME.previous.log.
    """
    with contextlib.suppress(OSError):  # where no file can be opened now, it stays long until one can
        if log.stat().st_size > LONGEST_LOG_BYTES:
            with contextlib.suppress(OSError):  # on a full disk nothing is kept
                log.with_suffix(".previous.log").write_bytes(log.read_bytes())
            with log.open("r+b") as file:
                file.truncate()
