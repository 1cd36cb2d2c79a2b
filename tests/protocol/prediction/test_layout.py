"""How patients lie in ciphertexts: the plaintext polynomial arithmetic gives the scores."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import LengthError
from protocol.prediction.layout import QueryLayout
from protocol.prediction.parameters import LINEAR, QUADRATIC


def negacyclic(left, right):
    """Multiply integer polynomials mod X^N + 1."""
    product = np.convolve(left, right)
    product = np.concatenate([product, np.zeros(2 * len(left) - len(product))])
    return product[: len(left)] - product[len(left) :]


@given(inputs=st.integers(1, 40), patients=st.integers(1, 4096), seed=st.integers(0, 99))
def test_one_multiplication_per_ciphertext_sums_over_its_features(inputs, patients, seed):
    generator = np.random.default_rng(seed)
    records, weights = generator.integers(-9, 9, size=(patients, inputs)), generator.integers(-9, 9, size=inputs)
    degree = LINEAR.ring_degree
    layout = QueryLayout.of(LINEAR, inputs=inputs, patients=patients)

    total = np.zeros(degree)
    for row, coefficients in enumerate(layout.arrange(records.astype(np.float64), degree)):
        here = weights[row * layout.features : (row + 1) * layout.features]
        multiplier = np.zeros(degree)
        multiplier[0] = here[0]
        multiplier[degree - layout.block * np.arange(1, len(here))] = -here[1:]
        total += negacyclic(coefficients, multiplier)

    assert np.array_equal(total[:patients], records @ weights)


@given(inputs=st.integers(1, 300), patients=st.integers(1, 4096))
def test_all_features_have_room_and_no_ciphertext_is_empty(inputs, patients):
    layout = QueryLayout.of(LINEAR, inputs=inputs, patients=patients)

    assert layout.block >= patients
    assert layout.features * layout.block <= LINEAR.ring_degree
    assert (layout.ciphertexts - 1) * layout.features < inputs <= layout.ciphertexts * layout.features


def test_a_quadratic_model_has_no_empty_slot():
    records = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    layout = QueryLayout.of(QUADRATIC, inputs=2, patients=3)

    slots = layout.arrange(records, QUADRATIC.ring_degree // 2)

    assert slots.shape == (2, 4096)
    assert slots[1, :4].tolist() == [2.0, 4.0, 6.0, 2.0]
    assert (slots > 0).all()


@pytest.mark.parametrize("patients", [0, -1, 4097, 2**32 - 1])
def test_a_query_holds_no_more_patients_than_its_ring(patients):
    with pytest.raises(LengthError):
        QueryLayout.of(LINEAR, inputs=3, patients=patients)
