"""Messages of predictions: what is parsed is what was written, and nothing else is parsed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from published import LOGISTIC, client, encrypted, patients, plain, trained_model

from protocol.errors import LengthError, MalformedError, ParametersMismatchError, ProtocolError, ResidueRangeError
from protocol.prediction.messages import Answer, EncryptedModel, PublicKey, Query, QueryHeader, key_id, weight_count
from protocol.prediction.parameters import LINEAR, QUADRATIC
from protocol.prediction.wire import HEADER_BYTES

INPUTS = 5


@pytest.fixture(scope="module")
def model():
    return plain(trained_model(INPUTS, LOGISTIC))


@pytest.fixture(scope="module")
def asker():
    return client(LINEAR)


@pytest.fixture(scope="module")
def query(model, asker):
    return model.query(patients(3, INPUTS), asker)


@pytest.fixture(scope="module")
def data(model, query):
    return query.to_bytes(model.description)


@pytest.mark.parametrize("by_device", [False, True])
def test_a_query_comes_back_as_it_was(model, asker, by_device):
    query = model.query(patients(3, INPUTS), asker, by_device=by_device)

    again = Query.from_bytes(query.to_bytes(model.description), model.description)

    assert again.header == query.header == QueryHeader.of(query.to_bytes(model.description))
    assert np.array_equal(again.polynomials, query.polynomials)
    assert again.seeds == query.seeds
    assert bool(again.seeds) is again.header.is_seeded is not by_device


def test_an_answer_and_a_key_come_back_as_they_were(model, asker, query):
    data = model.answer(query, asker)
    answer = Answer.from_bytes(data, model.description, query.header)
    assert answer.to_bytes(model.description) == data

    key = PublicKey.from_bytes(asker.public_key, LINEAR)
    assert key.to_bytes(LINEAR) == asker.public_key
    assert PublicKey.parameters_of(asker.public_key) is LINEAR


def test_an_encrypted_model_comes_back_as_it_was(asker):
    model = encrypted(trained_model(INPUTS, LOGISTIC), asker)

    weights = EncryptedModel.from_bytes(model.weights, model.description)

    assert weights.to_bytes(LINEAR, asker.key_id) == model.weights
    assert len(weights.seeds) == weight_count(model.description) == INPUTS


def test_every_length_but_one_is_refused(model, data):
    for wrong in (b"", data[:3], data[: HEADER_BYTES - 1], data[:HEADER_BYTES], data[:-1], data + b"\0", data[:-64]):
        with pytest.raises(LengthError):
            Query.from_bytes(wrong, model.description)


def test_a_residue_of_the_prime_or_more_is_refused(model, data):
    for width, place in ((6, HEADER_BYTES), (5, HEADER_BYTES + 6 * LINEAR.ring_degree)):
        for value in (LINEAR.primes[0 if width == 6 else 1], 2 ** (8 * width) - 1):
            forged = data[:place] + value.to_bytes(width, "little") + data[place + width :]
            with pytest.raises(ResidueRangeError):
                Query.from_bytes(forged, model.description)


def test_a_query_for_another_model_or_with_other_parameters_is_refused(model, query, data):
    other = replace(model.description, mean=(1.0,) * INPUTS)
    with pytest.raises(ParametersMismatchError, match="model of a query"):
        Query.from_bytes(data, other)
    with pytest.raises(ParametersMismatchError, match="parameter set"):
        Query.from_bytes(data[:4] + b"\2" + data[5:], model.description)


@pytest.mark.parametrize("place", [0, 5, 6, 7], ids=["magic", "form", "padding", "padding"])
def test_a_header_has_one_encoding(model, data, place):
    with pytest.raises(MalformedError):
        Query.from_bytes(data[:place] + b"\7" + data[place + 1 :], model.description)


@pytest.mark.parametrize("patients_claimed", [0, 4097, 2**32 - 1])
def test_a_count_that_no_query_has_is_refused_before_anything_is_made_of_it(model, data, patients_claimed):
    forged = data[:8] + patients_claimed.to_bytes(4, "little") + data[12:]

    with pytest.raises(LengthError):
        Query.from_bytes(forged, model.description)


def test_an_answer_to_another_query_is_refused(model, asker, query):
    data = model.answer(query, asker)

    for other in (
        replace(query.header, request=bytes(16)),
        replace(query.header, key=bytes(32)),
        replace(query.header, patients=2),
    ):
        with pytest.raises(ParametersMismatchError, match="one to this query"):
            Answer.from_bytes(data, model.description, other)


def test_a_key_of_other_parameters_is_refused(asker):
    with pytest.raises(ParametersMismatchError):
        PublicKey.from_bytes(asker.public_key, QUADRATIC)
    with pytest.raises(LengthError):
        PublicKey.from_bytes(asker.public_key[:-1], LINEAR)


def test_an_encrypted_model_under_another_key_or_of_another_size_is_refused(asker):
    model = encrypted(trained_model(INPUTS, LOGISTIC), asker)

    with pytest.raises(ParametersMismatchError):
        EncryptedModel.from_bytes(model.weights, replace(model.description, key="11" * 32))
    larger = trained_model(INPUTS + 1, LOGISTIC).describe(
        "model", form="encrypted", owner="hospital", key=asker.key_id.hex()
    )
    with pytest.raises(ParametersMismatchError):
        EncryptedModel.from_bytes(model.weights, larger)


def test_a_key_s_id_is_another_for_another_key(asker):
    assert key_id(asker.public_key) != key_id(client(LINEAR, 1).public_key)


@given(place=st.integers(0, HEADER_BYTES + 200), value=st.integers(0, 255), end=st.integers(0, 400))
def test_changed_and_cut_messages_raise_nothing_but_named_errors(model, asker, query, data, place, value, end):
    changed = data[:place] + bytes([value]) + data[place + 1 :]
    for hostile in (changed, changed[: len(data) - end], changed[:end]):
        for parse in (
            QueryHeader.of,
            PublicKey.parameters_of,
            lambda raw: Query.from_bytes(raw, model.description),
            lambda raw: Answer.from_bytes(raw, model.description, query.header),
            lambda raw: PublicKey.from_bytes(raw, LINEAR),
        ):
            try:
                parse(hostile)
            except ProtocolError:
                continue
