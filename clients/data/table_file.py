"""Read a site's CSV file as the agreed schema says; a cell that breaks it is named by line and column.

Trust: runs at a site and sees patients' records. Errors name files, lines and columns, never a cell.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from clients.data.table import STANDARD_RANGE, Labels, Table, Values
from protocol.data_terms import ColumnTerms, DataTerms, LabelTerms, number_of
from protocol.errors import DataError

Cells: TypeAlias = npt.NDArray[np.str_]

MAX_TABLE_BYTES: Final = 1 << 30
MAX_CELL_CHARACTERS: Final = 200
MAX_FAR_SHARE: Final = 0.1
"""Largest share of a column's values that may lie so far out that they are clipped."""

MAX_REPORTED: Final = 5
"""Broken cells that one error names."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class TableFile:
    """The rows of a CSV file, not yet checked against a schema.

    Attributes:
        name: The file's name, for errors.
        rows: Each row's cells, in the schema's order of columns, the label last.
        lines: Each row's line in the file, as an editor counts.
    """

    name: str
    rows: list[list[str]]
    lines: list[int]

    def chosen(self, positions: Iterable[int]) -> TableFile:
        """Return the file of the chosen rows, in that order."""
        rows, lines = zip(*((self.rows[position], self.lines[position]) for position in positions), strict=True)
        return TableFile(name=self.name, rows=list(rows), lines=list(lines))

    def to_bytes(self, terms: DataTerms) -> bytes:
        """Return CSV text that `parse_table_file` reads back."""
        buffer = io.StringIO()
        writer = csv.writer(buffer)  # ends lines in CR LF, and so quotes cells that hold either
        if terms.header:
            writer.writerow(_column_names(terms))
        writer.writerows(self.rows)
        return buffer.getvalue().encode()


def read_table(path: Path, terms: DataTerms) -> Table:
    """Read a site's table.

    Args:
        path: UTF-8 CSV file.
        terms: The agreed schema.

    Raises:
        DataError: The file does not follow the schema; names file, line (from 1) and column, never a value.
    """
    return encode_table(read_table_file(path, terms), terms)


def read_table_file(path: Path, terms: DataTerms) -> TableFile:
    """Read the rows of a CSV file.

    Raises:
        DataError: It cannot be read, is not CSV, or has other columns than the schema.
    """
    return parse_table_file(read_content(path), path.name, terms)


def read_content(path: Path) -> bytes:
    """Read a table's bytes.

    Raises:
        DataError: It cannot be read, or is too large.
    """
    try:
        if path.stat().st_size > MAX_TABLE_BYTES:
            raise DataError(f"{path.name}: larger than {MAX_TABLE_BYTES} bytes")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path.name}: {error.strerror}") from error


def parse_table_file(content: bytes, name: str, terms: DataTerms) -> TableFile:
    """Split the bytes of a CSV file into rows; blank lines are passed over.

    Raises:
        DataError: Not UTF-8, not CSV, without rows, or with other columns than the schema.
    """
    numbered = csv_rows(content, name)
    if not numbered:
        raise DataError(f"{name}: the file is empty")
    wanted = _column_names(terms)
    line, header = numbered.pop(0) if terms.header else (1, wanted)
    _check_header(header, wanted, f"{name}, line {line}")
    if not numbered:
        raise DataError(f"{name}: there is a header but no row")
    for line, cells in numbered:
        if len(cells) != len(header):
            raise DataError(f"{name}, line {line}: expected {len(header)} cells, got {len(cells)}")
    order = [header.index(column) for column in wanted]
    return TableFile(
        name=name, rows=[[cells[at] for at in order] for _, cells in numbered], lines=[line for line, _ in numbered]
    )


def encode_table(file: TableFile, terms: DataTerms) -> Table:
    """Check every cell against the schema and make the model's inputs of them.

    Raises:
        DataError: Cells break the schema; names the first of them by line and column.
    """
    features, complaints = encode_inputs(file, terms)
    cells, too_long = _cells(file, -1)
    labels, bad = _encode_label(cells, terms.label, terms.missing)
    complaints += [(row, f"column {terms.label.name!r}: {what}") for row, what in too_long + bad]
    if complaints:
        shown = [f"line {file.lines[row]}, {what}" for row, what in sorted(complaints)[:MAX_REPORTED]]
        more = len(complaints) - len(shown)
        raise DataError(f"{file.name}, " + "; ".join(shown) + (f"; and {more} more" if more else ""))
    for column, numbers in _number_columns(features, terms):
        _check_scale(numbers[~np.isnan(numbers)], column)
    return Table(features=features, labels=labels)


def encode_inputs(file: TableFile, terms: DataTerms) -> tuple[Values, Complaints]:
    """Make the model's inputs of the rows, and tell of the cells that break the schema.

    Returns:
        float64 (n, d), in the columns' units, NaN where missing or broken; and the complaints.
    """
    complaints: Complaints = []
    inputs: list[Values] = []
    for at, column in enumerate(terms.columns):
        if column.kind == "ignored":
            continue
        encode = _encode_number if column.kind == "number" else _encode_category
        cells, too_long = _cells(file, at)
        features, bad = encode(cells, column, terms.missing)
        inputs += features
        complaints += [(row, f"column {column.name!r}: {what}") for row, what in too_long + bad]
    return np.column_stack(inputs), complaints


def far_values(features: Values, terms: DataTerms) -> Complaints:
    """Tell of numbers that are so far from their column's public centre that the model would be given a clipped one.

    Args:
        features: float64 (n, d), as of `encode_inputs`.
        terms: The schema.
    """
    return [
        (row, f"column {column.name!r}: more than {STANDARD_RANGE:g} scales from its centre; is it in the right unit?")
        for column, numbers in _number_columns(features, terms)
        for row in np.flatnonzero(_is_far(numbers, column)).tolist()
    ]


def _number_columns(features: Values, terms: DataTerms) -> Iterator[tuple[ColumnTerms, Values]]:
    columns = {column.name: column for column in terms.columns}
    for at, given in enumerate(terms.inputs):
        if not given.category:
            yield columns[given.column], features[:, at]


def _cells(file: TableFile, at: int) -> tuple[Cells, Complaints]:
    """Return a column's cells; those that are too long are left out, and told of."""
    texts = [row[at].strip() for row in file.rows]
    too_long = [row for row, text in enumerate(texts) if len(text) > MAX_CELL_CHARACTERS]
    for row in too_long:
        texts[row] = ""
    return np.array(texts, dtype=np.str_), [(row, f"longer than {MAX_CELL_CHARACTERS} characters") for row in too_long]


Complaints: TypeAlias = list[tuple[int, str]]
"""Rows, from 0, and what is wrong there."""

Encoded: TypeAlias = tuple[list[Values], Complaints]
"""A column's inputs, each of shape (n,), and the rows that break the schema with what is wrong there."""


def _encode_number(cells: Cells, column: ColumnTerms, missing: tuple[str, ...]) -> Encoded:
    numbers = _numbers(cells)
    is_missing = _is_one_of(cells, numbers, ("", *missing, *column.missing))
    outside = ~is_missing & ((numbers < column.minimum) | (numbers > column.maximum))  # of NaN neither is true
    bad = [(row, "not a number") for row in np.flatnonzero(~is_missing & np.isnan(numbers)).tolist()]
    between = f"{column.minimum:g}..{column.maximum:g}"
    bad += [(row, f"outside {between}") for row in np.flatnonzero(outside).tolist()]
    return [np.where(is_missing | outside, math.nan, numbers)], bad


def _check_scale(numbers: Values, column: ColumnTerms) -> None:
    """Refuse a column in another unit than its public centre and scale: clipping would leave nothing of it."""
    far = _is_far(numbers, column)
    if len(numbers) and far.mean() > MAX_FAR_SHARE:
        raise DataError(
            f"column {column.name!r}: {far.mean():.0%} of its values are more than {STANDARD_RANGE:g} scales from its "
            f"centre {column.centre:g}; are they in the unit that the schema means?"
        )


def _is_far(numbers: Values, column: ColumnTerms) -> npt.NDArray[np.bool_]:
    centre, scale = column.centre or 0.0, column.scale or 1.0
    far: npt.NDArray[np.bool_] = np.abs(numbers - centre) > STANDARD_RANGE * scale  # of NaN this is not true
    return far


def _encode_category(cells: Cells, column: ColumnTerms, missing: tuple[str, ...]) -> Encoded:
    numbers = _numbers(cells)
    is_missing = _is_one_of(cells, numbers, ("", *missing, *column.missing))
    matches = {category: _is_one_of(cells, numbers, (category,)) & ~is_missing for category in column.categories}
    unknown = ~is_missing & ~np.any(list(matches.values()), axis=0)
    inputs = [np.where(is_missing, math.nan, matches[given.category].astype(np.float64)) for given in column.inputs]
    return inputs, [(row, "a category that the schema does not know") for row in np.flatnonzero(unknown).tolist()]


def _encode_label(cells: Cells, terms: LabelTerms, missing: tuple[str, ...]) -> tuple[Labels, Complaints]:
    numbers = _numbers(cells)
    is_missing = _is_one_of(cells, numbers, ("", *missing))
    if terms.positive_above is None:
        is_positive = _is_one_of(cells, numbers, terms.positive)
        is_known = is_positive | _is_one_of(cells, numbers, terms.negative)
    else:
        is_positive = numbers > terms.positive_above
        is_known = np.isfinite(numbers)
    bad = [
        (row, "the label is missing" if is_missing[row] else "an outcome that the schema does not know")
        for row in np.flatnonzero(~is_known | is_missing).tolist()
    ]
    return is_positive.astype(np.int8), bad


def _numbers(cells: Cells) -> Values:
    """Return the cells as numbers, NaN where they are none."""
    texts, place = np.unique(cells, return_inverse=True)
    return np.array([number_of(text) for text in texts.tolist()], dtype=np.float64)[place]


def _is_one_of(cells: Cells, numbers: Values, codes: Iterable[str]) -> npt.NDArray[np.bool_]:
    """Return where a cell is one of the codes, as text or, where both are numbers, by value."""
    codes = list(codes)
    values = [value for value in map(number_of, codes) if not math.isnan(value)]
    found: npt.NDArray[np.bool_] = np.isin(cells, codes) | np.isin(numbers, values)
    return found


def csv_rows(content: bytes, name: str) -> list[tuple[int, list[str]]]:
    """Return each row that is not blank, with its line number as an editor shows it.

    Raises:
        DataError: Not UTF-8, or not CSV.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{name}, line {line}: not UTF-8 text") from None
    if "\0" in text:  # arrays of text drop it at a cell's end, and would read 1 NUL as 1
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(f"{name}, line {line}: holds a NUL byte")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[tuple[int, list[str]]] = []
    try:
        for cells in reader:
            if any("\n" in cell or "\r" in cell for cell in cells):
                # a quote that was never meant to open a cell would swallow the rows up to the next one
                raise DataError(f"{name}, line {reader.line_num}: a quoted cell goes over several lines")
            if cells:
                rows.append((reader.line_num, cells))
    except csv.Error:
        raise DataError(f"{name}, line {reader.line_num}: not a row of a CSV file") from None
    return rows


def _column_names(terms: DataTerms) -> list[str]:
    return [*(column.name for column in terms.columns), terms.label.name]


def _check_header(header: list[str], wanted: list[str], where: str) -> None:
    for at, column in enumerate(header):
        if column not in wanted:
            # Named by position: in a file without a header this is a patient's value.
            raise DataError(f"{where}, column {at + 1}: not the name of an agreed column")
        if column in header[:at]:
            raise DataError(f"{where}: column {column!r} stands there twice")
    for column in wanted:
        if column not in header:
            raise DataError(f"{where}: column {column!r} is missing")
