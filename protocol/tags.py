"""Linear integrity tags: the tags of a cohort add up to the tag of its sum, so the sum is checked before decryption.

A tag is an inner product with secret uniform vectors; an altered sum passes with probability q^-L. Tags travel sealed,
because in the clear t_2 c_1 - t_1 c_2 would pass.

What a tag covers are the residues that the provider sends down: the first polynomials, and in large cohorts the second
ones below them. A second polynomial that the provider could choose would give it the CKKS key.

Trust: sites call it with keys of the epoch; the provider relays sealed tags and can neither read nor make one.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, TypeAlias

import numpy as np

from protocol.errors import LengthError
from protocol.masks import uniform_residues
from protocol.parameters import CkksParameters
from protocol.residues import Residues

Tag: TypeAlias = tuple[int, ...]

_SOUNDNESS_BITS: Final = 64
_WORD_BITS: Final = 64
_WORD: Final = struct.Struct("<Q")


def tag_vector_count(parameters: CkksParameters) -> int:
    """Return L, the number of secret vectors: 3, 2, 2 for 24, 32, 40 bits, so that q^-L is at most about 2^-64."""
    return -(-_SOUNDNESS_BITS // parameters.modulus_bits)


def tag_vectors(key: bytes, parameters: CkksParameters, rows: int) -> list[Residues]:
    """Expand the secret vectors of one sum.

    Args:
        key: One-time key of this sum's context.
        parameters: CKKS parameters.
        rows: Polynomials that the tag covers.

    Returns:
        L arrays of shape (rows, N).
    """
    count = tag_vector_count(parameters)
    shape = (count, rows, parameters.ring_degree)
    flat = uniform_residues(
        key,
        count=count * rows * parameters.ring_degree,
        modulus=parameters.modulus,
        bits=parameters.modulus_bits,
    )
    return list(flat.reshape(shape))


def tag_of(vectors: Sequence[Residues], residues: Residues, parameters: CkksParameters) -> Tag:
    """Return the inner product of residues with each vector, mod q.

    Row by row in 64-bit integers: the residues are cut into limbs so short that a row of products cannot overflow.

    Args:
        vectors: From `tag_vectors`.
        residues: Shape (rows, N), below q.
        parameters: CKKS parameters.
    """
    row_bits = parameters.ring_degree.bit_length() - 1
    limb_bits = _WORD_BITS - parameters.modulus_bits - row_bits
    limb_mask = np.uint64((1 << limb_bits) - 1)
    modulus = parameters.modulus
    totals = [0] * len(vectors)
    for start in range(0, residues.shape[0], _ROWS):
        rows = residues[start : start + _ROWS].astype(np.uint64)
        factors = [vector[start : start + _ROWS].astype(np.uint64) for vector in vectors]
        for shift in range(0, parameters.modulus_bits, limb_bits):
            limb = (rows >> np.uint64(shift)) & limb_mask
            for index, factor in enumerate(factors):
                partial = np.einsum("rn,rn->r", factor, limb)
                totals[index] += int((partial % np.uint64(modulus)).sum()) << shift
    return tuple(total % modulus for total in totals)


_ROWS = 16  # rows that stay in the cache while all limbs and vectors pass over them


def add_tags(tags: Sequence[Tag], parameters: CkksParameters) -> Tag:
    """Return the tag of the sum of the tagged residues."""
    return tuple(sum(column) % parameters.modulus for column in zip(*tags, strict=True))


def tag_to_bytes(tag: Tag) -> bytes:
    """Encode a tag in 8 bytes per vector."""
    return b"".join(map(_WORD.pack, tag))


def tag_from_bytes(data: bytes) -> Tag:
    """Decode a tag.

    Raises:
        LengthError: The data is not whole 8-byte words.
    """
    if len(data) % _WORD.size:
        raise LengthError("tag bytes", expected=f"whole words of {_WORD.size}", got=len(data))
    return tuple(word for (word,) in _WORD.iter_unpack(data))
