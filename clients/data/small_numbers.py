"""Keep counts of few patients out of sums, and tables of few patients out of runs.

Trust: runs at a site and sees patients' records; what it refuses, it names without a count.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from clients.data.table import Table
from protocol.errors import DataError
from protocol.packing import Integers
from protocol.privacy_terms import PrivacyTerms


def is_small(counts: Integers, smallest: int) -> npt.NDArray[np.bool_]:
    """Return where a count is of few patients: 1..smallest-1. No patient at all is no small number."""
    return (counts > 0) & (counts < smallest)


def without_small_cells(counts: Integers, smallest: int) -> Integers:
    """Return the counts with 0 in place of each that is of few patients."""
    return np.where(is_small(counts, smallest), 0, counts)


def check_floors(table: Table, terms: PrivacyTerms, name: str) -> None:
    """Refuse a table whose patients are so few that what a sum says of them is about each.

    Args:
        table: All of a site's patients.
        terms: The agreed floors.
        name: The table's name, for the error.

    Raises:
        DataError: Names the floor; neither how many patients there are, nor which outcome is rare.
    """
    if table.records < terms.smallest_records:
        raise DataError(f"{name}: fewer than privacy.smallest_records = {terms.smallest_records} patients")
    if is_small(np.bincount(table.labels, minlength=2), terms.smallest_events).any():
        raise DataError(f"{name}: fewer than privacy.smallest_events = {terms.smallest_events} patients of one outcome")
