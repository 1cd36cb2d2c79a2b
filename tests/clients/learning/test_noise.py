"""A site's noise is as large as promised, differs every time, and always has room on the grid."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

import conf
from clients.learning.noise import MAX_DEVIATIONS, Noise, load_opendp, noise_of
from protocol.errors import ConfigurationError, ValueRefusedError
from protocol.parameters import advise
from protocol.terms import CohortTerms, ModelTerms

TERMS = conf.compose(["privacy=noise"]).terms
RECORDS = 425


def parameters(sites=5, value_bits=21):
    return advise(sites=sites, value_bits=value_bits, values=100).parameters


def noisy(**changes):
    return replace(TERMS, privacy=replace(TERMS.privacy, **changes))


@pytest.mark.parametrize("deviation", [0.5, 3.0, 812.7])
def test_the_noise_drawn_has_the_variance_of_a_discrete_gaussian(deviation):
    count = 20_000
    drawn = Noise(step_exponent=0, sensitivity=1.0, deviation=deviation).draw(count)

    places = np.arange(-int(12 * deviation) - 12, int(12 * deviation) + 13)
    weights = np.exp(-(places**2) / (2 * deviation**2))
    variance = (weights * places**2).sum() / weights.sum()
    low, high = chi2.ppf([1e-7, 1 - 1e-7], count) / count
    assert low < (drawn.astype(np.float64) ** 2).mean() / variance < high
    assert abs(drawn.mean()) < 6 * math.sqrt(variance / count)


def test_no_two_draws_are_alike():
    noise = Noise(step_exponent=0, sensitivity=1.0, deviation=40.0)

    assert noise.draw(50).tolist() != noise.draw(50).tolist()


@pytest.mark.parametrize(("colluders", "cohort", "honest"), [(1, 3, 2), (0, 3, 2), (2, 7, 5)])
def test_the_honest_sites_of_the_smallest_cohort_make_the_promised_noise(colluders, cohort, honest):
    terms = replace(TERMS, cohort=CohortTerms(tolerated_colluders=colluders, smallest_cohort=cohort))

    noise = noise_of(terms, parameters(7), RECORDS)

    assert honest * noise.deviation**2 == pytest.approx((10.0 * noise.sensitivity) ** 2)


@given(
    multiplier=st.floats(0.5, 30),
    clip_norm=st.floats(1e-3, 1e3),
    learning_rate=st.floats(1e-3, 10),
    records=st.integers(10, 10**6),
    sites=st.integers(3, 16),
)
@settings(max_examples=200)
def test_signal_and_noise_of_all_sites_have_room_on_the_grid(multiplier, clip_norm, learning_rate, records, sites):
    terms = noisy(noise_multiplier=multiplier, clip_norm=clip_norm)
    terms = replace(terms, training=replace(terms.training, learning_rate=learning_rate))
    given_parameters = parameters(sites)

    noise = noise_of(terms, given_parameters, records)

    signal = math.ldexp(learning_rate * clip_norm, -noise.step_exponent)
    assert signal + sites * MAX_DEVIATIONS * noise.deviation <= given_parameters.clip_steps
    moved = math.ldexp(learning_rate * clip_norm / records, -noise.step_exponent)
    assert noise.sensitivity == pytest.approx(moved + math.sqrt(31))


def test_noise_beyond_its_room_is_refused_and_never_clipped(monkeypatch):
    noise = Noise(step_exponent=0, sensitivity=1.0, deviation=5.0)
    gaussian = lambda *space, scale: lambda zeros: [0] * (len(zeros) - 1) + [51]  # noqa: E731  a measurement's shape
    monkeypatch.setattr(load_opendp().m, "make_gaussian", gaussian)

    with pytest.raises(ValueRefusedError, match="noise: an integer beyond the room"):
        noise.draw(9)


def test_a_grid_too_narrow_for_the_noise_is_refused_by_its_settings():
    terms = replace(noisy(noise_multiplier=1000.0), model=ModelTerms(kind="mlp", hidden=(64,)))

    with pytest.raises(ConfigurationError, match=r"noise_multiplier = 1000: .* 2049 values .*raise crypto\.value_bits"):
        noise_of(terms, parameters(value_bits=13), RECORDS)


def test_noise_too_little_to_promise_anything_is_refused():
    with pytest.raises(ConfigurationError, match=r"noise_multiplier = 0\.1 is too little for 31 values and 2 honest"):
        noise_of(noisy(noise_multiplier=0.1), parameters(), RECORDS)
