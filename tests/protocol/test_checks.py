from __future__ import annotations

import math
from dataclasses import dataclass

import pytest

from protocol.checks import check_choice, check_range, keep_floats
from protocol.errors import ConfigurationError


@dataclass(frozen=True)
class Lengths:
    width: float
    height: float
    count: int


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400, -(10**400), 0.999, 2.001])
def test_a_range_refuses_everything_outside_whatever_its_type(value):
    with pytest.raises(ConfigurationError, match=r"^key = .* is outside 1\.\.2$"):
        check_range("key", value, 1, 2)


@pytest.mark.parametrize("value", [1, 1.5, 2])
def test_a_range_includes_its_ends(value):
    check_range("key", value, 1, 2)


def test_a_choice_is_one_of_the_list():
    check_choice("key", "a", ("a", "b"))
    with pytest.raises(ConfigurationError, match=r"^key = 'c' is not one of a, b$"):
        check_choice("key", "c", ("a", "b"))


def test_only_the_named_attributes_are_kept_as_floats():
    lengths = Lengths(width=3, height=4, count=5)

    keep_floats(lengths, "width")

    assert [(value, type(value)) for value in (lengths.width, lengths.height, lengths.count)] == [
        (3, float),
        (4, int),
        (5, int),
    ]
