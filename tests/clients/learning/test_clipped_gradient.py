"""Each patient's gradient is the true one, no longer than agreed, and adds to the sum exactly itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import binary_cross_entropy_with_logits

import clients.learning.clipped_gradient
from clients.learning.clipped_gradient import GRADIENT_BITS, clipped_gradient_sum
from clients.learning.models import Network, initial_values, load_values
from protocol.errors import ValueRefusedError
from protocol.terms import ModelTerms

LOGISTIC, MLP = ModelTerms(), ModelTerms(kind="mlp", hidden=(4, 3))
INPUTS = 5


def patients(count, *, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(0, 3, (count, INPUTS)).astype(np.float32), rng.integers(0, 2, count).astype(np.int8)


def gradient_of_all(model, values, features, labels):
    """Return the gradient of the summed loss, by plain back-propagation."""
    network = Network(model, INPUTS).double()
    load_values(network, values)
    logits = network(torch.tensor(features, dtype=torch.float64))
    outcomes = torch.tensor(labels, dtype=torch.float64)
    loss = binary_cross_entropy_with_logits(logits, outcomes, reduction="sum")
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, [*network.parameters()])]).numpy()


def norm(gradient, clip_norm):
    return np.linalg.norm(gradient.astype(np.float64)) * 2.0**-GRADIENT_BITS * clip_norm


@pytest.mark.parametrize("model", [LOGISTIC, MLP])
def test_short_gradients_are_summed_as_they_are(model):
    features, labels = patients(40)
    values = initial_values(model, INPUTS, 7)

    total = clipped_gradient_sum(model, values, features, labels, clip_norm=1e3)

    expected = gradient_of_all(model, values, features, labels)
    np.testing.assert_allclose(total * 2.0**-GRADIENT_BITS * 1e3, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("model", [LOGISTIC, MLP])
@given(seed=st.integers(0, 1000), clip_norm=st.sampled_from([1e-3, 0.1, 1.0, 30.0]))
@settings(max_examples=40)
def test_no_patient_weighs_more_than_agreed_and_direction_stays(model, seed, clip_norm):
    features, labels = patients(1, seed=seed)
    values = initial_values(MLP if model is MLP else LOGISTIC, INPUTS, seed)

    clipped = clipped_gradient_sum(model, values, features, labels, clip_norm=clip_norm)

    exact = gradient_of_all(model, values, features, labels)
    length = np.linalg.norm(exact)
    assert norm(clipped, clip_norm) <= clip_norm
    np.testing.assert_allclose(
        clipped * 2.0**-GRADIENT_BITS * clip_norm, exact * min(1, clip_norm / length), rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("model", [LOGISTIC, MLP])
def test_a_sum_is_exactly_the_sum_of_its_patients_in_any_order(model, monkeypatch):
    features, labels = patients(30)
    values = initial_values(model, INPUTS, 7)
    whole = clipped_gradient_sum(model, values, features, labels, clip_norm=1.0)

    order = np.random.default_rng(1).permutation(30)
    monkeypatch.setattr(clients.learning.clipped_gradient, "_MOST_VALUES", 7 * len(values))
    in_chunks = clipped_gradient_sum(model, values, features[order], labels[order], clip_norm=1.0)
    halves = [
        clipped_gradient_sum(model, values, features[part], labels[part], clip_norm=1.0)
        for part in (slice(11), slice(11, None))
    ]

    assert in_chunks.tolist() == whole.tolist()
    assert (halves[0] + halves[1]).tolist() == whole.tolist()


def test_a_gradient_that_is_no_number_is_refused():
    features, labels = patients(3)

    with pytest.raises(ValueRefusedError, match="gradient: NaN or infinite"):
        clipped_gradient_sum(MLP, np.full(len(initial_values(MLP, INPUTS, 0)), 1e200), features, labels, clip_norm=1.0)
