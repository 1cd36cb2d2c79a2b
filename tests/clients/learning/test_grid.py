from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.learning.grid import HEADROOM, RANGE_LIMITS, first_exponent, least_exponent, next_exponent

clips = st.floats(2.0**-20, 2.0**20)
ranges = st.integers(100, 1 << 38)


@given(clip=clips, clip_steps=ranges)
def test_the_first_grid_covers_the_clip_with_the_smallest_power_of_two(clip, clip_steps):
    exponent = first_exponent(clip=clip, clip_steps=clip_steps)

    assert math.ldexp(clip_steps, exponent) >= clip
    assert math.ldexp(clip_steps, exponent - 1) < clip


@given(clip=clips, clip_steps=ranges, largest_change=st.floats(0, 2.0**30))
def test_the_next_range_covers_the_last_change_within_its_limits(clip, clip_steps, largest_change):
    least = least_exponent(clip=clip, clip_steps=clip_steps)
    exponent = next_exponent(least=least, largest_change=largest_change, clip=clip, clip_steps=clip_steps)
    covered = math.ldexp(clip_steps, exponent)

    assert covered >= min(HEADROOM * largest_change, RANGE_LIMITS[1] * clip)
    assert RANGE_LIMITS[0] * clip <= covered < 2 * RANGE_LIMITS[1] * clip


@given(clip=clips, clip_steps=ranges, largest_change=st.floats(0, 2.0**30), finer=st.integers(0, 20))
def test_no_step_is_finer_than_the_least(clip, clip_steps, largest_change, finer):
    coarsest = first_exponent(clip=RANGE_LIMITS[1] * clip, clip_steps=clip_steps)

    exponent = next_exponent(least=coarsest - finer, largest_change=largest_change, clip=clip, clip_steps=clip_steps)

    assert coarsest - finer <= exponent <= coarsest


def test_the_widest_range_is_not_exceeded_however_often_it_cut_off():
    coarsest = first_exponent(clip=RANGE_LIMITS[1], clip_steps=1024)

    assert next_exponent(least=coarsest + 5, largest_change=1.0, clip=1.0, clip_steps=1024) == coarsest


@pytest.mark.parametrize(("largest_change", "wanted"), [(1.0, 16.0), (1.01, 32.0), (0.5, 8.0)])
def test_the_range_wanted_is_rounded_up_to_a_power_of_two(largest_change, wanted):
    exponent = next_exponent(least=-100, largest_change=largest_change, clip=1.0, clip_steps=1024)

    assert math.ldexp(1024, exponent) == wanted


def test_a_tensor_that_stands_still_gets_the_finest_grid():
    least = least_exponent(clip=1.0, clip_steps=1024)

    exponent = next_exponent(least=least, largest_change=0.0, clip=1.0, clip_steps=1024)

    assert exponent == least
    assert math.ldexp(1024, exponent) == RANGE_LIMITS[0]
