"""Residues mod q as tight little-endian words, checked before anything else touches them.

Trust: both sides run it, on bytes from outside.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from protocol.errors import LengthError, ResidueRangeError

Residues: TypeAlias = npt.NDArray[np.unsignedinteger]
"""Polynomials mod q, shape (ciphertexts, N); uint32 for moduli up to 32 bits, else uint64."""

_WORD_BYTES = 8
_SHORT_BYTES = 4
_SHORT_BITS = 32
_BLOCK = 1 << 16  # words


def residue_type(modulus_bits: int) -> np.dtype[np.unsignedinteger]:
    """Return the type in which residues of a modulus are held: uint32 up to 32 bits, else uint64."""
    return np.dtype(np.uint32 if modulus_bits <= _SHORT_BITS else np.uint64)


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
    largest = int(residues.max(initial=0))
    if largest >= modulus:
        raise ResidueRangeError("residue", expected=f"below {modulus}", got=largest)


class ResidueSum:
    """A running sum mod q; memory is about one update, however many are added.

    32-bit residues are added in 32-bit words, whose carries are folded in at once, block by block: half the memory of
    64-bit words, and less time. 24-bit residues in 32-bit words and 40-bit ones in 64-bit words do not overflow,
    however many sites there are.

    Args:
        modulus: q.
        bits: Bit length of q: 24, 32 or 40.
        shape: (ciphertexts, N).
    """

    def __init__(self, modulus: int, bits: int, shape: tuple[int, int]) -> None:
        self._modulus = modulus
        self._bits = bits
        self._shape = shape
        self._dtype = residue_type(bits)
        self._words: Residues | None = None

    def add(self, residues: Residues) -> None:
        """Add checked residues of the sum's shape; at most 255 times."""
        addend = residues.astype(self._dtype, copy=False).reshape(-1)
        if self._words is None:
            self._words = addend.copy()
        elif self._bits == _SHORT_BITS:
            self._add_mod_q(self._words, addend)
        else:
            self._words += addend

    def reduce(self) -> Residues:
        """Reduce the sum mod q in place and return it, shape (ciphertexts, N); a later `add` changes it."""
        if self._words is None:
            self._words = np.zeros(self._shape[0] * self._shape[1], dtype=self._dtype)
        if self._bits == _SHORT_BITS:
            scratch = np.empty(_BLOCK, dtype=np.uint32)
            for block in _blocks(self._words.size):
                words = self._words[block]
                # the subtraction wraps to a larger word where words < q
                np.minimum(words, np.subtract(words, np.uint32(self._modulus), out=scratch[: words.size]), out=words)
        else:
            self._words %= self._dtype.type(self._modulus)
        return self._words.reshape(self._shape)

    def _add_mod_q(self, all_words: Residues, addend: Residues) -> None:
        # a carry is worth 2^32, which is 2^32 - q mod q; adding that carries no more, because the addend is below q
        carry_worth = np.uint32((1 << _SHORT_BITS) - self._modulus)
        carries, folded = np.empty(_BLOCK, dtype=np.bool_), np.empty(_BLOCK, dtype=np.uint32)
        for block in _blocks(all_words.size):
            words, terms = all_words[block], addend[block]
            words += terms
            carried = np.less(words, terms, out=carries[: words.size])
            words += np.multiply(carried.view(np.uint8), carry_worth, out=folded[: words.size])


def _blocks(size: int) -> Iterator[slice]:
    """Cut an array into blocks that stay in the cache through all passes over them."""
    for start in range(0, size, _BLOCK):
        yield slice(start, min(start + _BLOCK, size))
