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

from clients.data.small_numbers import is_small
from clients.data.table import STANDARD_RANGE, Values
from protocol.data_terms import DataTerms
from protocol.errors import ValueRefusedError
from protocol.packing import FRACTION_BITS, Integers

_FRACTION: Final = float(1 << FRACTION_BITS)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Standardisation:
    """Mean and deviation of each feature over all training patients.

    Attributes:
        mean: float64 (d,), in the column's unit.
        deviation: float64 (d,), in the column's unit; > 0. Infinite for a feature that is not used, because too few
            patients have it: it is 0 for everybody.
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
        with np.errstate(over="ignore"):  # what overflows is clipped
            standard = np.clip((features - self.mean) / self.deviation, -STANDARD_RANGE, STANDARD_RANGE)
        return np.where(np.isnan(standard), 0.0, standard).astype(np.float32)


def statistics_sums(features: Values, terms: DataTerms, *, smallest_cell: int) -> dict[str, Integers]:
    """Return one site's exact fields of a STATISTICS round.

    Args:
        features: float64 (n, d), in the columns' units; NaN where missing.
        terms: The public centre and scale of each column.
        smallest_cell: Fewest patients who have a feature, lack it, are in a category or are not in it; where there are
            fewer, they count with the others.

    Returns:
        int64 arrays: `records` (1,), and per feature `present` (d,), `sums` (d,) and `squares` (d,) of the centred and
        scaled values, in units of 2^-FRACTION_BITS.
    """
    centre, scale = _public_constants(terms)
    present = ~np.isnan(features)
    with np.errstate(over="ignore"):  # what overflows is clipped
        standard = np.where(present, np.clip((features - centre) / scale, -STANDARD_RANGE, STANDARD_RANGE), 0.0)
    # Each value is rounded before it is added: integer sums do not depend on the order of addition.
    content = {
        "records": np.array([len(features)], dtype=np.int64),
        "present": present.sum(axis=0, dtype=np.int64),
        "sums": np.rint(standard * _FRACTION).astype(np.int64).sum(axis=0),
        "squares": np.rint(standard * standard * _FRACTION).astype(np.int64).sum(axis=0),
    }
    return _without_small_cells(content, np.array([bool(given.category) for given in terms.inputs]), smallest_cell)


def standardisation(content: Mapping[str, Integers], terms: DataTerms) -> Standardisation:
    """Turn the sum of all sites' fields into mean and deviation, identical bits at every site.

    A feature that fewer than `terms.smallest_count` patients have in all is not used, nor is a category that fewer are
    in or not in: what is learnt from so few says something about each. The deviation of a feature whose spread is below
    what the fixed point resolves (about a thousandth of its public scale) is its public scale: the rest is rounding.

    Args:
        content: Summed fields of `statistics_sums`.
        terms: The public centre and scale of each column, and the smallest count.

    Raises:
        ValueRefusedError: The sum holds fewer patients than `terms.smallest_count`.
    """
    records = int(content["records"][0])
    if records < terms.smallest_count:
        raise ValueRefusedError(
            f"field records: all sites together have fewer than data.smallest_count = {terms.smallest_count} training "
            "patients"
        )
    centre, scale = _public_constants(terms)
    is_used = content["present"] >= terms.smallest_count
    # of a category both who is in it and who is not
    ones = content["sums"] // (1 << FRACTION_BITS)
    is_rare = (ones < terms.smallest_count) | (content["present"] - ones < terms.smallest_count)
    is_used &= ~(is_rare & np.array([bool(given.category) for given in terms.inputs]))
    present = np.where(is_used, content["present"], 1).astype(np.float64)
    mean = np.where(is_used, content["sums"].astype(np.float64) / present / _FRACTION, 0.0)
    variance = content["squares"].astype(np.float64) / present / _FRACTION - mean * mean
    is_resolved = is_used & (variance > (1.0 + 2.0 * np.abs(mean)) / _FRACTION)
    deviation = np.where(is_resolved, np.sqrt(np.where(is_resolved, variance, 1.0)), np.where(is_used, 1.0, np.inf))
    return Standardisation(mean=centre + scale * mean, deviation=scale * deviation, records=records)


def _without_small_cells(
    content: Mapping[str, Integers], is_category: npt.NDArray[np.bool_], smallest: int
) -> dict[str, Integers]:
    is_known = ~is_small(content["present"], smallest)
    present, sums, squares = (np.where(is_known, content[name], 0) for name in ("present", "sums", "squares"))
    # who lacks a feature counts as present with the site's mean; in a category or not, as most are: counts stay whole
    missing = content["records"] - present
    added = np.where((present > 0) & is_small(missing, smallest), missing, 0)
    unit = np.where(is_category, _FRACTION, 1.0)
    mean = np.rint(sums / np.maximum(present, 1) / unit) * unit
    present += added
    sums += added * mean.astype(np.int64)
    squares += added * np.rint(mean * mean / _FRACTION).astype(np.int64)
    ones = sums >> FRACTION_BITS
    ones = np.where(is_small(ones, smallest), 0, np.where(is_small(present - ones, smallest), present, ones))
    return {
        "records": content["records"],
        "present": present,
        "sums": np.where(is_category, ones << FRACTION_BITS, sums),
        "squares": np.where(is_category, ones << FRACTION_BITS, squares),
    }


def _public_constants(terms: DataTerms) -> tuple[Values, Values]:
    centre = np.array([given.centre for given in terms.inputs], dtype=np.float64)
    scale = np.array([given.scale for given in terms.inputs], dtype=np.float64)
    return centre, scale
