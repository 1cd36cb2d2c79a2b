"""Let one process at a time do what two must not do at once.

Trust: runs wherever the command does; touches a lock file only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from protocol.errors import ConfigurationError


@contextlib.contextmanager
def alone(lock_file: Path, complaint: str) -> Iterator[None]:
    """Hold a lock for as long as the context lasts; the system lets go of it however the process ends.

    Raises:
        ConfigurationError: Another process holds it; the text is the complaint.
    """
    try:
        lock = FileLock(lock_file, timeout=0).acquire()
    except Timeout:
        raise ConfigurationError(complaint) from None
    with lock:
        yield
