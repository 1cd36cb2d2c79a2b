"""Residues mod q as tight little-endian words, checked before anything else touches them.

Trust: both sides run it, on bytes from outside.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from protocol.errors import LengthError, ResidueRangeError

Residues: TypeAlias = npt.NDArray[np.unsignedinteger]
"""Polynomials mod q, shape (ciphertexts, N); uint32 for moduli up to 32 bits, else uint64."""

_WORD_BYTES = 8
_SHORT_BYTES = 4
_SHORT_BITS = 32
_BLOCK = 1 << 16  # words
_SPAN = 1 << 18  # words that are worth a thread

Result = TypeVar("Result")


def pack_residues(residues: Residues, width: int) -> bytes | memoryview:
    """Write each residue in `width` bytes.

    Args:
        residues: Unsigned array of any shape, all below 2^(8 width).
        width: 3, 4 or 5 bytes.

    Returns:
        The bytes; for 4-byte residues a view of the array, where it already has them.
    """
    if width == _SHORT_BYTES:
        return np.ascontiguousarray(residues, dtype="<u4").reshape(-1).view(np.uint8).data
    words = np.ascontiguousarray(residues, dtype="<u8")
    return words.view(np.uint8).reshape(-1, _WORD_BYTES)[:, :width].tobytes()


def unpack_words(data: bytes | memoryview, width: int) -> Residues:
    """Read little-endian words of `width` bytes; any value is accepted.

    Args:
        data: Whole words.
        width: 3, 4 or 5 bytes.

    Returns:
        Shape (len(data) / width,): uint32 (a view of the data) for 4 bytes, else uint64.
    """
    if width == _SHORT_BYTES:
        return np.frombuffer(data, dtype="<u4")
    count = len(data) // width
    padded = np.frombuffer(bytes(data) + bytes(_WORD_BYTES - width), dtype=np.uint8)
    words = np.ndarray((count,), dtype="<u8", buffer=padded.data, strides=(width,))
    mask: npt.NDArray[np.uint64] = words & np.uint64((1 << (8 * width)) - 1)
    return mask


def unpack_residues(data: bytes | memoryview, width: int, modulus: int, shape: tuple[int, int]) -> Residues:
    """Read residues and check each of them.

    Raises:
        LengthError: The data does not hold exactly `shape` words.
        ResidueRangeError: A word is q or more.
    """
    expected = shape[0] * shape[1] * width
    if len(data) != expected:
        raise LengthError("residue bytes", expected=expected, got=len(data))
    words = unpack_words(data, width)
    check_residues(words, modulus)
    return words.reshape(shape)


def check_residues(residues: Residues, modulus: int) -> None:
    """Raise unless every residue is below the modulus.

    Raises:
        ResidueRangeError: Some residue is not.
    """
    flat = residues.reshape(-1)
    largest = max(_by_span(lambda start, stop: int(flat[start:stop].max(initial=0)), flat.size))
    if largest >= modulus:
        raise ResidueRangeError("residue", expected=f"below {modulus}", got=largest)


class ResidueSum:
    """A running sum mod q, reduced once at the end; memory is about one update, however many are added.

    32-bit residues are added in 32-bit words, with a byte beside each that counts the carries: half the memory of
    64-bit words, and a third of their time. 24-bit residues in 32-bit words and 40-bit ones in 64-bit words cannot
    overflow with the largest cohort, so their carries stay 0.

    Args:
        modulus: q.
        bits: Bit length of q: 24, 32 or 40.
        shape: (ciphertexts, N).
    """

    def __init__(self, modulus: int, bits: int, shape: tuple[int, int]) -> None:
        self._modulus = modulus
        self._bits = bits
        self._shape = shape
        size = shape[0] * shape[1]
        self._words: Residues = np.zeros(size, dtype=np.uint32 if bits <= _SHORT_BITS else np.uint64)
        self._carries = np.zeros(size, dtype=np.uint8)

    def add(self, residues: Residues) -> None:
        """Add checked residues of the sum's shape; at most 255 times."""
        addend = residues.astype(self._words.dtype, copy=False).reshape(-1)
        _by_span(lambda start, stop: self._add_span(addend, start, stop), addend.size)

    def _add_span(self, addend: Residues, start: int, stop: int) -> None:
        scratch = np.empty(_BLOCK, dtype=np.bool_)
        for block in _blocks(start, stop):
            words, terms = self._words[block], addend[block]
            words += terms
            carried = np.less(words, terms, out=scratch[: words.size])
            self._carries[block] += carried.view(np.uint8)

    def reduce(self) -> Residues:
        """Reduce the sum mod q in place and return it, shape (ciphertexts, N); a later `add` changes it."""
        if self._bits == _SHORT_BITS:
            _by_span(self._reduce_span, self._words.size)
        else:
            self._words %= self._words.dtype.type(self._modulus)
        return self._words.reshape(self._shape)

    def _reduce_span(self, start: int, stop: int) -> None:
        # a carry is worth 2^32, which is 2^32 - q mod q
        modulus, carry_worth = np.uint32(self._modulus), np.uint32((1 << _SHORT_BITS) - self._modulus)
        scratch = np.empty(_BLOCK, dtype=np.uint32)
        for block in _blocks(start, stop):
            words, carries = self._words[block], self._carries[block]
            folded = np.multiply(carries, carry_worth, out=scratch[: words.size])
            words += folded
            np.less(words, folded, out=carries.view(np.bool_))  # carries once more, and then the word is small
            words += np.multiply(carries, carry_worth, out=folded)
            # the subtraction wraps to a larger word where words < q
            np.minimum(words, np.subtract(words, modulus, out=folded), out=words)
            carries[:] = 0


def _blocks(start: int, stop: int) -> Iterator[slice]:
    """Cut a span into blocks that stay in the cache through all passes over them."""
    for first in range(start, stop, _BLOCK):
        yield slice(first, min(first + _BLOCK, stop))


def _by_span(work: Callable[[int, int], Result], size: int) -> list[Result]:
    """Call work(start, stop) over 0..size: large arrays in one span per core, for NumPy lets other threads run."""
    cores = min(os.cpu_count() or 1, size // _SPAN)
    if cores <= 1:
        return [work(0, size)]
    bounds = [size * core // cores for core in range(cores + 1)]
    return list(_threads().map(work, bounds[:-1], bounds[1:]))


@lru_cache(maxsize=1)
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="residues")
