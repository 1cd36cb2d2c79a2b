"""Choose the CKKS parameters of a sum, and say what they promise.

Aggregation only adds, so one prime is enough: no special prime, no relinearisation, no rotation keys. The prime has
whole bytes, so that SEAL's always-zero top bytes are never sent.

Trust: public on both sides; the provider needs q, never a key.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from protocol.errors import ParameterError

SEED_BYTES: Final = 64
"""The seed that stands for the uniform polynomial of a fresh symmetric ciphertext."""

NOISE_BOUND: Final = 21
"""Largest error coefficient of one fresh ciphertext: SEAL samples a centred binomial of 21 + 21 bits."""

NOISE_RMS_BOUND: Final = 6.5
"""Twice the standard deviation of that error, sqrt(10.5) = 3.24."""

MODULI: Final[dict[tuple[int, int], int]] = {
    (2048, 24): 16760833,
    (2048, 32): 4294955009,
    (2048, 40): 1099511590913,
    (4096, 24): 16760833,
    (4096, 32): 4294828033,
    (4096, 40): 1099511480321,
}
"""(ring degree, bits) -> the largest prime of that length that is 1 mod 2N, as SEAL's CoeffModulus.Create picks it."""

MODULUS_CEILING_BITS: Final[dict[int, dict[int, int]]] = {128: {2048: 53, 4096: 106, 8192: 214}}
"""Security level -> ring degree -> largest log2 q with ternary secrets.

Source: Bossuat et al., Security Guidelines for Implementing Homomorphic Encryption (2024), table 5.2. SEAL's own table
(54 and 109) is slightly looser.
"""

MIN_SITES: Final = 2
MAX_SITES: Final = 128
MIN_VALUE_BITS: Final = 8
MAX_VALUES: Final = 1 << 28


@dataclass(frozen=True, slots=True, kw_only=True)
class CkksParameters:
    """Checked parameters of one federation's sums.

    Attributes:
        ring_degree: N, coefficients (and therefore values) per ciphertext.
        modulus_bits: log2 of the single prime q; a multiple of 8.
        sites: Largest number of updates in one sum, which the guard bits are made for.
        security_bits: Classical security of the underlying ring-LWE problem.
    """

    ring_degree: int
    modulus_bits: int
    sites: int
    security_bits: int = 128

    def __post_init__(self) -> None:
        if (self.ring_degree, self.modulus_bits) not in MODULI:
            known = ", ".join(f"N={n} with {bits} bits" for n, bits in MODULI)
            raise ParameterError(
                f"no modulus for N={self.ring_degree} with {self.modulus_bits} bits; there are {known}"
            )
        ceiling = _ceiling_bits(self.ring_degree, self.security_bits)
        if self.modulus_bits > ceiling:
            raise ParameterError(
                f"security: log2 q = {self.modulus_bits} is above {ceiling}, the ceiling for N={self.ring_degree} "
                f"at {self.security_bits} bits"
            )
        if not MIN_SITES <= self.sites <= MAX_SITES:
            raise ParameterError(f"sites: {self.sites} is outside {MIN_SITES}..{MAX_SITES}")
        if self.value_bits < MIN_VALUE_BITS:
            raise ParameterError(
                f"precision: {self.sites} sites leave {self.value_bits} exact bits of a {self.modulus_bits}-bit modulus"
            )

    @property
    def modulus(self) -> int:
        """The prime q."""
        return MODULI[self.ring_degree, self.modulus_bits]

    @property
    def residue_bytes(self) -> int:
        """Bytes of one residue on the wire."""
        return self.modulus_bits // 8

    @property
    def guard_bits(self) -> int:
        """Bits between the noise and the grid: enough that rounding the sum of all sites is always exact."""
        return math.ceil(math.log2(2 * NOISE_BOUND * self.sites + 2))

    @property
    def scale(self) -> float:
        """CKKS scale: one grid step."""
        return float(1 << self.guard_bits)

    @property
    def site_limit(self) -> int:
        """Largest absolute grid integer that one site may encrypt; SEAL refuses coefficients above 2^(Q-2)."""
        return ((1 << (self.modulus_bits - 2)) - 1) >> self.guard_bits

    @property
    def sum_limit(self) -> int:
        """Largest absolute grid integer that a sum may reach without wrapping around q."""
        return (self.modulus // 2 - NOISE_BOUND * self.sites - 1) >> self.guard_bits

    @property
    def value_bits(self) -> int:
        """Exact signed bits per value, sign included."""
        return (self.site_limit + 1).bit_length()

    @property
    def clip_steps(self) -> int:
        """Clip range in grid steps.

        Each site's value is at most weight * clip_steps + 1/2 and the weights add up to at most 1 (plus rounding), so
        a sum over any number of sites stays below `sum_limit`.
        """
        return min(self.site_limit, self.sum_limit - self.sites) - 1

    @property
    def digit_bits(self) -> int:
        """log2 of the base in which exact integers are spread over coefficients.

        Balanced digits of this base, summed over all sites, stay below `sum_limit`.
        """
        return min(self.sum_limit // self.sites, self.site_limit).bit_length()

    def ciphertext_count(self, values: int) -> int:
        """Ciphertexts needed for `values` values."""
        return -(-values // self.ring_degree)

    def update_bytes(self, values: int) -> int:
        """Bytes of residues and seeds of one update; header, tag and signature add a few hundred."""
        return self.ciphertext_count(values) * (self.ring_degree * self.residue_bytes + SEED_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """What the advisor chose and what it predicts.

    Attributes:
        parameters: The chosen parameters.
        values: Number of values the advice was made for.
        up_bytes: Predicted residues and seeds of one update.
        up_bytes_per_value: The same per value.
        max_error_steps: Largest error of an encrypted sum against the exact sum of grid integers, in grid steps.
        noise_margin: Half a grid step over the largest possible noise; above 1, so rounding is exact.
        security_margin_bits: Distance of log2 q from the ceiling of the security level.
    """

    parameters: CkksParameters
    values: int
    up_bytes: int
    up_bytes_per_value: float
    max_error_steps: int
    noise_margin: float
    security_margin_bits: int


def advise(*, sites: int, value_bits: int, values: int, security_bits: int = 128) -> Advice:
    """Pick the smallest parameters for exact sums.

    Args:
        sites: Largest cohort, 2..128.
        value_bits: Wanted exact signed bits per value, sign included.
        values: Values in one update, 1..2^28.
        security_bits: Wanted classical security; 128 is what the 2024 table is carried for.

    Returns:
        The parameters with the fewest bytes on the wire, and what they promise.

    Raises:
        ParameterError: Nothing fits; names the limit that broke.
    """
    if not 1 <= values <= MAX_VALUES:
        raise ParameterError(f"values: {values} is outside 1..{MAX_VALUES}")
    if not MIN_SITES <= sites <= MAX_SITES:
        raise ParameterError(f"sites: {sites} is outside {MIN_SITES}..{MAX_SITES}")
    if security_bits not in MODULUS_CEILING_BITS:
        levels = ", ".join(map(str, MODULUS_CEILING_BITS))
        raise ParameterError(f"security: no ceilings are carried for {security_bits} bits, only for {levels}")
    candidates = []
    best_bits = 0
    for ring_degree, modulus_bits in MODULI:
        if modulus_bits > _ceiling_bits(ring_degree, security_bits):
            continue
        try:
            parameters = CkksParameters(
                ring_degree=ring_degree, modulus_bits=modulus_bits, sites=sites, security_bits=security_bits
            )
        except ParameterError:
            continue  # too few bits are left for this many sites
        best_bits = max(best_bits, parameters.value_bits)
        if parameters.value_bits >= value_bits:
            candidates.append(parameters)
    if not candidates:
        raise ParameterError(
            f"precision: {value_bits} exact bits for {sites} sites were asked for, the widest modulus gives {best_bits}"
        )
    parameters = min(candidates, key=lambda choice: (choice.update_bytes(values), choice.ring_degree))
    up_bytes = parameters.update_bytes(values)
    return Advice(
        parameters=parameters,
        values=values,
        up_bytes=up_bytes,
        up_bytes_per_value=up_bytes / values,
        max_error_steps=0,
        noise_margin=parameters.scale / 2 / (NOISE_BOUND * sites),
        security_margin_bits=_ceiling_bits(parameters.ring_degree, security_bits) - parameters.modulus_bits,
    )


def _ceiling_bits(ring_degree: int, security_bits: int) -> int:
    try:
        return MODULUS_CEILING_BITS[security_bits][ring_degree]
    except KeyError:
        raise ParameterError(
            f"security: the 2024 table has no ceiling for N={ring_degree} at {security_bits} bits"
        ) from None
