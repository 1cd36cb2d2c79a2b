"""Treated answers: integers that are drawn and added exactly, and what lies beside the scores."""

from __future__ import annotations

import numpy as np
import pytest
from published import LOGISTIC, client, patients, plain, trained_model

from protocol.prediction.backend import prediction_backend
from protocol.prediction.messages import Answer
from protocol.prediction.parameters import LINEAR, PARAMETER_SETS, QUADRATIC
from server.prediction.treatment import noise, uniform_integers, wide_residues


def integers(limbs):
    """Return the integers that limbs stand for."""
    return sum(limb.astype(object) << (15 * place) for place, limb in enumerate(limbs[::-1]))


@pytest.mark.parametrize("bits", [1, 14, 15, 16, 60, 67, 152])
def test_integers_are_uniform_over_their_range(bits):
    drawn = integers(uniform_integers(bits, 20_000))

    assert min(drawn) >= -(2 ** (bits - 1))
    assert max(drawn) < 2 ** (bits - 1)
    shares = np.array([float(value) for value in drawn]) / 2.0**bits
    assert abs(shares.mean() + 2.0**-bits / 2) < 0.01
    # the lowest digits are as random as the highest: else noise would show through
    assert 0.45 < np.mean([value & 1 for value in drawn]) < 0.55


@pytest.mark.parametrize("parameters", PARAMETER_SETS, ids=lambda parameters: parameters.name)
def test_wide_integers_are_added_exactly(parameters):
    backend, primes = prediction_backend(parameters), len(parameters.sum_primes)
    constant = np.zeros((11, parameters.ring_degree), dtype=np.int64)
    constant[:, 0] = uniform_integers(165, 1)[:, 0]

    residues = wide_residues(constant, backend, primes)

    (value,) = integers(constant[:, :1])
    assert residues.tolist() == [[value % prime] * parameters.ring_degree for prime in parameters.primes[:primes]]


def test_scores_are_flooded_and_what_lies_beside_them_is_blinded():
    drawn = integers(noise(LINEAR, 100))

    assert all(abs(value) < 2**LINEAR.flood_bits for value in drawn[:100])
    assert min(abs(value) for value in drawn[100:]) > 2**90
    assert max(abs(value) for value in drawn[:100]) > 2 ** (LINEAR.flood_bits - 4)


def test_blinding_is_imaginary_at_every_slot():
    degree = QUADRATIC.ring_degree
    drawn = integers(noise(QUADRATIC, 5))

    wide = drawn - np.array([*drawn[:1], *drawn[:0:-1]])  # b_i - b_(N-i): the flooding's alone
    assert max(map(abs, wide)) < 2 ** (QUADRATIC.flood_bits + 1)
    assert abs(drawn[0]) < 2**QUADRATIC.flood_bits
    assert min(map(abs, drawn[1:degree])) > 2**100


def test_two_answers_to_one_query_agree_in_the_scores_alone():
    model, asker = plain(trained_model(5, LOGISTIC)), client(LINEAR)
    query = model.query(patients(10, 5), asker)

    def coefficients():
        answer = Answer.from_bytes(model.answer(query, asker), model.description, query.header)
        return asker.key.decrypt_coefficients(answer.polynomials[0])

    difference = np.abs(coefficients() - coefficients())

    assert difference[:10].max() < LINEAR.tolerance
    assert np.median(difference[10:]) > 100
