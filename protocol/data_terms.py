"""The table that every site of a consortium has: its columns, what is missing, and which outcome is learnt.

A schema, and nothing about patients; `conf/data/` holds one per data set.

Trust: public on both sides.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache

from protocol.checks import check_choice, check_range, keep_floats
from protocol.errors import ConfigurationError

_LARGEST = 1e12
_MOST_COLUMNS = 256


def number_of(text: str) -> float:
    """Return the number that a cell or a code is, NaN if it is none; only plain ASCII numbers are."""
    try:
        number = float(text) if text.isascii() and "_" not in text else math.nan  # float() would read 1_000
    except ValueError:
        return math.nan
    return number if math.isfinite(number) else math.nan


def _check_codes(key: str, *groups: tuple[str, ...]) -> None:
    """Raise if a code stands twice in the groups together, as text or, like 1 and 1.0, as a number."""
    codes = [code for group in groups for code in group]
    if "" in codes or len(_meanings(codes)) != len(codes):
        raise ConfigurationError(f"{key}: a code is empty, or two mean the same")


def _meanings(codes: Iterable[str]) -> set[str | float]:
    return {code if math.isnan(number := number_of(code)) else number for code in codes}


def _stripped(codes: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(code.strip() for code in codes)  # as cells are


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnTerms:
    """One column of the table.

    Attributes:
        name: Column name.
        kind: "number" is one input; "category" is one input of 0 or 1 per category; "ignored" is none.
        centre: Public centre of a number, in the column's unit; need only be near. Numbers must have one.
        scale: Public scale of a number, in the column's unit, > 0; about a standard deviation. Numbers must have one.
        minimum: Smallest number that is possible; a smaller one is a mistake in the table.
        maximum: Largest number that is possible.
        categories: All codes that a category can have, as text; a code that is a number also matches 1.0 for 1.
        reference: The category that has no input of its own; empty if each has one.
        missing: Codes that stand for a missing value in this column, beside those of the whole table.
    """

    name: str
    kind: str = "number"
    centre: float | None = None
    scale: float | None = None
    minimum: float = -_LARGEST
    maximum: float = _LARGEST
    categories: tuple[str, ...] = ()
    reference: str = ""
    missing: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        key = f"data.columns[{self.name}]"
        object.__setattr__(self, "categories", _stripped(self.categories))
        object.__setattr__(self, "missing", _stripped(self.missing))
        check_choice(f"{key}.kind", self.kind, ("number", "category", "ignored"))
        self._check_public_constants(key)
        check_range(f"{key}.minimum", self.minimum, -_LARGEST, _LARGEST)
        check_range(f"{key}.maximum", self.maximum, self.minimum, _LARGEST)
        keep_floats(self, "minimum", "maximum")
        if bool(self.categories) != (self.kind == "category"):
            raise ConfigurationError(f"{key}: categories are named exactly for columns of kind category")
        _check_codes(f"{key}.categories and .missing", self.categories, self.missing)
        if self.reference and self.reference not in self.categories:
            raise ConfigurationError(f"{key}.reference = {self.reference!r} is not one of its categories")
        if self.categories == (self.reference,):
            raise ConfigurationError(f"{key}: the only category is the reference, so the column would have no input")

    def _check_public_constants(self, key: str) -> None:
        if self.kind != "number":
            if self.centre is not None or self.scale is not None:
                raise ConfigurationError(f"{key}: only a column of kind number has centre and scale")
            return
        if self.centre is None or self.scale is None:
            raise ConfigurationError(
                f"{key}: a number needs centre and scale, public constants near its mean and standard deviation"
            )
        check_range(f"{key}.centre", self.centre, -_LARGEST, _LARGEST)
        check_range(f"{key}.scale", self.scale, 1 / _LARGEST, _LARGEST)
        keep_floats(self, "centre", "scale")

    @property
    def inputs(self) -> tuple[InputTerms, ...]:
        """The model's inputs that are made of this column."""
        if self.centre is not None and self.scale is not None:
            return (InputTerms(name=self.name, column=self.name, centre=self.centre, scale=self.scale),)
        return tuple(
            InputTerms(name=f"{self.name}={category}", column=self.name, category=category)
            for category in self.categories
            if category != self.reference
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class InputTerms:
    """One number that the model is given for a patient.

    Attributes:
        name: The column's name; for a category "column=category".
        column: The column it is made of.
        category: The category that makes it 1; empty for a number.
        centre: Public centre that is subtracted before anything is summed.
        scale: Public scale that is divided by after that.
    """

    name: str
    column: str
    category: str = ""
    centre: float = 0.0
    scale: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelTerms:
    """The outcome that is learnt, and what makes it 0 or 1.

    Attributes:
        name: Column name.
        negative: Codes that mean 0, as text.
        positive: Codes that mean 1, as text.
        positive_above: If set, in place of the codes: a number above this means 1, any other 0.
        meaning: What 1 means, in words for people; empty for the column's name.
    """

    name: str = "label"
    negative: tuple[str, ...] = ("0",)
    positive: tuple[str, ...] = ("1",)
    positive_above: float | None = None
    meaning: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "negative", _stripped(self.negative))
        object.__setattr__(self, "positive", _stripped(self.positive))
        if self.positive_above is not None:
            check_range("data.label.positive_above", self.positive_above, -_LARGEST, _LARGEST)
            keep_floats(self, "positive_above")
        _check_codes("data.label.negative and .positive", self.negative, self.positive)
        if not self.negative or not self.positive:
            raise ConfigurationError("data.label: both outcomes need codes")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataTerms:
    """The table that every site has, and how it is used.

    Attributes:
        name: Name of the data set.
        columns: All columns but the label's; in a file without a header the label's is the last.
        label: The outcome.
        header: Whether the file's first line names its columns, which may then stand in any order.
        missing: Codes that stand for a missing value in every column; an empty cell always does.
        smallest_count: Fewest patients, over all sites, whose statistics are used.
        folds: Parts that each site's patients are dealt into, stratified by label; one is held out. 2..20.
        fold: The part that is held out, from 0.
    """

    name: str
    columns: tuple[ColumnTerms, ...]
    label: LabelTerms = field(default_factory=LabelTerms)
    header: bool = True
    missing: tuple[str, ...] = ()
    smallest_count: int = 10
    folds: int = 4
    fold: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", tuple(self.columns))
        object.__setattr__(self, "missing", _stripped(self.missing))
        check_range("number of data.columns", len(self.columns), 1, _MOST_COLUMNS)
        check_range("data.smallest_count", self.smallest_count, 1, 1_000_000)
        check_range("data.folds", self.folds, 2, 20)
        check_range("data.fold", self.fold, 0, self.folds - 1)
        if not self.inputs:
            raise ConfigurationError("data.columns: no column is an input")
        names = [column.name for column in self.columns]
        if len({*names, self.label.name}) != len(names) + 1:
            raise ConfigurationError("data.columns: a column is named twice, or is also the label")
        inputs = [given.name for given in self.inputs]
        if len(set(inputs)) != len(inputs):
            raise ConfigurationError("data.columns: a column is named like a category of another")
        self._check_missing_in_categories()
        if self.label.positive_above is None:
            _check_codes("data.missing and data.label", self.missing, self.label.negative, self.label.positive)

    def _check_missing_in_categories(self) -> None:
        with_categories = [column for column in self.columns if column.categories]
        if with_categories:
            _check_codes("data.missing", self.missing)
        missing = _meanings(self.missing)  # once: there may be many
        for column in with_categories:
            if not missing.isdisjoint(_meanings(column.categories)):
                raise ConfigurationError(
                    f"data.missing and data.columns[{column.name}].categories: a code is empty, or two mean the same"
                )

    @property
    def inputs(self) -> tuple[InputTerms, ...]:
        """The model's inputs, in order."""
        return _inputs(self.columns)


@lru_cache(maxsize=8)  # whoever publishes a model to a service makes the schema up
def _inputs(columns: tuple[ColumnTerms, ...]) -> tuple[InputTerms, ...]:
    return tuple(given for column in columns if column.kind != "ignored" for given in column.inputs)
