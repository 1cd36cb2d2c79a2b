"""Expand seeds into the second polynomials that they stand for, and add these up.

A fresh ciphertext's second polynomial is uniform and public: SEAL expands it from a 64-byte seed. Who adds up many of
them needs SEAL, but no key. SEAL gets zeros and the seed, nothing else of what came.

Trust: both sides run it; the provider in cohorts whose sums go down expanded.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import numpy as np

from protocol.backend import backend
from protocol.errors import BackendError, LengthError
from protocol.parameters import SEED_BYTES, CkksParameters
from protocol.residues import Residues, pack_residues, residue_type
from protocol.scratch_file import ScratchFile
from protocol.seal_format import split_expanded

if TYPE_CHECKING:
    import tenseal.sealapi as seal

KNOWN_SEED: Final = bytes(range(SEED_BYTES))

KNOWN_EXPANSIONS: Final[dict[tuple[int, int], str]] = {
    (2048, 24): "bbedd950865dc2a5a2828f349800cf1f725177b298fe3238ba818d0886fa6169",
    (2048, 32): "200c08af43ec3956d1de2b0f52d7c15ee673a5416fb035f63ae12d85c723c39e",
    (2048, 40): "27a1903684b7bf5c9f6f006acb4b3d65add82c0110397ba4a87b293a596bf1ac",
    (4096, 24): "cfbd1e02d840a4d8999f6d3b43b2e4d82b1f5c5b5f1a79c481eebdfd2e26d3ad",
    (4096, 32): "afce9a1a6111b67cc5d527b370abfaea5c1f959ebd0113b1fcae831de064d676",
    (4096, 40): "340b0686b58d2c2d829c8e1b585a217164aebac8801bda7d96705ea27ee83113",
}
"""(ring degree, bits) -> SHA-256 of what `KNOWN_SEED` expands to, residues packed as on the wire."""


class ExpansionSum:
    """The running sum of second polynomials; memory is one ciphertext of SEAL's per row, however many are added.

    Args:
        parameters: CKKS parameters.
        ciphertexts: Rows.

    Raises:
        BackendError: The installed SEAL expands seeds in another way than sites with the pinned version do.
    """

    def __init__(self, parameters: CkksParameters, ciphertexts: int) -> None:
        check_expansion(parameters)
        self._parameters = parameters
        self._ciphertexts = ciphertexts
        self._totals: list[seal.Ciphertext] = []

    def add(self, seeds: bytes) -> None:
        """Expand one update's seeds and add them.

        Args:
            seeds: ciphertexts * 64 bytes.

        Raises:
            LengthError: There are more or fewer.
        """
        if len(seeds) != self._ciphertexts * SEED_BYTES:
            raise LengthError("seed bytes", expected=self._ciphertexts * SEED_BYTES, got=len(seeds))
        public = backend(self._parameters)
        with ScratchFile() as scratch:
            expanded = (
                public.load_uniform(seeds[start : start + SEED_BYTES], scratch)
                for start in range(0, len(seeds), SEED_BYTES)
            )
            if not self._totals:
                self._totals = list(expanded)
                return
            for total, addend in zip(self._totals, expanded, strict=True):
                public.evaluator.add_inplace(total, addend)

    def residues(self) -> Residues:
        """Return the sum of what was added so far, shape (ciphertexts, N), below q."""
        parameters = self._parameters
        total = np.zeros((self._ciphertexts, parameters.ring_degree), dtype=residue_type(parameters.modulus_bits))
        with ScratchFile() as scratch:
            for row, ciphertext in enumerate(self._totals):
                ciphertext.save(scratch.path)
                total[row] = split_expanded(scratch.read(), parameters.ring_degree)[1]
        return total


def expand_seeds(seeds: bytes, parameters: CkksParameters) -> Residues:
    """Return the second polynomials that one update's seeds stand for, shape (ciphertexts, N), below q."""
    total = ExpansionSum(parameters, len(seeds) // SEED_BYTES)
    total.add(seeds)
    return total.residues()


@lru_cache(maxsize=8)
def check_expansion(parameters: CkksParameters) -> None:
    """Compare with a known answer how the installed SEAL expands seeds; once per process and parameter set.

    Raises:
        BackendError: It differs; sums would not decrypt.
    """
    try:
        with ScratchFile() as scratch:
            backend(parameters).load_uniform(KNOWN_SEED, scratch).save(scratch.path)
            expanded = split_expanded(scratch.read(), parameters.ring_degree)[1]
    except (RuntimeError, ValueError) as error:  # what SEAL raises
        raise BackendError(f"SEAL lays ciphertexts out in another way ({error})") from None
    packed = pack_residues(expanded, parameters.residue_bytes)
    if hashlib.sha256(packed).hexdigest() != KNOWN_EXPANSIONS[parameters.ring_degree, parameters.modulus_bits]:
        raise BackendError("SEAL expands seeds in another way; install tenseal==0.3.18")
