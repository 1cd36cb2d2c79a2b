from __future__ import annotations

from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.terms import ModelTerms
from scripts.benchmarks.round import hidden_widths


def parameters_of(widths: tuple[int, int], inputs: int) -> int:
    shapes = ModelTerms(kind="mlp", hidden=widths).tensor_shapes(inputs)
    return sum(prod(shape) for shape in shapes.values())


@pytest.mark.parametrize("parameters", [353, 1_663_370])
def test_the_benchmarks_of_other_systems_are_met_exactly(parameters: int) -> None:
    assert parameters_of(hidden_widths(parameters, 30), 30) == parameters


@given(st.integers(200, 1_000_000))
def test_other_sizes_are_met_or_exceeded_by_little(parameters: int) -> None:
    assert 0 <= parameters_of(hidden_widths(parameters, 30), 30) - parameters <= 200
