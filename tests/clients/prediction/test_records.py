"""Records on their way into queries."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from published import LOGISTIC, client, patients, plain, trained_model

from protocol.errors import LengthError, ValueRefusedError
from protocol.prediction.parameters import LINEAR


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 16.1, -1e300])
def test_values_that_are_no_standardised_records_are_refused(value):
    model, records = plain(trained_model(5, LOGISTIC)), patients(4, 5)
    records[2, 3] = value

    with pytest.raises(ValueRefusedError, match="not within"):
        model.query(records, client(LINEAR))


@pytest.mark.parametrize("count", [0, 4097])
def test_a_query_has_at_least_one_patient_and_no_more_than_fit(count):
    with pytest.raises(LengthError):
        plain(trained_model(5, LOGISTIC)).query(patients(count, 5), client(LINEAR))


def test_a_query_of_2000_patients_is_below_a_megabyte_in_both_forms():
    model, records = plain(trained_model(20, LOGISTIC)), patients(2000, 20)

    sizes = [
        len(model.query(records, client(LINEAR), by_device=by_device).to_bytes(model.description))
        for by_device in (False, True)
    ]

    assert sizes == [451_292, 901_212]


def test_scores_have_no_digits_of_noise():
    scores = plain(trained_model(5, LOGISTIC)).score(patients(200, 5), client(LINEAR))

    assert np.array_equal(scores, np.round(scores, 5))


def test_threads_encrypt_side_by_side():
    model, asker, records = plain(trained_model(5, LOGISTIC)), client(LINEAR), patients(400, 5)

    def score(row):
        query = model.query(records[row : row + 1], asker)
        return model.read(model.answer(query, asker), query, asker)[0]

    with ThreadPoolExecutor(16) as pool:
        scores = np.array(list(pool.map(score, range(len(records)))))

    assert np.abs(scores - model.trained.logits(records)).max() <= LINEAR.tolerance
