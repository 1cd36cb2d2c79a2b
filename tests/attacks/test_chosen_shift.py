"""A weight of everybody's model moved by a chosen amount, without knowing anything about it.

Who: the provider alone. Want: a model that errs where it likes.
How: a multiple of the scale, added to one coefficient of the encrypted sum, is a shift of whole grid steps there; the
noise stays as it was. Answer: tags, checked at every site before it decrypts.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from coalition import prepare_parts, refusal, stands_at, truth
from forgery import ring, shifted, without_tags

from clients.learning.grid import first_exponent
from clients.run.files import RunFiles
from protocol.envelope import Request

WEIGHT = 1
"""Which value of the model is moved: the weight of the second column."""
STEPS = 4321


@pytest.fixture
def summed_up(started):
    """A run in which the sum of round 1 is made and not delivered."""
    started.sum_up()
    return started


def moved_sum(federation):
    parameters = federation.agreement.parameters
    factor = np.uint64(STEPS * int(parameters.scale))
    shift = ring(parameters).monomial(WEIGHT) * factor % np.uint64(parameters.modulus)
    return shifted(federation.sums[1], federation.agreement, shift)


def model_at(federation, site):
    return RunFiles(federation.vault(site), federation.run).position().learner.model


def test_without_tags_one_weight_of_everybody_s_model_moves_by_the_chosen_amount(summed_up, tmp_path, monkeypatch):
    honest = summed_up.copied_to(tmp_path / "honest")
    contributions = sum(truth(honest, site) for site in honest.everyone)
    agreement = summed_up.agreement
    shares = agreement.plan(agreement.round_kind(1)).unpack(contributions)["weight"]
    step = math.ldexp(
        1.0, first_exponent(clip=agreement.terms.training.clip, clip_steps=agreement.parameters.clip_steps)
    )
    altered = moved_sum(summed_up)
    for site in honest.everyone:
        honest.prepare(site, 2)
    without_tags(monkeypatch)

    for site in summed_up.everyone:
        summed_up.prepare(site, 2, [altered])  # accepted, noise and all

        change = model_at(summed_up, site) - model_at(honest, site)
        expected = STEPS * step / (shares[0] / (1 << (agreement.parameters.value_bits - 2)))
        assert change[WEIGHT] == pytest.approx(expected, rel=1e-9)
        assert np.count_nonzero(change) == 1


def test_with_tags_every_site_refuses_the_moved_sum_and_stays_where_it_was(summed_up, grid_of):
    grid, altered = grid_of(summed_up), moved_sum(summed_up)

    for site in summed_up.everyone:
        before = stands_at(summed_up, site)
        assert refusal(grid, summed_up, site, Request.PREPARE, **prepare_parts(2, [altered])) == "TagError"
        assert stands_at(summed_up, site) == before
        summed_up.prepare(site, 2)  # the right one is still taken
