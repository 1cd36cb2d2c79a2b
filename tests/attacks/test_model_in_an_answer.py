"""Attack: a clinic reads the weights of a plaintext model out of what the service answers.

Its scores give a linear model away after inputs + 1 patients, and nothing can change that. An untreated answer does so
at once: for one patient, or without a look at any score.
"""

from __future__ import annotations

import numpy as np
import pytest
from published import LOGISTIC, NETWORK, client, patients, plain, trained_model

import server.prediction.evaluation
import server.prediction.treatment
from protocol.errors import ProtocolError
from protocol.prediction.backend import prediction_backend
from protocol.prediction.messages import Answer, PublicKey, Query, QueryHeader, key_id
from protocol.prediction.parameters import LINEAR, QUADRATIC
from protocol.prediction.wire import Header
from server.prediction.evaluation import answer_with, check_public_key
from server.prediction.treatment import treat

INPUTS = 13


@pytest.fixture
def model():
    return plain(trained_model(INPUTS, LOGISTIC))


@pytest.fixture
def untreated(monkeypatch):
    monkeypatch.setattr(server.prediction.evaluation, "treat", lambda scores, *_, **__: scores)


def weights_between_the_scores(model, asker):
    """Ask for one patient, and solve for the weights: each coefficient of the answer is another sum of them."""
    records = patients(1, INPUTS)
    query = model.query(records, asker)
    answer = Answer.from_bytes(model.answer(query, asker), model.description, query.header)
    found = asker.key.decrypt_coefficients(answer.polynomials[0])
    # the records are x_0 + x_1 X + ..., times w_0 - w_1 X^(N-1) - ...; what comes back above X^(N - 13) has no x_0 w_0
    rows = np.zeros((2 * INPUTS - 1, INPUTS + 1))
    for feature, value in enumerate(records[0]):
        for weight in range(INPUTS):
            place = feature - weight
            rows[place + INPUTS - 1, weight] += value if place >= 0 else -value
    rows[:, INPUTS] = 1  # the intercept
    places = np.arange(-INPUTS + 1, INPUTS) % LINEAR.ring_degree
    return np.linalg.lstsq(rows, found[places], rcond=None)[0][:INPUTS]


def test_an_untreated_answer_for_one_patient_holds_all_weights(model, untreated):
    weights = model.trained.tensors["output.weight"][0]

    assert np.allclose(weights_between_the_scores(model, client(LINEAR)), weights, atol=1e-5)


def test_a_treated_answer_for_one_patient_holds_its_score(model):
    weights = model.trained.tensors["output.weight"][0]

    found = weights_between_the_scores(model, client(LINEAR))

    assert np.abs(found - weights).min() > 1e-3


def second_polynomials(model, query):
    backend = prediction_backend(LINEAR)
    return [
        backend.save(backend.load_seeded(first[0], seed), polynomials=2, primes=2)[1, 0]
        for first, seed in zip(query.polynomials, query.seeds, strict=True)
    ]


def weights_in_second_polynomial(model, asker, *, is_treated):
    """Solve for the weights in the field of the first prime: the second polynomial is their sum over known ones."""
    query = model.query(patients(LINEAR.ring_degree, INPUTS), asker)
    scores = model.model.evaluate(query)
    if is_treated:
        key = PublicKey.from_bytes(asker.public_key, LINEAR)
        scores = treat(scores, model.description, key, patients=query.header.patients)
    total = prediction_backend(LINEAR).save(scores, polynomials=2, primes=2)[1, 0]
    prime = LINEAR.primes[0]
    known = second_polynomials(model, query)
    equations = [[*(int(one[row]) for one in known), int(total[row])] for row in range(INPUTS)]
    solution = solved(equations, prime)
    return np.array([value if value < prime // 2 else value - prime for value in solution]) / 2.0**LINEAR.weight_bits


def solved(rows, prime):
    """Return the solution of a square system mod a prime."""
    for column in range(len(rows)):
        pivot = next(row for row in range(column, len(rows)) if rows[row][column])
        rows[column], rows[pivot] = rows[pivot], rows[column]
        inverse = pow(rows[column][column], -1, prime)
        rows[column] = [value * inverse % prime for value in rows[column]]
        for row in range(len(rows)):
            if row != column:
                factor = rows[row][column]
                rows[row] = [(a - factor * b) % prime for a, b in zip(rows[row], rows[column], strict=True)]
    return [row[-1] for row in rows]


def test_the_second_polynomial_of_an_untreated_answer_holds_all_weights_to_the_last_bit(model):
    weights = np.rint(model.trained.tensors["output.weight"][0] * 2.0**LINEAR.weight_bits) / 2.0**LINEAR.weight_bits

    assert np.array_equal(weights_in_second_polynomial(model, client(LINEAR), is_treated=False), weights)


def test_the_second_polynomial_of_a_treated_answer_holds_none(model):
    weights = model.trained.tensors["output.weight"][0]

    found = weights_in_second_polynomial(model, client(LINEAR), is_treated=True)

    assert np.abs(found - weights).min() > 1e-3


def test_without_re_randomising_two_answers_to_one_query_have_one_second_polynomial(model, monkeypatch):
    asker = client(LINEAR)
    query = model.query(patients(3, INPUTS), asker)

    def seconds():
        answers = [model.answer(query, asker) for _ in range(2)]
        return [Answer.from_bytes(answer, model.description, query.header).polynomials[0, 1] for answer in answers]

    first, again = seconds()
    assert not np.array_equal(first, again)

    monkeypatch.setattr(server.prediction.treatment, "rerandomise", lambda polynomials, *_: polynomials.copy())
    first, again = seconds()
    assert np.array_equal(first, again)  # so it tells any two models apart that a clinic can think of


def test_nobody_chooses_a_public_key_under_which_answers_are_not_re_randomised(model):
    """Zero, or a small polynomial: one patient's answer would hold all weights."""
    primes, degree = LINEAR.key_primes, LINEAR.ring_degree
    body = b"".join(bytes(2 * degree * -(-prime.bit_length() // 8)) for prime in primes)
    for is_seeded in (False, True):
        header = Header(magic=PublicKey.MAGIC, parameters=LINEAR.number, is_seeded=is_seeded)
        with pytest.raises(ProtocolError):
            check_public_key(header.to_bytes() + body)


def test_under_a_public_key_of_zero_and_a_seed_one_patient_s_answer_holds_no_weight(model, monkeypatch):
    weights = model.trained.tensors["output.weight"][0]
    assert np.abs(weights_under_a_key_of_zero(model) - weights).min() > 1e-3

    monkeypatch.setattr(server.prediction.treatment, "rerandomise", lambda polynomials, *_: polynomials.copy())
    assert np.allclose(weights_under_a_key_of_zero(model), weights, atol=1e-9)


def weights_under_a_key_of_zero(model):
    zero = PublicKey(polynomials=np.zeros((1, 1, 3, LINEAR.ring_degree), dtype=np.uint64), seed=bytes(64))
    key = zero.to_bytes(LINEAR)
    check_public_key(key)
    asked = QueryHeader(model=model.description.digest, key=key_id(key), patients=1, request=bytes(16), is_seeded=False)
    polynomials = np.zeros((1, 2, 2, LINEAR.ring_degree), dtype=np.uint64)
    polynomials[0, 1, 0] = LINEAR.primes[1]  # the one polynomial, times what is dropped at the end
    query = Query(header=asked, polynomials=polynomials).to_bytes(model.description)

    data = answer_with(model.model, model.description, key, query)
    first, second = Answer.from_bytes(data, model.description, asked).polynomials[0]

    readable = np.stack([second, np.zeros_like(first)])  # in place of the first polynomial, and nothing to decrypt
    found = client(LINEAR).key.decrypt_coefficients(readable) * LINEAR.unit / 2.0**LINEAR.weight_bits
    return np.array([found[0], *-found[:-INPUTS:-1]])


def spread_of_scores(model):
    """Return how far apart the scores of one query are from answer to answer, as integers before they are divided."""
    asker = client(LINEAR)
    query = model.query(patients(200, INPUTS), asker)

    def scores():
        answer = Answer.from_bytes(model.answer(query, asker), model.description, query.header)
        return asker.key.decrypt_coefficients(answer.polynomials[0])[:200]

    return np.abs(scores() - scores()).max() * model.parameters.sum_unit


def test_scores_are_flooded_far_above_the_noise_that_could_tell_more(model, monkeypatch):
    assert spread_of_scores(model) > LINEAR.noise_bound * 2.0**40

    monkeypatch.setattr(
        server.prediction.treatment, "uniform_integers", lambda bits, count: np.zeros((-(-bits // 15), count), np.int64)
    )
    assert spread_of_scores(model) < LINEAR.noise_bound * 2.0**40


def imaginary_parts(model, asker):
    query = model.query(patients(500, INPUTS), asker)
    answer = Answer.from_bytes(model.answer(query, asker), model.description, query.header)
    return np.abs(asker.key.decrypt(answer.polynomials[0]).imag)


def test_beside_a_network_s_scores_lies_nothing(monkeypatch):
    """Imaginary parts are the model's derivatives times noise that the clinic knows."""
    model, asker = plain(trained_model(INPUTS, NETWORK)), client(QUADRATIC)
    assert np.median(imaginary_parts(model, asker)) > 1e6

    monkeypatch.setattr(server.prediction.evaluation, "treat", lambda scores, *_, **__: scores)
    assert imaginary_parts(model, asker).max() < 1e-3


def test_all_polynomials_of_a_network_s_answer_are_re_randomised(monkeypatch):
    model, asker = plain(trained_model(INPUTS, NETWORK)), client(QUADRATIC)
    query = model.query(patients(2, INPUTS), asker)

    def repeated():
        """Return which polynomials are the same in two answers to one query."""
        first, again = (
            Answer.from_bytes(model.answer(query, asker), model.description, query.header).polynomials[0]
            for _ in range(2)
        )
        return [bool(np.array_equal(*pair)) for pair in zip(first, again, strict=True)]

    assert repeated() == [False, False, False]

    monkeypatch.setattr(server.prediction.treatment, "rerandomise", lambda polynomials, *_: polynomials.copy())
    assert repeated() == [False, True, True]
