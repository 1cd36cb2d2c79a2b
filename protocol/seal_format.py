"""SEAL's serialised ciphertexts, byte for byte: take fresh ones apart, build the ones that SEAL is to load.

SEAL 4.3 saves a ciphertext as a 16-byte header, then (zstd-compressed) metadata and the residues as 64-bit words: those
of both polynomials, or of the first one and an 81-byte record that ends in the seed of the second. It loads the same
bytes uncompressed. Whether the installed build still does is proved by `protocol.expansion` and, at a site, by
`clients.secrets.self_check` before anything is added or encrypted.

Trust: both sides run it. SEAL gets only bytes that were built here, of residues and seeds that were checked.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
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
_METADATA = struct.Struct("<32s?3QdQ")  # parms_id, NTT form, polynomials, N, primes, scale, correction factor
_PLAINTEXT_METADATA = struct.Struct("<32sQd")  # parms_id, coefficients, scale
_COUNT = struct.Struct("<Q")
_POLYNOMIALS: Final = 2
_WORD_BYTES: Final = 8
_SEED_RECORD_BYTES: Final = 81
_BLAKE2XB: Final = b"\x01"


@dataclass(frozen=True, slots=True, kw_only=True)
class CiphertextLayout:
    """What surrounds residues and seed in uncompressed ciphertexts.

    Attributes:
        seeded_prefix: Header and metadata of a seeded one of two polynomials, up to the residues.
        seed_prefix: The seed record, up to the seed.
        expanded_prefix: Header and metadata of one that holds all its polynomials, up to the residues.
    """

    seeded_prefix: bytes
    seed_prefix: bytes
    expanded_prefix: bytes

    @classmethod
    def of(
        cls, empty: bytes, *, ring_degree: int, scale: float, primes: int = 1, polynomials: int = _POLYNOMIALS
    ) -> Self:
        """Derive the layout from a saved ciphertext without polynomials, which takes no key to make.

        Args:
            empty: What SEAL saves of `Ciphertext(context)`.
            ring_degree: N.
            scale: CKKS scale of the ciphertexts to build.
            primes: Primes of their modulus.
            polynomials: Of the expanded ones.

        Raises:
            BackendError: It is not laid out as SEAL 4.3 does.
        """
        body = _decompress(empty)
        version = empty[3], empty[4]
        record = _METADATA.size + _HEADER.size + _COUNT.size
        if len(body) != record:
            raise BackendError(f"SEAL saves an empty ciphertext in {len(body)} bytes, expected {record}")
        parms_id, *fields = _METADATA.unpack(body[: _METADATA.size])
        if fields != [False, 0, ring_degree, primes, 1.0, 1]:
            raise BackendError("SEAL's metadata of a ciphertext is not what this version was built for")

        def prefix(size: int, stored: int, trailing: int) -> bytes:
            metadata = _METADATA.pack(parms_id, True, size, ring_degree, primes, scale, 1)
            words = stored * primes * ring_degree
            counted = _COUNT.size + _WORD_BYTES * words
            array = _header(version, counted) + _COUNT.pack(words)
            return _header(version, len(metadata) + _HEADER.size + counted + trailing) + metadata + array

        return cls(
            seeded_prefix=prefix(_POLYNOMIALS, 1, _SEED_RECORD_BYTES),
            seed_prefix=_header(version, _SEED_RECORD_BYTES - _HEADER.size) + _BLAKE2XB,
            expanded_prefix=prefix(polynomials, polynomials, 0),
        )

    def seeded(self, residues: Residues, seed: bytes) -> bytes:
        """Return the ciphertext with this first polynomial and this seed, as SEAL loads it.

        Args:
            residues: Shape (N,), or (primes, N), below q.
            seed: 64 bytes.
        """
        return b"".join((self.seeded_prefix, _words(residues), self.seed_prefix, seed))

    def expanded(self, *polynomials: Residues) -> bytes:
        """Return the ciphertext with these polynomials, each of shape (N,) or (primes, N), as SEAL loads it."""
        return b"".join((self.expanded_prefix, *map(_words, polynomials)))


def split_seeded(saved: bytes, words: int) -> tuple[npt.NDArray[np.uint64], bytes]:
    """Take a saved seeded ciphertext apart.

    Args:
        saved: What SEAL saved.
        words: Residues of a polynomial: N times the primes.

    Returns:
        Residues of the first polynomial, shape (words,), and the 64-byte seed.

    Raises:
        BackendError: It is not laid out as SEAL 4.3 does.
    """
    body = _decompress(saved)
    residues_start = len(body) - _SEED_RECORD_BYTES - _WORD_BYTES * words
    if residues_start <= 0:
        raise BackendError(f"a seeded ciphertext has {len(body)} bytes, too few for {words} residues")
    return np.frombuffer(body, dtype="<u8", count=words, offset=residues_start), body[-SEED_BYTES:]


def split_expanded(saved: bytes, words: int, polynomials: int = _POLYNOMIALS) -> npt.NDArray[np.uint64]:
    """Take a saved ciphertext apart that holds all its polynomials.

    Args:
        saved: What SEAL saved: a ciphertext, or a public key.
        words: Residues of a polynomial: N times the primes.
        polynomials: How many.

    Returns:
        Their residues, shape (polynomials, words).

    Raises:
        BackendError: It is not laid out as SEAL 4.3 does.
    """
    return _trailing_words(saved, _METADATA.size, polynomials * words).reshape(polynomials, words)


def split_plaintext(saved: bytes, words: int) -> npt.NDArray[np.uint64]:
    """Return the residues of a saved encoded plaintext, shape (words,).

    Args:
        saved: What SEAL saved.
        words: N times the primes.

    Raises:
        BackendError: It is not laid out as SEAL 4.3 does.
    """
    return _trailing_words(saved, _PLAINTEXT_METADATA.size, words)


def _trailing_words(saved: bytes, metadata_bytes: int, words: int) -> npt.NDArray[np.uint64]:
    body = _decompress(saved)
    start = metadata_bytes + _HEADER.size + _COUNT.size
    if len(body) != start + _WORD_BYTES * words:
        raise BackendError(f"SEAL saved {len(body)} bytes, expected {start + _WORD_BYTES * words}")
    return np.frombuffer(body, dtype="<u8", count=words, offset=start)


def _header(version: tuple[int, int], content_bytes: int) -> bytes:
    return _HEADER.pack(_MAGIC, _HEADER.size, *version, _UNCOMPRESSED, 0, _HEADER.size + content_bytes)


def _words(residues: Residues) -> bytes:
    return residues.astype("<u8").tobytes()


def _decompress(saved: bytes) -> bytes:
    magic, header_size, _, _, compression, _, size = _HEADER.unpack(saved[: _HEADER.size])
    if (magic, header_size, size) != (_MAGIC, _HEADER.size, len(saved)):
        raise BackendError("SEAL's header is not the one this version was built for")
    if compression == _UNCOMPRESSED:
        return saved[_HEADER.size :]
    if compression != _ZSTD:
        raise BackendError(f"SEAL compresses with mode {compression}, expected {_ZSTD} (zstd)")
    # one for each call: a decompressor is not for several threads, and a clinic's program may have them
    return zstandard.ZstdDecompressor().decompressobj().decompress(saved[_HEADER.size :])
