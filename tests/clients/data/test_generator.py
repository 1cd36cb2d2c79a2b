from __future__ import annotations

import numpy as np
import pytest

from clients.data.generator import public_generator


def test_the_stream_is_fixed_for_ever():
    drawn = public_generator("split", seed=2026, site="north", round_number=3).integers(1 << 32, size=3)

    assert drawn.tolist() == [2897989519, 2050291215, 115802803]


@pytest.mark.parametrize(
    "other",
    [
        {"purpose": "batches", "seed": 1, "site": "north", "round_number": 1},
        {"purpose": "split", "seed": 2, "site": "north", "round_number": 1},
        {"purpose": "split", "seed": 1, "site": "south", "round_number": 1},
        {"purpose": "split", "seed": 1, "site": "north", "round_number": 2},
    ],
)
def test_purpose_seed_site_and_round_each_change_the_stream(other):
    drawn = public_generator("split", seed=1, site="north", round_number=1).integers(1 << 32, size=4)

    assert not np.array_equal(drawn, public_generator(**other).integers(1 << 32, size=4))
