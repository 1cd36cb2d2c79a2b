"""Random choices that anybody can repeat: the hold-out split, the batch order, the deal of a public data set.

Trust: runs at a site and holds nothing secret. Every draw follows from the agreement's public seed, so these
generators must never make a key, a mask or noise.
"""

from __future__ import annotations

import hashlib

import numpy as np


def public_generator(purpose: str, *, seed: int, site: str = "", round_number: int = 0) -> np.random.Generator:
    """Return the generator for one purpose, the same on every machine.

    Args:
        purpose: What the draws are for, a word of the code; generators of two purposes are independent.
        seed: The agreement's public seed.
        site: The site that draws, empty if all draw the same.
        round_number: The round, 0 outside rounds.
    """
    digest = hashlib.sha256(f"{purpose}\n{seed}\n{round_number}\n{site}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big")))
