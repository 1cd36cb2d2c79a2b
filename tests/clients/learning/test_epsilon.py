"""The epsilon that is told is the library's, near the closed formula, and never better than it."""

from __future__ import annotations

import math
from dataclasses import replace

import opendp.prelude as opendp
import pytest
from scipy.optimize import brentq
from scipy.stats import norm

import conf
from clients.learning.epsilon import epsilon_of
from protocol.errors import ConfigurationError
from protocol.terms import CohortTerms, TrainingTerms

TERMS = conf.compose(["privacy=noise"]).terms


def noisy(**changes):
    return replace(TERMS, privacy=replace(TERMS.privacy, **changes))


def gaussian_epsilon(rounds, multiplier, delta):
    """Return the exact epsilon of composed Gaussians (Balle and Wang, ICML 2018, theorem 8)."""
    ratio = math.sqrt(rounds) / multiplier

    def excess(epsilon):
        return (
            norm.cdf(ratio / 2 - epsilon / ratio) - math.exp(epsilon) * norm.cdf(-ratio / 2 - epsilon / ratio) - delta
        )

    return brentq(excess, 0, 100)


@pytest.mark.parametrize("multiplier", [2.0, 10.0, 30.0])
def test_it_is_what_the_library_says_of_so_many_gaussians(multiplier):
    opendp.enable_features("contrib")
    space = opendp.vector_domain(opendp.atom_domain(T="i64")), opendp.l2_distance(T="f64")
    of_round = opendp.m.make_gaussian(*space, scale=multiplier)
    rounds = opendp.c.make_composition([of_round] * 20)

    expected = opendp.c.make_zCDP_to_approxDP(rounds).map(1.0).epsilon(1e-5)

    assert epsilon_of(noisy(noise_multiplier=multiplier)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("rounds", [1, 20, 200])
@pytest.mark.parametrize("multiplier", [3.0, 10.0, 60.0])
def test_it_is_near_the_closed_formula_and_not_below(rounds, multiplier):
    terms = replace(noisy(noise_multiplier=multiplier), training=TrainingTerms(rounds=rounds))
    exact = gaussian_epsilon(rounds, multiplier, 1e-5)

    assert exact <= epsilon_of(terms) <= 1.25 * exact


def test_the_default_noise_is_about_epsilon_two():
    assert epsilon_of(TERMS) == pytest.approx(1.91, abs=0.01)


def test_little_noise_in_each_site_costs_more_than_one_gaussian_would():
    # deviation 0.9 in grid steps: a sum of discrete Gaussians is not quite one
    few, many = (
        replace(noisy(noise_multiplier=0.9 * math.sqrt((cohort - 1) / 31)), cohort=CohortTerms(smallest_cohort=cohort))
        for cohort in (3, 9)
    )

    for terms in (few, many):
        assert epsilon_of(terms) > 1.001 * replace_tau(terms)


def replace_tau(terms):
    """Return the epsilon that single discrete Gaussians of the same deviation would have."""
    ratio = math.sqrt(terms.training.rounds) / terms.privacy.noise_multiplier
    opendp.enable_features("contrib")
    unit = opendp.m.make_gaussian(opendp.atom_domain(T="f64", nan=False), opendp.absolute_distance(T="f64"), scale=1.0)
    return opendp.c.make_zCDP_to_approxDP(unit).map(ratio).epsilon(terms.privacy.delta)


def test_noise_too_little_to_promise_anything_has_no_epsilon():
    with pytest.raises(ConfigurationError, match=r"privacy\.noise_multiplier = 0\.05 is too little"):
        epsilon_of(noisy(noise_multiplier=0.05))
