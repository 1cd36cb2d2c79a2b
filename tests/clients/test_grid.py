from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.grid import HEADROOM, RANGE_LIMITS, first_exponent, next_exponent

clips = st.floats(2.0**-20, 2.0**20)
ranges = st.integers(100, 1 << 38)


@given(clip=clips, clip_steps=ranges)
def test_the_first_grid_covers_the_clip_with_the_smallest_power_of_two(clip, clip_steps):
    exponent = first_exponent(clip=clip, clip_steps=clip_steps)

    assert math.ldexp(clip_steps, exponent) >= clip
    assert math.ldexp(clip_steps, exponent - 1) < clip


@given(clip=clips, clip_steps=ranges, largest_change=st.floats(0, 2.0**30), clipped=st.booleans())
def test_the_next_range_covers_the_last_change_within_its_limits(clip, clip_steps, largest_change, clipped):
    exponent = next_exponent(0, largest_change=largest_change, clipped=clipped, clip=clip, clip_steps=clip_steps)
    covered = math.ldexp(clip_steps, exponent)

    assert covered >= min(HEADROOM * largest_change, RANGE_LIMITS[1] * clip)
    assert RANGE_LIMITS[0] * clip <= covered < 2 * RANGE_LIMITS[1] * clip


def test_a_grid_that_clipped_gets_at_least_twice_as_wide():
    last = first_exponent(clip=1.0, clip_steps=1000)

    assert next_exponent(last, largest_change=1e-9, clipped=True, clip=1.0, clip_steps=1000) == last + 1


@pytest.mark.parametrize(("largest_change", "wanted"), [(1.0, 16.0), (1.01, 32.0), (0.5, 8.0)])
def test_the_range_wanted_is_rounded_up_to_a_power_of_two(largest_change, wanted):
    exponent = next_exponent(0, largest_change=largest_change, clipped=False, clip=1.0, clip_steps=1024)

    assert math.ldexp(1024, exponent) == wanted


def test_a_tensor_that_stands_still_gets_the_finest_grid():
    exponent = next_exponent(0, largest_change=0.0, clipped=False, clip=1.0, clip_steps=1024)

    assert math.ldexp(1024, exponent) == RANGE_LIMITS[0]
