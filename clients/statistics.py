"""Standardise features with the mean and deviation of all sites' patients together.

Each site centres and scales its columns by the agreement's public constants, sums, and the encrypted sum of these sums
gives every site the same mean and deviation.

Trust: runs at a site and sees patients' records; what it returns is either summed under encryption or a statistic of
all sites together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from clients.table import Values
from protocol.errors import ValueRefusedError
from protocol.packing import FRACTION_BITS, Integers
from protocol.terms import DataTerms

STANDARD_RANGE: Final = 16.0
"""Centred and scaled values are clipped to this: a cell in a wrong unit must not outweigh everybody else's."""

_FRACTION: Final = float(1 << FRACTION_BITS)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Standardisation:
    """Mean and deviation of each feature over all training patients.

    Attributes:
        mean: float64 (d,), in the column's unit.
        deviation: float64 (d,), in the column's unit; > 0.
        records: Training patients of all sites together.
    """

    mean: Values = field(repr=False)
    deviation: Values = field(repr=False)
    records: int

    def apply(self, features: Values) -> npt.NDArray[np.float32]:
        """Return standardised features.

        Args:
            features: float64 (n, d), in the columns' units; NaN where missing.

        Returns:
            float32 (n, d) within +-STANDARD_RANGE; 0, the mean, where missing.
        """
        standard = np.clip((features - self.mean) / self.deviation, -STANDARD_RANGE, STANDARD_RANGE)
        return np.where(np.isnan(standard), 0.0, standard).astype(np.float32)


def statistics_sums(features: Values, terms: DataTerms) -> dict[str, Integers]:
    """Return one site's exact fields of a STATISTICS round.

    Args:
        features: float64 (n, d), in the columns' units; NaN where missing.
        terms: The public centre and scale of each column.

    Returns:
        int64 arrays: `records` (1,), and per feature `present` (d,), `sums` (d,) and `squares` (d,) of the centred and
        scaled values, in units of 2^-FRACTION_BITS.
    """
    centre, scale = _public_constants(terms)
    present = ~np.isnan(features)
    standard = np.where(present, np.clip((features - centre) / scale, -STANDARD_RANGE, STANDARD_RANGE), 0.0)
    # Each value is rounded before it is added: integer sums do not depend on the order of addition.
    return {
        "records": np.array([len(features)], dtype=np.int64),
        "present": present.sum(axis=0, dtype=np.int64),
        "sums": np.rint(standard * _FRACTION).astype(np.int64).sum(axis=0),
        "squares": np.rint(standard * standard * _FRACTION).astype(np.int64).sum(axis=0),
    }


def standardisation(content: Mapping[str, Integers], terms: DataTerms) -> Standardisation:
    """Turn the sum of all sites' fields into mean and deviation, identical bits at every site.

    A feature that nobody measured keeps its public centre and scale. So does the deviation of one whose spread is
    below what the fixed point resolves (about a thousandth of its public scale): the rest is rounding.

    Args:
        content: Summed fields of `statistics_sums`.
        terms: The public centre and scale of each column.

    Raises:
        ValueRefusedError: The sum holds no patients.
    """
    records = int(content["records"][0])
    if records <= 0:
        raise ValueRefusedError("field records: the sum of all sites' training patients is not positive")
    centre, scale = _public_constants(terms)
    measured = content["present"] > 0
    present = np.where(measured, content["present"], 1).astype(np.float64)
    mean = np.where(measured, content["sums"].astype(np.float64) / present / _FRACTION, 0.0)
    variance = content["squares"].astype(np.float64) / present / _FRACTION - mean * mean
    resolved = measured & (variance > (1.0 + 2.0 * np.abs(mean)) / _FRACTION)
    deviation = np.where(resolved, np.sqrt(np.where(resolved, variance, 1.0)), 1.0)
    return Standardisation(mean=centre + scale * mean, deviation=scale * deviation, records=records)


def _public_constants(terms: DataTerms) -> tuple[Values, Values]:
    centre = np.array([feature.centre for feature in terms.features], dtype=np.float64)
    scale = np.array([feature.scale for feature in terms.features], dtype=np.float64)
    return centre, scale
