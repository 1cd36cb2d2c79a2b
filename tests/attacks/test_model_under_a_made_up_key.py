"""Attack: under a public key that is none, the scores of 256 patients tell all weights, of however many inputs.

Not defended: the first polynomial of a public key is its owner's word. One that holds no secret but powers of three
shows, where scores are, the randomness of an encryption of zero; with that the second polynomial is read. Scores tell a
model of fewer inputs as well, from one patient more than it has inputs.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from published import LOGISTIC, client, plain, trained_model

from protocol.data_terms import ColumnTerms
from protocol.prediction.backend import prediction_backend
from protocol.prediction.layout import QueryLayout
from protocol.prediction.messages import Answer, PublicKey, Query, QueryHeader, key_id
from protocol.prediction.parameters import LINEAR
from server.prediction.evaluation import answer_with, check_public_key

INPUTS, PATIENTS = 300, 256
DEGREE = LINEAR.ring_degree
DIGITS = DEGREE // PATIENTS
BACKEND = prediction_backend(LINEAR)
SPECIAL = LINEAR.special_prime
SHOWN = 1 << (LINEAR.flood_bits + 1)
"""What one stands for in the randomness that is shown: it lies above the flooding."""


def test_fewer_scores_than_inputs_tell_all_weights():
    model = plain(of_categories(trained_model(75, LOGISTIC)))

    found = weights_under_a_made_up_key(model)

    assert np.abs(found - model.trained.tensors["output.weight"][0]).max() < 1e-9


def test_so_many_patients_are_enough_as_security_md_says():
    bits = math.log2(math.prod(LINEAR.primes)) - LINEAR.flood_bits

    assert round(DEGREE * math.log2(3) / bits, -1) == 230


def of_categories(trained):
    """Return a model of as many inputs; a table has fewer columns."""
    columns = tuple(
        ColumnTerms(name=f"c{number}", kind="category", categories=("1", "2", "3", "4"))
        for number in range(INPUTS // 4)
    )
    weights = np.random.default_rng(4).normal(scale=0.3, size=(1, INPUTS))
    return replace(
        trained,
        data=replace(trained.data, columns=columns),
        tensors={**trained.tensors, "output.weight": weights},
        mean=np.zeros(INPUTS),
        deviation=np.ones(INPUTS),
    )


def weights_under_a_made_up_key(model):
    key = made_up_key()
    check_public_key(key.to_bytes(LINEAR))
    identifier = key_id(key.to_bytes(LINEAR))
    asked = QueryHeader(
        model=model.description.digest, key=identifier, patients=PATIENTS, request=bytes(16), is_seeded=False
    )
    layout = QueryLayout.of(LINEAR, inputs=INPUTS, patients=PATIENTS)
    polynomials = np.zeros((layout.ciphertexts, 2, len(LINEAR.primes), DEGREE), dtype=np.uint64)
    for row, second in enumerate(polynomials[:, 1]):
        # all weights of one ciphertext come to lie in coefficients of their own, times what is dropped at the end
        second[0] = times(residues(monomial(row), 1), LINEAR.primes[1], LINEAR.primes[:1])[0]
    query = Query(header=asked, polynomials=polynomials).to_bytes(model.description)
    data = answer_with(model.model, model.description, key.to_bytes(LINEAR), query)
    first, second = Answer.from_bytes(data, model.description, asked).polynomials[0]

    bias = float(model.trained.tensors["output.bias"][0])
    randomness = digits(np.rint((coefficients(first) - bias * LINEAR.unit) * LINEAR.primes[1] / SHOWN))
    left = (second.astype(object) - masking(key, randomness).astype(object)) % LINEAR.primes[0]
    read = coefficients(left.astype(np.uint64)) / 2.0**LINEAR.weight_bits
    rows, places = np.divmod(np.arange(INPUTS), layout.features)
    return np.where(places == 0, read[rows], -read[(rows - layout.block * places) % DEGREE])


def made_up_key():
    """Return P 2^61 (1 + 3 X^-256 + 9 X^-512 + ...) and a seed."""
    primes = LINEAR.key_primes
    total = np.zeros((len(primes), DEGREE), dtype=object)
    for power in range(DIGITS):
        total += times(residues(monomial(-PATIENTS * power), len(primes)), SPECIAL * SHOWN * 3**power, primes)
    total %= np.array(primes, dtype=object)[:, np.newaxis]
    return PublicKey(polynomials=total.astype(np.uint64)[np.newaxis, np.newaxis], seed=bytes(64))


def digits(shown):
    """Return the randomness, -1, 0 or 1 in each coefficient, of sums in which its digits stand for powers of three."""
    found, rest = np.zeros(DEGREE), shown[:PATIENTS].astype(np.int64)
    for power in range(DIGITS):
        digit = (rest + 1) % 3 - 1
        found[PATIENTS * power : PATIENTS * (power + 1)] = digit
        rest = (rest - digit) // 3
    assert not rest.any()
    return found


def masking(key, randomness):
    """Return what an encryption of zero adds to an answer's second polynomial, but for its error; shape (1, N)."""
    primes = LINEAR.key_primes
    second = BACKEND.save(BACKEND.load_public_key(key), polynomials=2, primes=len(primes))[1]
    column = np.array(primes, dtype=object)[:, np.newaxis]
    product = second.astype(object) * residues(randomness, len(primes)) % column
    # divided by the special prime, and rounded
    remainder = (special_coefficients(product[-1]) + SPECIAL // 2) % SPECIAL - SPECIAL // 2
    rounded = product[:-1] - residues(remainder.astype(np.float64), len(primes) - 1)
    inverse = np.array([pow(SPECIAL, -1, prime) for prime in LINEAR.primes], dtype=object)[:, np.newaxis]
    divided = (rounded * inverse % column[:-1]).astype(np.uint64)
    ciphertext = BACKEND.load(np.stack([np.ones_like(divided), divided]))
    BACKEND.drop(ciphertext, 1)
    return BACKEND.save(ciphertext, polynomials=2, primes=1)[1]


def special_coefficients(values):
    """Return the coefficients of a polynomial that is given by its values modulo the special prime."""
    points = residues(monomial(1), len(LINEAR.key_primes))[-1].astype(np.int64)
    inverses = np.array([pow(int(point), -1, SPECIAL) for point in points], dtype=np.int64)
    terms, found = values.astype(np.int64), np.empty(DEGREE, dtype=np.int64)
    for place in range(DEGREE):
        found[place] = terms.sum() % SPECIAL
        terms = terms * inverses % SPECIAL
    return found * pow(DEGREE, -1, SPECIAL) % SPECIAL


def coefficients(polynomial):
    """Return the coefficients of one modulo the first prime, shape (1, N), as doubles of shape (N,)."""
    alone = np.stack([polynomial, np.zeros_like(polynomial)])
    return client(LINEAR).key.decrypt_coefficients(alone) * LINEAR.unit


def monomial(power):
    """Return the coefficients of X^power, where X^N = -1."""
    found = np.zeros(DEGREE)
    found[power % DEGREE] = 1.0 if power >= 0 else -1.0
    return found


def residues(polynomial, primes):
    return BACKEND.residues(BACKEND.encode(polynomial, primes), primes).astype(object)


def times(polynomial, factor, primes):
    return polynomial * factor % np.array(primes, dtype=object)[:, np.newaxis]
