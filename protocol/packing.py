"""Lay a model's tensors, its weight and its metric sums out as one vector of integers, and back.

A ciphertext carries N integers, one per polynomial coefficient. Two kinds of field share the vector: *grid* fields hold
real values as integer multiples of a step, one coefficient each; *exact* fields hold integers (counts, fixed-point
sums) that may be wider than a coefficient, as balanced digits over several.

Trust: public arithmetic; sites call it on plaintext, the provider only reads a plan's sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from protocol.errors import ValueRefusedError
from protocol.parameters import CkksParameters
from protocol.terms import Terms

Integers: TypeAlias = npt.NDArray[np.int64]
Values: TypeAlias = npt.NDArray[np.float64]

EXACT_BITS: Final = 54
"""Signed bits of one site's integer in an exact field; sums over 128 sites still fit 64-bit integers."""

FRACTION_BITS: Final = 20
"""Fixed-point bits below the binary point for real sums in exact fields."""

HISTOGRAM_BINS: Final = 16
_WEIGHT: Final = "weight"

METRIC_FIELDS: Final[dict[str, int]] = {
    "records": 1,
    "loss": 1,
    "brier": 1,
    "confusion": 4,
    "positive_scores": HISTOGRAM_BINS,
    "negative_scores": HISTOGRAM_BINS,
    "training_records": 1,
    "training_loss": 1,
}
"""Metric sums, as exact fields: name -> integers. Real sums are in units of 2^-FRACTION_BITS."""


class RoundKind(IntEnum):
    """What a round sums."""

    STATISTICS = 0
    TRAIN = 1
    EVALUATE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """A named run of integers in the vector.

    Attributes:
        name: Unique in its plan.
        size: Number of integers.
        digits: Coefficients per integer; 1 for grid fields.
    """

    name: str
    size: int
    digits: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PackingPlan:
    """Which integer goes to which coefficient.

    Attributes:
        kind: The kind of round the plan is for.
        parameters: CKKS parameters, which fix row length and ranges.
        fields: Fields in order.
    """

    kind: RoundKind
    parameters: CkksParameters
    fields: tuple[Field, ...]

    @property
    def values(self) -> int:
        """Coefficients in use."""
        return sum(field.size * field.digits for field in self.fields)

    @property
    def ciphertexts(self) -> int:
        """Ciphertexts in one update."""
        return self.parameters.ciphertext_count(self.values)

    @property
    def shape(self) -> tuple[int, int]:
        """(ciphertexts, N): the shape of a packed vector."""
        return self.ciphertexts, self.parameters.ring_degree

    def pack(self, content: Mapping[str, Integers]) -> Integers:
        """Lay out one site's integers.

        Args:
            content: For each field its integers, shape (size,).

        Returns:
            int64 array of `shape`; unused coefficients are 0.

        Raises:
            ValueRefusedError: A field is missing, has another size, or exceeds its range.
        """
        packed = np.zeros(self.shape[0] * self.shape[1], dtype=np.int64)
        offset = 0
        for field in self.fields:
            integers = content.get(field.name)
            if integers is None or integers.shape != (field.size,):
                raise ValueRefusedError(f"field {field.name}: expected {field.size} integers")
            width = field.size * field.digits
            packed[offset : offset + width] = self._spread(field, integers)
            offset += width
        return packed.reshape(self.shape)

    def unpack(self, packed: Integers) -> dict[str, Integers]:
        """Invert `pack`, also on a sum of packed vectors.

        Args:
            packed: int64 array of `shape`.

        Returns:
            For each field its integers, shape (size,).
        """
        flat = packed.reshape(-1)
        content = {}
        offset = 0
        for field in self.fields:
            width = field.size * field.digits
            digits = flat[offset : offset + width].reshape(field.digits, field.size)
            offset += width
            total = digits[-1].copy()
            for digit in digits[-2::-1]:
                total = (total << self.parameters.digit_bits) + digit
            content[field.name] = total
        return content

    def model_only(self, packed: Integers) -> Integers:
        """Return a packed vector with everything set to 0 that does not change the model: weight, counts, metrics.

        Such numbers say the same in every round, so the difference of two sums over different cohorts would be one
        site's own. A round whose cohort is not the statistics sum's goes without them.
        """
        names = [field.name for field in self.fields]
        kept = names.index(_WEIGHT) if _WEIGHT in names else 0
        flat = packed.reshape(-1).copy()
        flat[sum(field.size * field.digits for field in self.fields[:kept]) :] = 0
        return flat.reshape(self.shape)

    def _spread(self, field: Field, integers: Integers) -> Integers:
        if field.digits == 1:
            if _largest(integers) > self.parameters.site_limit:
                raise ValueRefusedError(f"field {field.name}: an integer exceeds the grid")
            return integers
        if _largest(integers) >= 1 << (EXACT_BITS - 1):
            raise ValueRefusedError(f"field {field.name}: an integer exceeds {EXACT_BITS} bits")
        bits = self.parameters.digit_bits
        half = 1 << (bits - 1)
        digits = np.empty((field.digits, field.size), dtype=np.int64)
        rest = integers.copy()
        for position in range(field.digits):
            digits[position] = ((rest + half) & ((1 << bits) - 1)) - half
            rest = (rest - digits[position]) >> bits
        return digits.reshape(-1)


def _largest(integers: Integers) -> int:
    # in Python's integers, because the absolute value of the smallest int64 is no int64
    return max(int(integers.max(initial=0)), -int(integers.min(initial=0)))


def exact_field(name: str, size: int, parameters: CkksParameters) -> Field:
    """Return a field that holds integers of EXACT_BITS, however narrow a coefficient is."""
    return Field(name=name, size=size, digits=EXACT_BITS // parameters.digit_bits + 1)


def packing_plan(kind: RoundKind, terms: Terms, parameters: CkksParameters) -> PackingPlan:
    """Return the plan that the agreement's terms fix for a kind of round."""
    fields: list[Field] = []
    if kind is RoundKind.STATISTICS:
        width = len(terms.data.inputs)
        fields = [exact_field("records", 1, parameters)]
        fields += [exact_field(name, width, parameters) for name in ("present", "sums", "squares")]
    if kind is RoundKind.TRAIN:
        shapes = terms.model.shared_shapes(len(terms.data.inputs))
        fields = [Field(name=name, size=int(np.prod(shape))) for name, shape in shapes.items()]
        fields += [Field(name=_WEIGHT, size=1), Field(name="clipped", size=1)]
    if kind is not RoundKind.STATISTICS:
        fields += [exact_field(name, size, parameters) for name, size in METRIC_FIELDS.items()]
    return PackingPlan(kind=kind, parameters=parameters, fields=tuple(fields))


def quantise(values: Values, *, step: float, clip_steps: int, weight: float, name: str) -> tuple[Integers, int]:
    """Place weighted values on the integer grid.

    Args:
        values: Real values, any shape.
        step: Grid step, a power of two.
        clip_steps: Clip range in steps; larger values are clipped to it.
        weight: The site's share, 0..1, multiplied in after clipping.
        name: The tensor's name, for the error.

    Returns:
        Integers of the same shape, at most weight * clip_steps + 1/2 in size, and how many values were clipped.

    Raises:
        ValueRefusedError: A value is NaN or infinite.
    """
    scaled = values / step
    if not np.isfinite(scaled).all():
        raise ValueRefusedError(f"tensor {name}: NaN or infinite value")
    clipped = int(np.count_nonzero(np.abs(scaled) > clip_steps))
    np.clip(scaled, -clip_steps, clip_steps, out=scaled)
    return np.rint(scaled * weight).astype(np.int64), clipped
