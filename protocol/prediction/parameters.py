"""CKKS parameters of predictions: ring, primes, scales, and what they promise.

All arithmetic is on integers: records are multiplied by 2^record_bits, weights by 2^weight_bits, and `unit` is what one
stands for in an answer. No relinearisation and no rotation keys exist: an answer has as many polynomials as its model's
degree needs, and its reader decrypts that.

- linear: patients lie on coefficients. One plaintext polynomial multiplies several features at once, and the primes
  are one multiplication deep.
- quadratic: patients lie on slots, because squares are slot by slot. One prime is dropped after the hidden layer.

Trust: public on both sides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from protocol.checks import check_choice
from protocol.errors import MalformedError, ParameterError
from protocol.parameters import MODULUS_CEILING_BITS

STATISTICAL_BITS: Final = 40
"""An answer is within 2^-40, as a statistical distance, of one that is made of the scores alone."""

RECORD_RANGE: Final = 16.0
"""Largest standardised value of a record; larger ones are clipped to it, as they are in training."""

_TAIL: Final = 9.0  # standard deviations that noise exceeds with a probability below 2^-57
_SECURITY_BITS: Final = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionParameters:
    """One choice of parameters.

    Attributes:
        name: What descriptions and messages call it.
        number: What messages call it in one byte.
        ring_degree: N.
        primes: Of a record's modulus, the longest first; the last are dropped first.
        special_prime: Of the public key alone; encryption divides its noise by it.
        record_bits: log2 of what 1 in a record is multiplied by.
        weight_bits: log2 of what a weight of the first layer is multiplied by.
        output_bits: log2 of what a weight of the second layer is multiplied by; 0 if there is none.
        inner_primes: Dropped after the first of two layers.
        answer_primes: What an answer keeps.
        patients: Most in one query.
        tolerance: Largest error of a logit.
    """

    name: str
    number: int
    ring_degree: int
    primes: tuple[int, ...]
    special_prime: int
    record_bits: int
    weight_bits: int
    output_bits: int
    inner_primes: int
    answer_primes: int
    patients: int
    tolerance: float

    def __post_init__(self) -> None:
        bits = math.log2(math.prod(self.primes) * self.special_prime)
        if bits > MODULUS_CEILING_BITS[_SECURITY_BITS][self.ring_degree]:
            raise ParameterError(f"security: log2 q = {bits:.0f} is above the ceiling for N={self.ring_degree}")

    @property
    def is_linear(self) -> bool:
        """Whether patients lie on coefficients."""
        return self.output_bits == 0

    def charged(self, patients: int) -> int:
        """Return how many patients a query counts as that says it has so many.

        What a linear query has beside them is blinded; a quadratic one may hold another patient in every slot.
        """
        return patients if self.is_linear else self.patients

    @property
    def key_primes(self) -> tuple[int, ...]:
        """The primes of keys."""
        return (*self.primes, self.special_prime)

    @property
    def sum_primes(self) -> tuple[int, ...]:
        """The primes of a score before the answer is made of it."""
        return self.primes[: len(self.primes) - self.inner_primes]

    @property
    def hidden_unit(self) -> float:
        """What one stands for after the first layer."""
        dropped = math.prod(self.primes[len(self.primes) - self.inner_primes :])
        return math.ldexp(1.0, self.record_bits + self.weight_bits) / dropped

    @property
    def sum_unit(self) -> float:
        """What one stands for in a score before the answer is made of it."""
        return self.hidden_unit if self.is_linear else math.ldexp(self.hidden_unit**2, self.output_bits)

    @property
    def unit(self) -> float:
        """What one stands for in an answer."""
        return self.sum_unit / math.prod(self.sum_primes[self.answer_primes :])

    @property
    def largest_logit(self) -> float:
        """Size of the scores that fit without wrapping around the modulus; an eighth is left for noise."""
        return math.prod(self.sum_primes) / self.sum_unit / 2 * 7 / 8

    @property
    def largest_hidden(self) -> float:
        """Size of what fits after the first layer, before a prime is dropped."""
        return math.ldexp(math.prod(self.primes) / 2, -self.record_bits - self.weight_bits) * 7 / 8

    @property
    def noise_bound(self) -> float:
        """Largest coefficient of what re-randomising adds, but for a probability below 2^-57 each.

        Encryptions of zero under a public key have the rounding noise of dropping the special prime, of which the
        second polynomial's part is multiplied by the ternary secret. For answers of three polynomials one of them is
        multiplied by the secret once more.
        """
        secret = 2 * self.ring_degree / 3
        rounding = math.sqrt((1 + secret) / 12)
        return _TAIL * (rounding if self.is_linear else rounding * math.sqrt(1 + secret))

    @property
    def flood_bits(self) -> int:
        """Bits of the uniform integer that is added to each coefficient of an answer.

        The distance of two such uniform distributions, one of them shifted by the noise, is noise / 2^bits for each of
        N coefficients.
        """
        return math.ceil(STATISTICAL_BITS + math.log2(self.ring_degree) + math.log2(self.noise_bound))


LINEAR: Final = PredictionParameters(
    name="linear-4096",
    number=1,
    ring_degree=4096,
    primes=(281474976694273, 1099511480321),  # 48 and 40 bits
    special_prime=188417,
    record_bits=40,
    weight_bits=34,
    output_bits=0,
    inner_primes=0,
    answer_primes=1,
    patients=4096,
    tolerance=1e-4,
)

QUADRATIC: Final = PredictionParameters(
    name="quadratic-8192",
    number=2,
    ring_degree=8192,
    primes=(281474976317441, 281474976546817, 281474976694273, 1099511480321),  # 48, 48, 48 and 40 bits
    special_prime=16760833,
    record_bits=38,
    weight_bits=42,
    output_bits=42,
    inner_primes=1,
    answer_primes=2,
    patients=4096,
    tolerance=1e-3,
)

PARAMETER_SETS: Final = (LINEAR, QUADRATIC)


def parameters_named(name: str) -> PredictionParameters:
    """Return the parameters of that name.

    Raises:
        ConfigurationError: There are none.
    """
    check_choice("parameters", name, tuple(parameters.name for parameters in PARAMETER_SETS))
    (found,) = (parameters for parameters in PARAMETER_SETS if parameters.name == name)
    return found


def parameters_numbered(number: int) -> PredictionParameters:
    """Return the parameters that a message names.

    Raises:
        MalformedError: There are none.
    """
    for parameters in PARAMETER_SETS:
        if parameters.number == number:
            return parameters
    raise MalformedError("parameter set", expected="one of those there are", got=number)
