"""Read patients that are to be scored from a CSV file; a row that breaks the schema is told of, the others are used.

The file is a site's table (`clients.data.table_file`) with less in it: the outcome may be missing, and so may columns
that the model does not use. It may have a column `id`, which is carried to the scores and goes nowhere else.

Trust: runs where patients' records are. Complaints name columns, never a cell.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from clients.data.table import Values
from clients.data.table_file import TableFile, csv_rows, encode_inputs, far_values, parse_table_file, read_content
from protocol.data_terms import DataTerms, LabelTerms, number_of
from protocol.errors import DataError

ID: Final = "id"
LOGIT: Final = "logit"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class PatientFile:
    """Patients of a file.

    Attributes:
        features: float64 (n, d), in the columns' units; NaN where missing, and in rows with a complaint.
        complaints: What is wrong with each row; empty where nothing is.
        ids: The cells of the column `id`; None if there is none.
        lines: Of each row in the file, as an editor counts: the header and blank lines have one, and are no rows.
    """

    features: Values
    complaints: tuple[str, ...]
    ids: tuple[str, ...] | None
    lines: tuple[int, ...]

    @property
    def usable(self) -> list[int]:
        """Positions of the rows without a complaint."""
        return [row for row, complaint in enumerate(self.complaints) if not complaint]


def read_patients(path: Path, terms: DataTerms) -> PatientFile:
    """Read the patients of a file.

    Args:
        path: UTF-8 CSV file.
        terms: The model's schema.

    Raises:
        DataError: It cannot be read, is not CSV, has no row, lacks an input's column, or has a column that the schema
            does not know.
    """
    numbered = csv_rows(read_content(path), path.name)
    header = numbered.pop(0)[1] if terms.header and numbered else None
    if not numbered:
        raise DataError(f"{path.name}: there is no patient in it")
    columns = header or [column.name for column in terms.columns]
    lengths = [len(columns)]
    if header is None:
        lengths.append(len(columns) + 1)  # the outcome comes last
    else:
        _check_header(header, terms, path.name)
    rows = [cells if len(cells) in lengths else None for _, cells in numbered]
    features, complaints = encode_inputs(_as_table(rows, columns, terms, path.name), terms)
    by_row: defaultdict[int, list[str]] = defaultdict(list)
    for row, complaint in complaints + far_values(features, terms):
        by_row[row].append(complaint)
    for row in np.flatnonzero(np.isnan(features).all(axis=1)).tolist():
        by_row[row] = by_row.get(row) or ["no value at all"]  # it would be scored as an average patient
    for row, cells in enumerate(rows):
        if cells is None:
            by_row[row] = [f"expected {' or '.join(map(str, lengths))} cells, got {len(numbered[row][1])}"]
    features[list(by_row)] = np.nan
    return PatientFile(
        features=features,
        complaints=tuple("; ".join(by_row[row]) for row in range(len(rows))),
        ids=_ids(rows, columns, terms),
        lines=tuple(line for line, _ in numbered),
    )


def read_known_patients(path: Path, terms: DataTerms) -> tuple[Values, Values]:
    """Read patients whose scores are known: a site's table with the column `logit` in place of the outcome.

    Returns:
        float64 (m, d), in the columns' units, NaN where missing; and logits, float64 (m,).

    Raises:
        DataError: The file does not follow the schema, or a logit is no number.
    """
    known = replace(terms, label=LabelTerms(name=LOGIT))
    file = parse_table_file(read_content(path), path.name, known)
    features, complaints = encode_inputs(file, known)
    logits = np.array([number_of(row[-1].strip()) for row in file.rows])
    complaints += [(row, f"column {LOGIT!r}: not a number") for row in np.flatnonzero(np.isnan(logits)).tolist()]
    if complaints:
        row, what = min(complaints)
        raise DataError(f"{path.name}, line {file.lines[row]}, {what}")
    return features, logits


def _check_header(header: list[str], terms: DataTerms, name: str) -> None:
    known = {column.name for column in terms.columns} | {terms.label.name, ID}
    for at, column in enumerate(header):
        if column not in known:
            # by position: in a file without a header this is a patient's value
            raise DataError(f"{name}, line 1, column {at + 1}: neither a column of the model's table nor {ID!r}")
        if column in header[:at]:
            raise DataError(f"{name}, line 1: column {column!r} stands there twice")
    for given in terms.inputs:
        if given.column not in header:
            raise DataError(f"{name}, line 1: column {given.column!r} is missing, which the model needs")


def _as_table(rows: list[list[str] | None], columns: list[str], terms: DataTerms, name: str) -> TableFile:
    """Return the rows in the schema's order of columns; what is not there is empty."""
    order = [columns.index(column.name) if column.name in columns else None for column in terms.columns]
    ordered = [["" if cells is None or at is None else cells[at] for at in order] for cells in rows]
    return TableFile(name=name, rows=ordered, lines=list(range(1, len(rows) + 1)))


def _ids(rows: list[list[str] | None], columns: list[str], terms: DataTerms) -> tuple[str, ...] | None:
    if ID not in columns or terms.label.name == ID or any(given.column == ID for given in terms.inputs):
        return None
    at = columns.index(ID)
    return tuple("" if cells is None else cells[at] for cells in rows)
