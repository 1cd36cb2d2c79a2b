"""The provider's record of one run: a JSON line per event, and every message that it needs in order to go on.

Trust: runs at the provider, and holds exactly what a real provider would: sizes, digests, times, names, ciphertexts.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from protocol.errors import RunFailedError

LOCK_SECONDS: Final = 90.0
"""A ServerApp whose SuperLink was killed may live on for so long."""

_LOCK: Final = ".lock"
_LONGEST_TEXT = 400

_log = logging.getLogger("flwr.cipherward.provider")


class RunRecord:
    """Keeps one run's events and messages below a directory.

    Args:
        directory: Where to keep them; made if needed.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        _make_durable(directory)

    @contextmanager
    def locked(self, patience_seconds: float) -> Iterator[None]:
        """Be the only ServerApp that works on this run.

        Args:
            patience_seconds: How long to wait for another one to end.

        Raises:
            RunFailedError: Another one does, still.
        """
        lock = FileLock(self._directory / _LOCK, timeout=patience_seconds)
        try:
            lock.acquire()
        except Timeout:
            raise RunFailedError(
                f"another ServerApp has worked on this run for {patience_seconds:.0f} s; it is not disturbed"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def event(self, name: str, **fields: object) -> None:
        """Append one event to events.jsonl and to Flower's log. Long texts, a peer's, are cut."""
        short = {key: field[:_LONGEST_TEXT] if isinstance(field, str) else field for key, field in fields.items()}
        entry = {"event": name, "time": round(time.time(), 3), **short}
        with (self._directory / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, separators=(",", ":")) + "\n")
        _log.info("%s %s", name, short.get("text") or " ".join(f"{key}={value}" for key, value in short.items()))

    def keep(self, name: str, data: bytes) -> None:
        """Keep bytes under a name, on disk when this returns; a crash leaves the old ones or the new."""
        path = self._directory / name
        _make_durable(path.parent)
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_directory(path.parent)  # or a power cut could undo the renaming

    def load(self, name: str) -> bytes | None:
        """Return what is kept under a name; None if nothing is."""
        path = self._directory / name
        return path.read_bytes() if path.exists() else None


def sync_directory(directory: Path) -> None:
    """Have the names in a directory on disk: a file that was synced is lost if its name is."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_durable(directory: Path) -> None:
    """Make a directory and those above it, each with its name on disk before anything is in it."""
    if not directory.parent.is_dir():
        _make_durable(directory.parent)
    directory.mkdir(exist_ok=True)
    if not any(directory.iterdir()):  # made just now, or by a process that died before it came to this
        sync_directory(directory.parent)


def is_worked_on(directory: Path) -> bool:
    """Return whether a ServerApp works on the run whose record is in a directory."""
    if not (directory / _LOCK).exists():
        return False
    try:
        with FileLock(directory / _LOCK, timeout=0):
            return False
    except Timeout:
        return True
