"""Attack: a service that makes its answer up writes the reader's secret key into the last digits of the scores.

Not defended: whoever decrypts what others chose, and shows them the result, shows the key. Known patients do not find
it, for the digits are below what a score may be off by. So scores must not come to whoever may know the service.
"""

from __future__ import annotations

import numpy as np
import pytest
from published import LOGISTIC, client, patients, plain, trained_model

from clients.prediction.canaries import Mixture
from protocol.errors import AnswerRefusedError
from protocol.prediction.backend import prediction_backend
from protocol.prediction.messages import Answer
from protocol.prediction.parameters import LINEAR

SCORE = 0.12345


def key_in_scores(digit):
    """Answer as such a service does; return scores as they are read, the key that they show, and the query."""
    model, asker = plain(trained_model(5, LOGISTIC)), client(LINEAR)
    query = model.query(patients(LINEAR.patients, 5), asker)
    backend = prediction_backend(LINEAR)
    made_up = np.zeros((1, 2, 1, LINEAR.ring_degree), dtype=np.uint64)
    made_up[0, 0] = backend.residues(backend.encode(np.full(LINEAR.ring_degree, SCORE * LINEAR.unit), 1), 1)
    made_up[0, 1] = round(digit * LINEAR.unit)  # times the key
    scores = model.read(Answer(query=query.header, polynomials=made_up).to_bytes(model.description), query, asker)
    return scores, np.rint((scores - SCORE) / digit), query


def among(scores, known):
    """Return scores in which the last ones are known patients'."""
    order = np.arange(len(scores))
    mixture = Mixture(records=np.empty((len(scores), 5)), order=order, known=np.full(known, SCORE))
    return mixture.patients_scores(scores, LINEAR.tolerance)


def test_scores_that_are_passed_on_hold_the_key_and_no_known_patient_shows_it():
    scores, key, query = key_in_scores(3e-5)

    assert len(among(scores, known=96)) == LINEAR.patients - 96
    assert reads_records(key, query)
    assert not reads_records(np.roll(key, 1), query)


def test_digits_that_are_larger_are_found_by_known_patients():
    scores, key, query = key_in_scores(1e-3)

    assert reads_records(key, query)
    with pytest.raises(AnswerRefusedError):
        among(scores, known=96)


def reads_records(key, query):
    """Return whether a key, integers of shape (N,), is the one that a query was encrypted under."""
    backend, primes = prediction_backend(LINEAR), len(LINEAR.primes)
    first = query.polynomials[0, 0]
    second = backend.save(backend.load_seeded(first, query.seeds[0]), polynomials=2, primes=primes)[1]
    product = [
        [int(a) * int(b) % prime for a, b in zip(left, right, strict=True)]
        for left, right, prime in zip(
            second, backend.residues(backend.encode(key, primes), primes), LINEAR.primes, strict=True
        )
    ]
    opened = (first + np.array(product, dtype=np.uint64)) % np.array(LINEAR.primes, dtype=np.uint64)[:, np.newaxis]
    record = client(LINEAR, 9).key.decrypt_coefficients(np.stack([opened, np.zeros_like(opened)]))
    return bool(np.abs(record * LINEAR.unit).max() <= 17 * 2.0**LINEAR.record_bits)
