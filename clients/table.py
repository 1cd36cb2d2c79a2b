"""A site's table of patients: reading, writing, and holding rows out for testing.

Trust: runs at a site and sees patients' records. Errors and `repr` name files, lines and columns, never a cell.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from clients.generator import public_generator
from protocol.errors import DataError
from protocol.terms import DataTerms

Values: TypeAlias = npt.NDArray[np.float64]
Labels: TypeAlias = npt.NDArray[np.int8]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Table:
    """Patients in rows.

    Attributes:
        features: float64 (n, d), in the columns' units; NaN is a missing measurement.
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

    def rows(self, chosen: npt.NDArray[np.int64]) -> Table:
        """Return the table of the chosen rows, given by their positions, in that order."""
        return Table(features=self.features[chosen], labels=self.labels[chosen])


def read_table(path: Path, terms: DataTerms) -> Table:
    """Read a site's CSV file.

    The header names the agreed columns in any order; an empty cell is a missing measurement.

    Args:
        path: UTF-8 CSV file with a header.
        terms: The agreed columns.

    Returns:
        The table, features in the agreed order.

    Raises:
        DataError: The file does not follow the terms; names file, line (from 1) and column, never a value.
    """
    rows = _csv_rows(path)
    _, header = next(rows, (0, []))
    if not header:
        raise DataError(f"{path.name}: the file is empty")
    position = _column_positions(header, terms, path.name)
    columns = [(feature.name, position[feature.name]) for feature in terms.features]
    features: list[list[float]] = []
    labels: list[int] = []
    for line, cells in rows:
        where = f"{path.name}, line {line}"
        if len(cells) != len(header):
            raise DataError(f"{where}: expected {len(header)} cells, got {len(cells)}")
        features.append([_measurement(cells[at], f"{where}, column {name!r}") for name, at in columns])
        labels.append(_outcome(cells[position[terms.label]], f"{where}, column {terms.label!r}"))
    if not labels:
        raise DataError(f"{path.name}: there is a header but no row")
    return Table(features=np.array(features, dtype=np.float64), labels=np.array(labels, dtype=np.int8))


def write_table(path: Path, table: Table, terms: DataTerms) -> None:
    """Write a CSV file that `read_table` reads back bit for bit.

    Args:
        path: File to write; replaced if it exists.
        table: Finite or missing features, in the agreed order.
        terms: The agreed columns.
    """
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*(feature.name for feature in terms.features), terms.label])
        for features, label in zip(table.features.tolist(), table.labels.tolist(), strict=True):
            writer.writerow([*("" if math.isnan(value) else repr(value) for value in features), label])


def split_table(table: Table, *, test_fraction: float, seed: int, site: str) -> tuple[Table, Table]:
    """Hold rows out for testing, as many of each label as their share; both sides get at least one row.

    Args:
        table: At least 2 rows.
        test_fraction: Share of the rows that is held out, 0.05..0.5.
        seed: The agreement's public seed.
        site: The site's name; the same table is split differently at another site.

    Returns:
        Training rows and held-out rows, each in the table's order.

    Raises:
        DataError: Fewer than 2 rows.
    """
    if table.records < 2:  # noqa: PLR2004  one to train on, one to test on
        raise DataError(f"a table of {table.records} rows cannot be split into training and test rows")
    generator = public_generator("split", seed=seed, site=site)
    held_out = np.zeros(table.records, dtype=np.bool_)
    for label in (0, 1):
        rows = generator.permutation(np.flatnonzero(table.labels == label))
        held_out[rows[: round(len(rows) * test_fraction)]] = True
    if not held_out.any():
        held_out[generator.integers(table.records)] = True
    return table.rows(np.flatnonzero(~held_out)), table.rows(np.flatnonzero(held_out))


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield each row that is not blank, with its line number as an editor shows it."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path.name}: {error.strerror}") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path.name}, line {line}: not UTF-8 text") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        for cells in reader:
            if cells:
                yield reader.line_num, cells
    except csv.Error:
        raise DataError(f"{path.name}, line {reader.line_num}: not a row of a CSV file") from None


def _column_positions(header: list[str], terms: DataTerms, file_name: str) -> dict[str, int]:
    wanted = [*(feature.name for feature in terms.features), terms.label]
    position: dict[str, int] = {}
    for at, name in enumerate(header):
        if name not in wanted:
            # Named by position: in a file without a header this is a patient's value.
            raise DataError(f"{file_name}, line 1, column {at + 1}: not the name of an agreed column")
        if name in position:
            raise DataError(f"{file_name}, line 1: column {name!r} stands there twice")
        position[name] = at
    for name in wanted:
        if name not in position:
            raise DataError(f"{file_name}, line 1: column {name!r} is missing")
    return position


def _measurement(cell: str, where: str) -> float:
    if not cell.strip():
        return math.nan
    value = _number(cell)
    if math.isnan(value):
        raise DataError(f"{where}: not a number")
    if math.isinf(value):
        raise DataError(f"{where}: infinite")
    return value


def _outcome(cell: str, where: str) -> int:
    if not cell.strip():
        raise DataError(f"{where}: the label is missing")
    value = _number(cell)
    if value not in (0.0, 1.0):
        raise DataError(f"{where}: the label is not 0 or 1")
    return int(value)


def _number(cell: str) -> float:
    """Return the cell as a number, NaN if it is none."""
    try:
        return math.nan if "_" in cell else float(cell)  # float() would read 1_000
    except ValueError:
        return math.nan
