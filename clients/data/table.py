"""A site's patients as the model is given them, and holding some out for testing.

Trust: runs at a site and sees patients' records. `repr` shows sizes only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from clients.data.generator import public_generator
from protocol.errors import DataError

Values: TypeAlias = npt.NDArray[np.float64]
Labels: TypeAlias = npt.NDArray[np.int8]

STANDARD_RANGE: Final = 16.0
"""Centred and scaled values are clipped to this: a cell in a wrong unit must not outweigh everybody else's."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Table:
    """Patients in rows.

    Attributes:
        features: float64 (n, d), one column per input of the agreed schema, in the columns' units; NaN where missing.
        labels: int8 (n,), 0 or 1.
    """

    features: Values
    labels: Labels

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or self.labels.shape != self.features.shape[:1]:  # noqa: PLR2004  rows and columns
            raise DataError(f"table: features of shape {self.features.shape}, labels of shape {self.labels.shape}")

    def __repr__(self) -> str:
        return f"Table({self.records} records, {self.features.shape[1]} features)"

    @property
    def records(self) -> int:
        """Number of patients, n."""
        return len(self.labels)

    @property
    def repeated(self) -> int:
        """Number of rows that equal an earlier one in every input and in the label."""
        rows = np.column_stack([np.nan_to_num(self.features, nan=np.inf), self.labels])
        return self.records - len(np.unique(rows, axis=0))

    def rows(self, chosen: npt.NDArray[np.int64]) -> Table:
        """Return the table of the chosen rows, given by their positions, in that order."""
        return Table(features=self.features[chosen], labels=self.labels[chosen])


def fold_of_rows(labels: Labels, *, folds: int, seed: int, site: str) -> npt.NDArray[np.int64]:
    """Deal rows into folds, as evenly as each label allows.

    Args:
        labels: int8 (n,).
        folds: Number of folds.
        seed: The agreement's public seed.
        site: The site's name; the same table is dealt differently at another site.

    Returns:
        int64 (n,): each row's fold, 0..folds-1. Fold sizes differ by at most one, and so do each label's counts.
    """
    generator = public_generator("folds", seed=seed, site=site)
    # one label after the other, so that the second goes on where the first has stopped
    order = np.concatenate([generator.permutation(np.flatnonzero(labels == label)) for label in (1, 0)])
    fold = np.empty(len(labels), dtype=np.int64)
    fold[order] = np.arange(len(labels)) % folds
    return fold


def split_table(table: Table, *, folds: int, fold: int, seed: int, site: str) -> tuple[Table, Table]:
    """Hold one fold out for testing.

    Args:
        table: The site's patients.
        folds: Number of folds, at least 2.
        fold: The one to hold out, from 0.
        seed: The agreement's public seed.
        site: The site's name.

    Returns:
        Training rows and held-out rows, each in the table's order and at least one.

    Raises:
        DataError: There are too few rows for both.
    """
    held_out = fold_of_rows(table.labels, folds=folds, seed=seed, site=site) == fold
    if held_out.all() or not held_out.any():
        raise DataError(f"a table of {table.records} rows leaves nothing to train on or nothing in fold {fold}")
    return table.rows(np.flatnonzero(~held_out)), table.rows(np.flatnonzero(held_out))
