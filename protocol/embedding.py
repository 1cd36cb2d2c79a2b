"""Put integers on polynomial coefficients through CKKS's canonical embedding, and read them back.

CKKS encodes N/2 complex slots: the values of the polynomial at half of the primitive 2N-th roots of unity. Its noise is
small on coefficients and sqrt(N/2) times larger on slots, so the integers go on the coefficients: evaluate their
polynomial at the roots here, hand the slots to SEAL's encoder, and it finds exactly those coefficients again.

Source: Cheon, Kim, Kim, Song, Homomorphic Encryption for Arithmetic of Approximate Numbers (2017), section 2.2. Folding
X^(N/2) to i gives all values from one transform of half the length.

Trust: runs where the plaintext is: records at the hospital, random masks at the service.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy import fft

Slots = npt.NDArray[np.complex128]


class CanonicalEmbedding:
    """The embedding for one ring degree.

    Args:
        ring_degree: N, a power of two.
    """

    def __init__(self, ring_degree: int) -> None:
        half = ring_degree // 2
        # exp of the whole exponent; powers of one root would lose three digits
        self._twist = np.exp(1j * np.pi * np.arange(half) / ring_degree)
        exponents = [pow(3, slot, 2 * ring_degree) for slot in range(half)]
        # the transform gives the roots zeta^(4k+1); a slot at 4k+3 is the conjugate of the one at -(4k+3)
        self._is_conjugate = np.array([exponent % 4 == 3 for exponent in exponents])  # noqa: PLR2004 - see above
        self._position = np.array(
            [(exponent if exponent % 4 == 1 else 2 * ring_degree - exponent) // 4 for exponent in exponents]
        )
        self._half = half

    def slots(self, coefficients: npt.NDArray[np.int64] | npt.NDArray[np.float64]) -> Slots:
        """Evaluate polynomials at SEAL's slot roots.

        Args:
            coefficients: Shape (ciphertexts, N).

        Returns:
            Shape (ciphertexts, N/2), in SEAL's slot order.
        """
        folded = coefficients[:, : self._half] + 1j * coefficients[:, self._half :]
        folded *= self._twist
        roots = fft.ifft(folded, axis=1, norm="forward", overwrite_x=True)
        slots: Slots = roots[:, self._position]
        np.conjugate(slots, out=slots, where=self._is_conjugate)
        return slots

    def coefficients(self, slots: Slots) -> npt.NDArray[np.float64]:
        """Invert `slots`.

        Returns:
            Shape (ciphertexts, N), real.
        """
        roots = np.empty_like(slots)
        roots[:, self._position] = np.where(self._is_conjugate, slots.conj(), slots)
        folded = fft.fft(roots, axis=1, norm="forward", overwrite_x=True)
        folded *= self._twist.conj()
        return np.concatenate([folded.real, folded.imag], axis=1)


@lru_cache(maxsize=4)
def canonical_embedding(ring_degree: int) -> CanonicalEmbedding:
    """Return the embedding of a ring degree; its tables are made once."""
    return CanonicalEmbedding(ring_degree)
