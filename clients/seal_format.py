"""SEAL's serialised ciphertexts, byte for byte: take fresh ones apart, build the ones that SEAL is to load.

SEAL 4.3 saves a seeded ciphertext as a 16-byte header, then (zstd-compressed) metadata, the residues of the first
polynomial as 64-bit words, and an 81-byte record that ends in the seed of the second. It loads the same bytes
uncompressed. Whether the installed build still does is proved by `clients.self_check` before anything is encrypted.

Trust: runs at the site. SEAL gets only bytes that were built here, of residues and seeds that were checked.
"""

from __future__ import annotations

import os
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np
import numpy.typing as npt
import zstandard

from protocol.errors import BackendError
from protocol.parameters import SEED_BYTES
from protocol.residues import Residues

_HEADER = struct.Struct("<HBBBBHQ")
_MAGIC: Final = 0xA15E
_UNCOMPRESSED: Final = 0
_ZSTD: Final = 2
_WORD_BYTES: Final = 8
_SEED_RECORD_BYTES: Final = 81
_DECOMPRESSOR: Final = zstandard.ZstdDecompressor()


@dataclass(frozen=True, slots=True)
class SeededTemplate:
    """What surrounds residues and seed in an uncompressed seeded ciphertext.

    Attributes:
        prefix: Header and metadata, up to the residues.
        seed_prefix: The seed record, up to the seed.
    """

    prefix: bytes
    seed_prefix: bytes

    @classmethod
    def of(cls, saved: bytes, ring_degree: int) -> Self:
        """Learn the template from one saved ciphertext.

        Raises:
            BackendError: It is not laid out as SEAL 4.3 does.
        """
        body = _decompress(saved)
        residues_start = len(body) - _SEED_RECORD_BYTES - _WORD_BYTES * ring_degree
        if residues_start <= 0:
            raise BackendError(f"a seeded ciphertext has {len(body)} bytes, too few for N={ring_degree}")
        size = _HEADER.size + len(body)
        header = _HEADER.pack(_MAGIC, _HEADER.size, saved[3], saved[4], _UNCOMPRESSED, 0, size)
        return cls(header + body[:residues_start], body[-_SEED_RECORD_BYTES:-SEED_BYTES])

    def build(self, residues: Residues, seed: bytes) -> bytes:
        """Return the ciphertext with this first polynomial and this seed, as SEAL loads it.

        Args:
            residues: Shape (N,), below q.
            seed: 64 bytes.
        """
        return b"".join((self.prefix, residues.astype("<u8").tobytes(), self.seed_prefix, seed))


def split_seeded(saved: bytes, ring_degree: int) -> tuple[npt.NDArray[np.uint64], bytes]:
    """Take a saved seeded ciphertext apart.

    Returns:
        Residues of the first polynomial, shape (N,), and the 64-byte seed.

    Raises:
        BackendError: It is not laid out as SEAL 4.3 does.
    """
    body = _decompress(saved)
    residues_start = len(body) - _SEED_RECORD_BYTES - _WORD_BYTES * ring_degree
    return np.frombuffer(body, dtype="<u8", count=ring_degree, offset=residues_start), body[-SEED_BYTES:]


def _decompress(saved: bytes) -> bytes:
    magic, header_size, _, _, compression, _, size = _HEADER.unpack(saved[: _HEADER.size])
    if (magic, header_size, size) != (_MAGIC, _HEADER.size, len(saved)):
        raise BackendError("SEAL's header is not the one this version was built for")
    if compression == _UNCOMPRESSED:
        return saved[_HEADER.size :]
    if compression != _ZSTD:
        raise BackendError(f"SEAL compresses with mode {compression}, expected {_ZSTD} (zstd)")
    return _DECOMPRESSOR.decompressobj().decompress(saved[_HEADER.size :])


class ScratchFile:
    """A file path that SEAL can save to and load from, without anything reaching a disk where the system allows that.

    On Linux it is an anonymous file in memory; elsewhere a file in a private temporary directory. SEAL's Python API
    reads and writes nothing but paths.
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
