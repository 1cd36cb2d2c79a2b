"""Write files and directories so that a crash leaves the old ones or the new ones.

Trust: runs at the provider; knows nothing of what it writes.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_NEW: Final = ".new-"
_OLD: Final = ".old-"


def write_file(path: Path, data: bytes) -> None:
    """Write a file at once."""
    descriptor, partial = tempfile.mkstemp(prefix=_NEW, dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(partial).replace(path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
    _sync(path.parent)


def write_directory(path: Path, files: Mapping[str, bytes]) -> None:
    """Write a directory at once.

    Raises:
        FileExistsError: There is one of that name.
    """
    partial = Path(tempfile.mkdtemp(prefix=_NEW, dir=path.parent))
    try:
        for name, data in files.items():
            write_file(partial / name, data)
        try:
            partial.rename(path)  # onto nothing, or an empty directory
        except OSError as error:
            raise FileExistsError(path) from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _sync(path.parent)


def remove_directory(path: Path) -> None:
    """Remove a directory at once: what reads it meanwhile finds all of it or nothing.

    Raises:
        FileNotFoundError: There is none.
    """
    doomed = Path(tempfile.mkdtemp(prefix=_OLD, dir=path.parent))
    try:
        path.rename(doomed / path.name)
        _sync(path.parent)
    finally:
        shutil.rmtree(doomed, ignore_errors=True)


def remove_leftovers(directory: Path) -> None:
    """Remove what a crash has left of writing and removing below a directory; nobody may be doing either."""
    for pattern in (_NEW, _OLD):
        for path in directory.glob(f"{pattern}*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
