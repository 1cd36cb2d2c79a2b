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


def next_exponent(exponent: int, *, largest_change: float, clipped: bool, clip: float, clip_steps: int) -> int:
    """Return log2 of a tensor's grid step in the next round.

    Args:
        exponent: log2 of the step in this round.
        largest_change: Largest absolute mean change in the tensor in this round; finite, >= 0.
        clipped: Whether this round's range cut off too many values; the next one is then at least twice as wide.
        clip: The agreed range of the first round; the next range stays within RANGE_LIMITS of it.
        clip_steps: Grid steps in a range.
    """
    wanted = _power_of_two_from(HEADROOM * largest_change)
    if clipped:
        wanted = 2.0 * max(wanted, math.ldexp(clip_steps, exponent))
    narrowest, widest = RANGE_LIMITS
    return first_exponent(clip=min(max(wanted, narrowest * clip), widest * clip), clip_steps=clip_steps)


def _power_of_two_from(number: float) -> float:
    """Return the smallest power of two that is at least number; 0 for 0."""
    mantissa, exponent = math.frexp(number)
    is_power = mantissa == 0.5  # noqa: PLR2004  frexp's mantissa lies in [0.5, 1)
    return math.ldexp(math.ceil(mantissa), exponent - is_power)
