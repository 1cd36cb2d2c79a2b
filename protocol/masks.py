"""Pairwise one-time masks: uniform residues that cancel in the sum of the whole cohort.

Trust: sites call it with pair keys; the provider never can.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

from protocol.residues import Residues, ResidueSum, unpack_words

_COUNTER_AND_NONCE = bytes(16)  # fixed, because each key expands into exactly one stream


def uniform_residues(key: bytes, *, count: int, modulus: int, bits: int) -> Residues:
    """Expand a one-time key into residues uniform in Z_q.

    Words of the modulus' own length are drawn from the ChaCha20 stream and those of q or more dropped, so that no
    residue is likelier than another.

    Args:
        key: 32 bytes, used for this stream only.
        count: Residues wanted.
        modulus: q.
        bits: Bit length of q, a multiple of 8.

    Returns:
        Shape (count,), uint32 or uint64.
    """
    stream = Cipher(ChaCha20(key, _COUNTER_AND_NONCE), mode=None).encryptor()
    width = bits // 8
    chunks: list[Residues] = []
    missing = count
    while missing:
        # a few more words than are missing make up for those that will be dropped
        words = unpack_words(stream.update(bytes((missing + missing // 512 + 16) * width)), width)
        kept = words if int(words.max()) < modulus else words[words < modulus]
        chunks.append(kept[:missing])
        missing -= chunks[-1].size
    return chunks[0] if len(chunks) == 1 else np.concatenate(chunks)


def mask_residues(residues: Residues, mask_keys: Mapping[bytes, bool], *, modulus: int, bits: int) -> Residues:
    """Add one site's masks to its residues.

    Args:
        residues: Shape (ciphertexts, N), below q.
        mask_keys: One-time key shared with each peer -> whether this site adds the mask (its name is the smaller) or
            subtracts it.
        modulus: q.
        bits: Bit length of q.

    Returns:
        Masked residues, same shape, below q.
    """
    rows, columns = residues.shape
    total = ResidueSum(modulus, bits, (rows, columns))
    total.add(residues)
    for key, is_added in mask_keys.items():
        mask = uniform_residues(key, count=residues.size, modulus=modulus, bits=bits)
        total.add(mask if is_added else mask.dtype.type(modulus) - mask)
    return total.reduce()
