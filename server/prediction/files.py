"""Write files and directories so that a crash leaves the old ones or the new ones.

Trust: runs at the provider; knows nothing of what it writes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from server.record import sync_directory

_NEW: Final = ".new-"
_OLD: Final = ".old-"
_REPLACED: Final = ".replaced-"


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
    sync_directory(path.parent)


def write_directory(path: Path, files: Mapping[str, bytes], *, check_old: Callable[[], None] | None = None) -> None:
    """Write a directory at once.

    Args:
        path: Where.
        files: Names and contents.
        check_old: Called if there is one of that name; raises if it must stay. Not given, each must.

    Raises:
        FileExistsError: There is one of that name.
    """
    with _alone(path.parent):
        is_there = path.exists()
        if is_there and check_old is None:
            raise FileExistsError(path)
        if is_there and check_old is not None:
            check_old()
        partial = Path(tempfile.mkdtemp(prefix=_NEW, dir=path.parent))
        try:
            for name, data in files.items():
                write_file(partial / name, data)
            if is_there:
                _put_in_place_of(path, partial)
            else:
                partial.rename(path)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def remove_directory(path: Path) -> None:
    """Remove a directory at once: what reads it meanwhile finds all of it or nothing.

    Raises:
        FileNotFoundError: There is none.
    """
    with _alone(path.parent):
        doomed = Path(tempfile.mkdtemp(prefix=_OLD, dir=path.parent))
        try:
            path.rename(doomed / path.name)
            sync_directory(path.parent)
        finally:
            shutil.rmtree(doomed, ignore_errors=True)


def remove_leftovers(directory: Path) -> None:
    """Remove what a crash has left below a directory, and take back what was half replaced; waits for who writes."""
    with _alone(directory):
        pass


def _put_in_place_of(path: Path, partial: Path) -> None:
    replaced = Path(tempfile.mkdtemp(prefix=_REPLACED, dir=path.parent))
    path.rename(replaced / path.name)
    try:
        partial.rename(path)
    except BaseException:
        (replaced / path.name).rename(path)
        replaced.rmdir()
        raise
    sync_directory(path.parent)
    shutil.rmtree(replaced, ignore_errors=True)


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Be the only one, in any process, that writes or removes directories below this one; a crash ends that, too."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        _tidy_up(directory)
        yield
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _tidy_up(directory: Path) -> None:
    for replaced in directory.glob(f"{_REPLACED}*"):
        for old in replaced.iterdir():
            if not (directory / old.name).exists():  # killed between taking it away and putting the new one there
                old.rename(directory / old.name)
        shutil.rmtree(replaced)
    for pattern in (_NEW, _OLD):
        for path in directory.glob(f"{pattern}*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
