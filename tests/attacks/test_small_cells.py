"""A sum over few sites says what its small cells say, and those are about a handful of patients.

Who: a site of the run, alone. Want: how many of another site's patients have which score, where they are few. How: it
subtracts its own part from the sum, which leaves the others'. Answer: each site leaves cells of fewer than
`privacy.smallest_cell` patients out before it encrypts (`clients.data.small_numbers`).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from coalition import Insider, truth

from clients.learning.evaluation import COUNTS
from conf import FederationConfig
from protocol.packing import RoundKind
from protocol.privacy_terms import PrivacyTerms

INSIDER, VICTIM = 0, 1
SMALLEST = 5


def cells_of_the_others(found, founded_once, smallest_cell):
    """Run to the first training sum over three sites; return the others' cells in it, and the victim's."""
    federation = found(
        replace(
            founded_once.experiment,
            privacy=PrivacyTerms(smallest_cell=smallest_cell),
            federation=FederationConfig(sites=3, partition="iid"),
        )
    )
    federation.open()
    for _ in range(2):
        federation.prepare_all()
        federation.sum_up()
    federation.prepare_all()
    own, victims = truth(federation, INSIDER), truth(federation, VICTIM)
    others = Insider(federation, INSIDER).read_sum(federation.sum_up()) - own
    plan = federation.agreement.plan(RoundKind.TRAIN)
    return [np.concatenate([plan.unpack(packed)[name] for name in COUNTS]) for packed in (others, victims)]


def is_small(cells):
    return (cells > 0) & (cells < SMALLEST)


def test_a_sum_minus_one_s_own_part_counts_a_handful_of_the_victim_s_patients(found, founded_once):
    others, victims = cells_of_the_others(found, founded_once, 1)

    assert is_small(others).any()
    assert is_small(victims).any()


@pytest.mark.parametrize("position", ["others", "victim"])
def test_no_cell_of_a_handful_is_left(found, founded_once, position):
    others, victims = cells_of_the_others(found, founded_once, SMALLEST)

    cells = others if position == "others" else victims
    assert cells.any()
    assert not is_small(cells).any()
