"""The canonical embedding, against the definition: a polynomial's values at SEAL's slot roots."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from protocol.embedding import CanonicalEmbedding, canonical_embedding


def values_at_the_roots(coefficients):
    """Evaluate each polynomial at zeta^(3^i), zeta = exp(i pi / N), term by term."""
    degree = coefficients.shape[1]
    exponents = [pow(3, slot, 2 * degree) for slot in range(degree // 2)]
    powers = np.outer(exponents, np.arange(degree)) % (2 * degree)
    return coefficients @ np.exp(1j * np.pi * powers / degree).T


def polynomials(degree):
    return arrays.arrays(np.int64, (2, degree), elements=st.integers(-(1 << 30), 1 << 30))


@given(st.sampled_from([4, 8, 32, 64]).flatmap(polynomials))
def test_slots_are_the_polynomial_s_values_at_the_slot_roots(coefficients):
    slots = CanonicalEmbedding(coefficients.shape[1]).slots(coefficients)

    expected = values_at_the_roots(coefficients)
    assert slots.shape == expected.shape
    assert np.allclose(slots, expected, rtol=0, atol=1e-12 * (1 << 30) * coefficients.shape[1])


@pytest.mark.parametrize("degree", [2048, 4096])
@pytest.mark.parametrize("bits", [20, 38])
def test_coefficients_come_back_exactly(degree, bits):
    limit = 1 << bits
    random = np.random.default_rng(degree)
    coefficients = np.stack(
        [
            np.full(degree, limit),
            np.where(np.arange(degree) % 2, limit, -limit),
            np.eye(1, degree, 1, dtype=np.int64)[0] * limit,
            random.integers(-limit, limit, degree, endpoint=True),
        ]
    )
    embedding = canonical_embedding(degree)

    back = embedding.coefficients(embedding.slots(coefficients))

    assert back.dtype == np.float64
    assert np.abs(back - coefficients).max() < 1 / 64
    assert np.array_equal(np.rint(back).astype(np.int64), coefficients)


def test_the_input_is_left_as_it_is():
    coefficients = np.arange(16, dtype=np.int64).reshape(1, 16)
    embedding = canonical_embedding(16)
    slots = embedding.slots(coefficients)
    kept = slots.copy()

    embedding.coefficients(slots)

    assert np.array_equal(coefficients, np.arange(16).reshape(1, 16))
    assert np.array_equal(slots, kept)


def test_the_tables_of_a_degree_are_made_once():
    assert canonical_embedding(2048) is canonical_embedding(2048)
