"""A file path for SEAL, whose Python API reads and writes nothing but paths.

Trust: both sides run it. What is in it stays in this process where the system allows that.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Self


class ScratchFile:
    """A file path that SEAL can save to and load from, without anything reaching a disk where the system allows that.

    On Linux it is an anonymous file in memory; elsewhere a file in a private temporary directory.
    """

    def __init__(self) -> None:
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        if hasattr(os, "memfd_create"):
            self._descriptor = os.memfd_create("cipherward")
            self.path = f"/proc/self/fd/{self._descriptor}"
        else:
            self._directory = tempfile.TemporaryDirectory(prefix="cipherward-")
            self.path = str(Path(self._directory.name) / "scratch")
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)

    def read(self) -> bytes:
        """Return what SEAL saved last."""
        return os.pread(self._descriptor, os.fstat(self._descriptor).st_size, 0)

    def write(self, data: bytes) -> str:
        """Replace the content and return the path for SEAL to load."""
        if os.fstat(self._descriptor).st_size > len(data):
            os.ftruncate(self._descriptor, len(data))
        os.pwrite(self._descriptor, data, 0)
        return self.path

    def close(self) -> None:
        """Give the file up; its content is gone."""
        os.close(self._descriptor)
        if self._directory is not None:
            self._directory.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
