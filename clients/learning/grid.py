"""Choose each tensor's grid: the step that its changes are rounded to before they are encrypted.

Powers of two throughout, derived from the agreement and the last exact sum alone, so that all sites use the same grid
and nobody has to send it.

Trust: runs at a site; the steps tell how fast the model moves, and are known to sites only.
"""

from __future__ import annotations

import math
from typing import Final

HEADROOM: Final = 16.0
"""Clip range of a tensor over the largest mean change of the round before: sites differ more than their mean."""

RANGE_LIMITS: Final = (2.0**-20, 2.0**6)
"""Narrowest and widest clip range, in units of the agreed clip of the first round."""


def first_exponent(*, clip: float, clip_steps: int) -> int:
    """Return log2 of the smallest grid step whose range of `clip_steps` steps covers clip."""
    exponent = math.frexp(clip)[1] - math.frexp(clip_steps)[1] - 1
    while math.ldexp(clip_steps, exponent) < clip:
        exponent += 1
    return exponent


def least_exponent(*, clip: float, clip_steps: int) -> int:
    """Return log2 of the finest grid step, as long as no range has been too narrow."""
    return first_exponent(clip=RANGE_LIMITS[0] * clip, clip_steps=clip_steps)


def next_exponent(*, least: int, largest_change: float, clip: float, clip_steps: int) -> int:
    """Return log2 of a tensor's grid step in the next round.

    Args:
        least: log2 of the finest step allowed: coarser than every step whose range has cut off too many values.
        largest_change: Largest absolute mean change in the tensor in this round; finite, >= 0.
        clip: The agreed range of the first round; no range is wider than RANGE_LIMITS of it.
        clip_steps: Grid steps in a range.
    """
    narrowest, widest = RANGE_LIMITS
    wanted = max(_power_of_two_from(HEADROOM * largest_change), narrowest * clip)
    coarsest = first_exponent(clip=widest * clip, clip_steps=clip_steps)
    return min(max(first_exponent(clip=min(wanted, widest * clip), clip_steps=clip_steps), least), coarsest)


def _power_of_two_from(number: float) -> float:
    """Return the smallest power of two that is at least number; 0 for 0."""
    mantissa, exponent = math.frexp(number)
    is_power = mantissa == 0.5  # noqa: PLR2004  frexp's mantissa lies in [0.5, 1)
    return math.ldexp(math.ceil(mantissa), exponent - is_power)
