"""Make an answer say the scores and nothing else: re-randomise, flood, blind.

An untreated answer gives its reader the model: its second polynomial is the weighted sum of the ones that the reader
chose, and what lies between the scores are sums that nobody asked for. So:

- *re-randomise*: fresh encryptions of zero under the reader's public key are added, one for each polynomial but the
  last, so that all but the first polynomial are as good as uniform;
- *flood*: each coefficient gets a uniform integer of `flood_bits`, under which the noise of these encryptions vanishes:
  two answers with the same scores are within 2^-STATISTICAL_BITS of each other;
- *blind*: what lies beside the scores gets uniform integers over the whole modulus: other coefficients of a linear
  model's answer, imaginary parts of a quadratic one's.

"The scores" are those of the records as they were encrypted, to the precision of the parameters. The second polynomial
of a public key comes from a seed, so that no reader can choose one under which encryptions of zero hide nothing. The
first one is the reader's word. A malformed one shows the randomness of an encryption where scores are: above the
flooding each score has log2 q - flood_bits = 28 bits, and the randomness has N log2(3). So about 240 patients in one
query tell all of it and, through the second polynomial, all weights of a linear model, however many inputs it has. That
is not defended; the scores themselves tell a model of fewer inputs sooner.

Source: flooding as in Gentry, A Fully Homomorphic Encryption Scheme (2009), section 8.4.

Trust: runs at the provider. The random integers must stay there.
"""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from protocol.prediction.backend import PredictionBackend, prediction_backend
from protocol.prediction.description import ModelDescription
from protocol.prediction.messages import PublicKey
from protocol.prediction.parameters import STATISTICAL_BITS, PredictionParameters

if TYPE_CHECKING:
    from protocol.prediction.backend import Ciphertext

Limbs = npt.NDArray[np.int64]
"""Wide integers, one for each coefficient, as digits: shape (digits, N), the highest first."""

_DIGIT_BITS: Final = 15  # a residue of 48 bits times 2^15 still fits 64
_DIGIT: Final = 1 << _DIGIT_BITS


def treat(scores: Ciphertext, description: ModelDescription, key: PublicKey, *, patients: int) -> Ciphertext:
    """Return a ciphertext of the same scores that says nothing else.

    Args:
        scores: As evaluated, before primes are dropped for the answer.
        description: Of the model.
        key: The reader's.
        patients: Whose scores they are.
    """
    parameters = description.parameter_set
    backend = prediction_backend(parameters)
    primes = len(parameters.sum_primes)
    polynomials = backend.save(scores, polynomials=description.answer_polynomials, primes=primes)
    rerandomised = rerandomise(polynomials, backend, key)
    rerandomised[0] += wide_residues(noise(parameters, patients), backend, primes)
    return backend.load(rerandomised % _column(parameters.sum_primes))


def rerandomise(
    polynomials: npt.NDArray[np.uint64], backend: PredictionBackend, key: PublicKey
) -> npt.NDArray[np.uint64]:
    """Add encryptions of zero, each shifted by one polynomial, which multiplies it by the secret key.

    Args:
        polynomials: Shape (polynomials, primes, N).
        backend: SEAL.
        key: The reader's.

    Returns:
        The same shape, not reduced.
    """
    size, primes, _ = polynomials.shape
    total = polynomials.copy()
    for shift, zero in enumerate(backend.encryptions_of_zero(key, count=size - 1, primes=primes)):
        total[shift : shift + 2] += zero
    return total


def noise(parameters: PredictionParameters, patients: int) -> Limbs:
    """Draw what is added to an answer's coefficients: flooding where scores are, blinding beside them."""
    degree = parameters.ring_degree
    flooding = uniform_integers(parameters.flood_bits, degree)
    modulus_bits = math.prod(parameters.sum_primes).bit_length()
    blinding = uniform_integers(modulus_bits + STATISTICAL_BITS + degree.bit_length(), degree)
    if parameters.is_linear:
        blinding[:, :patients] = 0
        flooding[:, patients:] = 0
    else:
        # polynomials with b_i = b_(N-i) and b_0 = 0 are imaginary at every slot
        blinding[:, 0] = 0
        blinding[:, degree // 2 + 1 :] = blinding[:, degree // 2 - 1 : 0 : -1]
    blinding[len(blinding) - len(flooding) :] += flooding
    return blinding


def uniform_integers(bits: int, count: int) -> Limbs:
    """Draw integers uniformly from -2^(bits-1) to 2^(bits-1) - 1, with the operating system's generator.

    Args:
        bits: Of each.
        count: How many.
    """
    digits = -(-bits // _DIGIT_BITS)
    words = np.frombuffer(os.urandom(2 * digits * count), dtype="<u2").reshape(digits, count)
    limbs = (words % _DIGIT).astype(np.int64)
    top = bits - (digits - 1) * _DIGIT_BITS
    limbs[0] = limbs[0] % (1 << top) - (1 << (top - 1))
    return limbs


def wide_residues(limbs: Limbs, backend: PredictionBackend, primes: int) -> npt.NDArray[np.uint64]:
    """Return the residues of wide integers, exactly, in the form in which ciphertexts have them.

    Args:
        limbs: Digits, each small enough for SEAL to encode it exactly.
        backend: SEAL.
        primes: Of the level.

    Returns:
        Shape (primes, N).
    """
    moduli = _column(backend.parameters.primes[:primes])
    total = np.zeros((primes, backend.parameters.ring_degree), dtype=np.uint64)
    for limb in limbs:
        digit = backend.residues(backend.encode(limb.astype(np.float64), primes), primes)
        total = ((total << np.uint64(_DIGIT_BITS)) + digit) % moduli
    return total


def _column(primes: tuple[int, ...]) -> npt.NDArray[np.uint64]:
    return np.array(primes, dtype=np.uint64)[:, np.newaxis]
