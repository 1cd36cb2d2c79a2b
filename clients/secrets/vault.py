"""A site's directory: what it knows, what it keeps secret, and the journal of what has left it.

Trust: site only. Secrets are files of mode 0600; anything that decides what may leave is on disk before it leaves.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from clients.secrets.secret import SecretBytes
from protocol.errors import ConfigurationError

LOCK_SECONDS: Final = 600.0
_LONGEST_TEXT: Final = 400
_SECRET_MODE: Final = 0o600
_PRIVATE_DIRECTORY_MODE: Final = 0o700


class Vault:
    """Files below one directory, written so that a crash leaves the old content or the new.

    Args:
        directory: The site's own directory; made if needed, readable by its owner only.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        _make_durable(directory)
        directory.chmod(_PRIVATE_DIRECTORY_MODE)  # what others may not enter keeps all below it private

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the vault for one message; two processes never handle messages of one site at once.

        Raises:
            ConfigurationError: Another process holds it for too long.
        """
        lock = FileLock(self.directory / ".lock", timeout=LOCK_SECONDS, mode=_SECRET_MODE)
        try:
            lock.acquire()
        except Timeout:
            raise ConfigurationError(
                f"another process has held this site's vault for {LOCK_SECONDS:.0f} s; stop one of the two"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def path(self, name: str) -> Path:
        """Return a file's path."""
        return self.directory / name

    def has(self, name: str) -> bool:
        """Return whether a file exists."""
        return self.path(name).exists()

    def read(self, name: str) -> bytes:
        """Read a file.

        Raises:
            ConfigurationError: It does not exist.
        """
        try:
            return self.path(name).read_bytes()
        except FileNotFoundError:
            raise ConfigurationError(f"the site's vault has no {name}") from None

    def write(self, name: str, data: bytes, *, is_durable: bool = True) -> None:
        """Replace a file atomically.

        Args:
            name: Path below the vault.
            data: New content.
            is_durable: Whether the content must have reached the disk on return. What can be made again needs not.
        """
        path = self.path(name)
        self._make_private(path.parent)
        partial = _partial(path)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _SECRET_MODE)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            if is_durable:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)
        if is_durable:
            _sync_directory(path.parent)

    def _make_private(self, directory: Path) -> None:
        if directory != self.directory:
            self._make_private(directory.parent)
            directory.mkdir(mode=_PRIVATE_DIRECTORY_MODE, exist_ok=True)
            if not any(directory.iterdir()):  # made just now, or by a process that died before it came to this
                _sync_directory(directory.parent)

    def read_secret(self, name: str) -> SecretBytes:
        """Read a secret file.

        Raises:
            ConfigurationError: It does not exist, or others may read it.
        """
        data = self.read(name)
        mode = self.path(name).stat().st_mode & 0o777
        if mode & 0o077:
            raise ConfigurationError(f"{name} may be read by others (mode {mode:o}); set it to 600 and renew the key")
        return SecretBytes(data)

    def write_secret(self, name: str, secret: SecretBytes) -> None:
        """Write a secret file, mode 0600."""
        self.write(name, secret.reveal())

    def delete(self, name: str) -> None:
        """Remove a file if it is there, and what a crash may have left of its next content."""
        for path in (self.path(name), _partial(self.path(name))):
            path.unlink(missing_ok=True)

    def append(self, name: str, entry: dict[str, object], *, is_durable: bool = False) -> None:
        """Append one JSON line.

        Args:
            name: File below the vault, in a directory that is there.
            entry: What the line says.
            is_durable: Whether the line must have reached the disk on return; then each of this file's lines has to.
        """
        line = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        path = self.path(name)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, _SECRET_MODE)
        with os.fdopen(descriptor, "r+b") as file:
            size = file.seek(0, os.SEEK_END)
            if is_durable and not size:
                _sync_directory(path.parent)  # first: the name of a file with a line in it is on disk, whoever dies now
            # a line that a crash cut off must not swallow the one after it
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                file.write(b"\n")
            file.write(line)
            if is_durable:
                file.flush()
                os.fsync(file.fileno())

    def lines(self, name: str) -> Iterator[dict[str, object]]:
        """Yield the JSON lines of a file; a line that a crash cut off is passed over."""
        if not self.has(name):
            return
        for line in self.read(name).splitlines():
            try:
                yield json.loads(line)
            except ValueError:  # not JSON, or not even UTF-8
                continue

    def record(self, event: str, **fields: object) -> None:
        """Write one line of the site's own log: never values, keys or records. Long texts, a peer's, are cut."""
        short = {name: field[:_LONGEST_TEXT] if isinstance(field, str) else field for name, field in fields.items()}
        self.append("events.jsonl", {"event": event, "time": round(time.time(), 3), **short})


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _make_durable(directory: Path) -> None:
    """Make a directory and those above it, each with its name on disk."""
    if directory.is_dir():
        return
    _make_durable(directory.parent)
    directory.mkdir(exist_ok=True)
    _sync_directory(directory.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
