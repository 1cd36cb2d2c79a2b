"""Encrypted scores against plaintext ones, for models of all forms, sizes and extremes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from published import LOGISTIC, NETWORK, client, encrypted, patients, plain, trained_model

from protocol.errors import ConfigurationError, MalformedError, ParameterError, ParametersMismatchError
from protocol.prediction.description import ModelDescription
from protocol.prediction.parameters import LINEAR, QUADRATIC
from server.prediction.evaluation import DESCRIPTION_FILE, PLAIN_FILE, answer_query, check_public_key, plain_model_of


@settings(max_examples=12, suppress_health_check=list(HealthCheck))
@given(inputs=st.integers(1, 60), count=st.integers(1, 4096), seed=st.integers(0, 9))
def test_encrypted_scores_are_plaintext_scores(inputs, count, seed):
    model = plain(trained_model(inputs, LOGISTIC, seed=seed))
    records = patients(count, inputs, seed=seed)

    scores = model.score(records, client(LINEAR))

    assert np.abs(scores - model.trained.logits(records)).max() <= LINEAR.tolerance


@pytest.mark.parametrize("by_device", [False, True], ids=["by the owner", "by a device"])
@pytest.mark.parametrize("count", [1, 3, 700, 4096])
def test_an_encrypted_model_gives_its_owner_the_plaintext_scores(count, by_device):
    owner = client(LINEAR)
    model = encrypted(trained_model(13, LOGISTIC), owner)
    records = patients(count, 13)

    scores = model.score(records, owner, by_device=by_device)

    assert np.abs(scores - model.trained.logits(records)).max() <= LINEAR.tolerance


def test_a_device_asks_a_plain_model_too():
    model, records = plain(trained_model(13, LOGISTIC)), patients(50, 13)

    scores = model.score(records, client(LINEAR), by_device=True)

    assert np.abs(scores - model.trained.logits(records)).max() <= LINEAR.tolerance


def test_the_largest_scores_that_fit_are_right_and_larger_ones_are_refused():
    trained = trained_model(20, LOGISTIC)
    weights = np.sign(trained.tensors["output.weight"]) * LINEAR.largest_logit / 16 / 20 * 0.999
    tensors = {"output.weight": weights, "output.bias": np.zeros(1)}
    model = plain(replace(trained, tensors=tensors))
    records = np.concatenate([16 * np.sign(weights), -16 * np.sign(weights)])

    assert np.abs(model.score(records, client(LINEAR)) - model.trained.logits(records)).max() <= LINEAR.tolerance
    with pytest.raises(ParameterError, match="weights are too large"):
        plain(replace(trained, tensors=tensors | {"output.weight": weights * 1.01}))


def test_features_without_weight_are_passed_over_and_a_model_of_none_is_refused():
    trained = trained_model(5, LOGISTIC)
    weights = np.array([[0.0, 0.5, 0.0, 0.0, 0.0]])
    tensors = {"output.weight": weights, "output.bias": np.array([0.25])}
    model, records = plain(replace(trained, tensors=tensors)), patients(4096, 5)

    assert np.abs(model.score(records, client(LINEAR)) - model.trained.logits(records)).max() <= LINEAR.tolerance
    with pytest.raises(ParameterError, match="all zero"):
        plain(replace(trained, tensors=tensors | {"output.weight": np.zeros((1, 5))}))


def test_a_weight_that_is_no_number_is_refused():
    trained = trained_model(5, LOGISTIC)

    with pytest.raises(ConfigurationError, match="not a number"):
        plain_model_of(trained.describe("model"), trained.tensors | {"output.weight": np.full((1, 5), np.nan)})


def test_a_query_under_another_key_is_refused():
    model, asker, other = plain(trained_model(5, LOGISTIC)), client(LINEAR), client(LINEAR, 1)
    query = model.query(patients(3, 5), asker)

    with pytest.raises(ParametersMismatchError, match="key of a query"):
        model.answer(query, other)


def test_a_model_that_is_withdrawn_or_replaced_under_a_query_is_not_there(tmp_path, monkeypatch):
    model, asker = plain(trained_model(5, LOGISTIC)), client(LINEAR)
    query = model.query(patients(3, 5), asker).to_bytes(model.description)
    key, directory = tmp_path / "key", tmp_path / "model"
    key.write_bytes(asker.public_key)
    with pytest.raises(ParametersMismatchError, match="there"):
        answer_query(model=directory, key=key, query=query)

    directory.mkdir()
    (directory / DESCRIPTION_FILE).write_bytes(trained_model(5, LOGISTIC).describe("later").to_bytes())
    monkeypatch.setattr(ModelDescription, "from_bytes", replaced_after(ModelDescription.from_bytes, model.description))
    with pytest.raises(ParametersMismatchError, match="model of a query"):
        answer_query(model=directory, key=key, query=query)


def test_a_model_whose_weights_are_replaced_under_a_query_is_another(tmp_path):
    model, asker = plain(trained_model(5, LOGISTIC)), client(LINEAR)
    (tmp_path / "key").write_bytes(asker.public_key)
    (tmp_path / DESCRIPTION_FILE).write_bytes(model.description.to_bytes())
    (tmp_path / PLAIN_FILE).write_bytes(b"of the model that came later")

    with pytest.raises(ParametersMismatchError, match="weights of a model"):
        answer_query(
            model=tmp_path,
            key=tmp_path / "key",
            query=model.query(patients(3, 5), asker).to_bytes(model.description),
        )


def replaced_after(from_bytes, description):
    """Return what reads a description at first, and then what is there."""
    first = iter([description])
    return lambda data: next(first, None) or from_bytes(data)


@pytest.mark.parametrize("terms", [LOGISTIC, NETWORK], ids=["linear", "quadratic"])
def test_a_query_that_is_not_encrypted_is_refused(terms):
    model = plain(trained_model(5, terms))
    asker = client(model.parameters)
    query = model.query(patients(3, 5), asker, by_device=True)
    query.polynomials[:, 1] = 0

    with pytest.raises(MalformedError, match="plaintexts"):
        model.answer(query, asker)


def test_an_encrypted_model_answers_under_its_own_key_alone():
    owner, other = client(LINEAR), client(LINEAR, 1)
    model = encrypted(trained_model(5, LOGISTIC), owner)

    with pytest.raises(ParametersMismatchError, match="key of a query"):
        model.answer(model.query(patients(3, 5), other), other)


def test_another_key_reads_noise():
    model, asker, other = plain(trained_model(5, LOGISTIC)), client(LINEAR), client(LINEAR, 1)
    records = patients(100, 5)
    query = model.query(records, asker)

    read = model.read(model.answer(query, asker), query, other)

    assert np.median(np.abs(read - model.trained.logits(records))) > 100  # one of many comes near by chance


def test_keys_are_checked_before_they_are_kept():
    check_public_key(client(LINEAR).public_key)


@pytest.mark.parametrize("count", [1, 2000, 4096])
def test_a_network_s_encrypted_scores_are_plaintext_scores(count):
    model = plain(trained_model(20, NETWORK))
    records = np.concatenate([patients(count, 20), 16 * np.sign(model.trained.tensors["hidden.0.weight"])])[-count:]

    scores = model.score(records, client(QUADRATIC))

    assert np.abs(scores - model.trained.logits(records)).max() <= QUADRATIC.tolerance


def test_an_encrypted_network_gives_its_owner_the_plaintext_scores():
    owner, terms = client(QUADRATIC), replace(NETWORK, hidden=(3,), personal=("output.bias",))
    model = encrypted(trained_model(6, terms), owner)
    records = np.concatenate([patients(99, 6), 16 * np.sign(model.trained.tensors["hidden.0.weight"])])

    scores = model.score(records, owner, by_device=True)

    assert np.abs(scores - model.trained.logits(records)).max() <= QUADRATIC.tolerance


def test_hidden_units_that_depend_on_no_record_are_part_of_the_constant():
    trained = trained_model(4, NETWORK)
    weights, outputs = trained.tensors["hidden.0.weight"].copy(), trained.tensors["output.weight"].copy()
    weights[3], weights[5, 2], outputs[0, 7] = 0.0, 0.0, 0.0
    tensors = {**trained.tensors, "hidden.0.weight": weights, "output.weight": outputs}
    model, records = plain(replace(trained, tensors=tensors)), patients(20, 4)

    scores = model.score(records, client(QUADRATIC))

    assert np.abs(scores - model.trained.logits(records)).max() <= QUADRATIC.tolerance
    with pytest.raises(ParameterError, match="no hidden unit"):
        plain(replace(trained, tensors=tensors | {"hidden.0.weight": np.zeros((16, 4))}))


def test_a_personal_bias_is_not_the_service_s_to_add():
    for terms in (LOGISTIC, NETWORK):
        trained = trained_model(4, replace(terms, personal=("output.bias",)))
        model = plain(trained)
        records, bias = patients(20, 4), trained.tensors["output.bias"][0]
        assert "output.bias" not in model.trained.tensors

        scores = model.score(records, client(model.parameters))

        assert np.abs(scores + bias - trained.logits(records)).max() <= model.parameters.tolerance
