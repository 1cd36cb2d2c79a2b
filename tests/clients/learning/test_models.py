from __future__ import annotations

import numpy as np
import pytest
import torch

from clients.learning.models import Network, flat_values, initial_values, load_values, quadratic, tensor_slices
from protocol.errors import ValueRefusedError
from protocol.terms import ModelTerms

REGRESSION = ModelTerms()
MLP = ModelTerms(kind="mlp", hidden=(4, 3))
QUADRATIC = ModelTerms(kind="mlp", hidden=(4,), activation="quadratic")


@pytest.mark.parametrize("terms", [REGRESSION, MLP])
def test_tensors_have_the_agreed_names_shapes_and_order(terms):
    state = Network(terms, 5).state_dict()

    assert [(name, tuple(tensor.shape)) for name, tensor in state.items()] == list(terms.tensor_shapes(5).items())


@pytest.mark.parametrize("terms", [REGRESSION, MLP])
def test_slices_cover_the_flat_vector_without_gaps(terms):
    slices = tensor_slices(terms.tensor_shapes(5))
    covered = np.concatenate([np.arange(place.start, place.stop) for place in slices.values()])

    assert covered.tolist() == list(range(len(initial_values(terms, 5, 1))))


def test_loaded_values_come_back_and_land_in_their_tensors():
    values = np.arange(43.0)
    network = Network(MLP, 5)
    load_values(network, values)

    np.testing.assert_array_equal(flat_values(network), values)
    assert flat_values(network).dtype == np.float64
    for name, place in tensor_slices(MLP.tensor_shapes(5)).items():
        np.testing.assert_array_equal(network.state_dict()[name].numpy().ravel(), values[place])


def test_the_logit_is_relu_between_layers_and_linear_at_the_end():
    rng = np.random.default_rng(1)
    network = Network(MLP, 5)
    load_values(network, rng.normal(size=43))
    features = rng.normal(size=(7, 5)).astype(np.float32)
    signal = features
    weights = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    for layer in ("hidden.0", "hidden.1", "output"):
        signal = signal if layer == "hidden.0" else np.maximum(signal, 0)
        signal = signal @ weights[f"{layer}.weight"].T + weights[f"{layer}.bias"]

    logits = network(torch.tensor(features)).detach().numpy()

    assert logits.shape == (7,)
    assert (signal < 0).any()
    np.testing.assert_allclose(logits, signal[:, 0], rtol=1e-4, atol=1e-5)


def test_the_quadratic_logit_is_the_stated_polynomial_of_the_hidden_sums():
    rng = np.random.default_rng(1)
    network = Network(QUADRATIC, 5)
    load_values(network, rng.normal(size=29))
    features = rng.normal(size=(7, 5)).astype(np.float32)
    weights = {name: tensor.numpy().astype(np.float64) for name, tensor in network.state_dict().items()}
    sums = features @ weights["hidden.0.weight"].T + weights["hidden.0.bias"]
    expected = (sums**2 / 8 + sums / 2 + 0.25) @ weights["output.weight"][0] + weights["output.bias"]

    logits = network(torch.tensor(features)).detach().numpy()

    assert (sums < -1).any()
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_the_quadratic_activation_is_a_parabola_around_minus_two():
    signal = torch.linspace(-40, 40, 801, dtype=torch.float64)

    torch.testing.assert_close(quadratic(signal), (signal + 2) ** 2 / 8 - 0.25)
    # softplus up to its second order, but for log 2 in place of 1/4
    near = signal[signal.abs() < 1]
    gap = quadratic(near) - torch.nn.functional.softplus(near)
    assert float((gap - gap.mean()).abs().max()) < 0.01


def test_logistic_regression_starts_at_zero():
    np.testing.assert_array_equal(initial_values(REGRESSION, 5, 1), np.zeros(6))


def test_an_mlp_starts_the_same_everywhere_within_its_bounds():
    values = initial_values(MLP, 5, 1)

    np.testing.assert_array_equal(values, initial_values(MLP, 5, 1))
    assert not np.array_equal(values, initial_values(MLP, 5, 2))
    np.testing.assert_array_equal(values, values.astype(np.float32).astype(np.float64))
    assert 0.8 / np.sqrt(5) < np.abs(values[:24]).max() <= 1 / np.sqrt(5)
    assert np.abs(values[24:39]).max() <= 0.5


def test_a_vector_of_another_length_is_refused():
    with pytest.raises(ValueRefusedError, match="expected 6 values"):
        load_values(Network(REGRESSION, 5), np.zeros(7))
