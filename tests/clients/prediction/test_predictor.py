"""Scores through a service that sees neither patients nor scores; the evaluation is the server's own."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from published import LOGISTIC, encrypted, plain, trained_model
from published import Client as KeyHolder
from scipy.sparse import csr_matrix
from scipy.special import expit
from served import InProcessService, model_file

from clients.prediction import Canaries, EncryptedPredictor
from clients.prediction import asking as asking_module
from clients.prediction.asking import MOST_QUERY_BYTES, patients_per_query
from clients.prediction.canaries import MARGIN
from clients.prediction.key_store import KEYS, KeyStore
from clients.prediction.publication import prepare_model, publish_model
from clients.secrets.vault import Vault
from protocol.errors import (
    AnswerRefusedError,
    ConfigurationError,
    ParametersMismatchError,
    SecretMaterialError,
    ServiceError,
)
from protocol.prediction.messages import query_bytes
from protocol.prediction.parameters import LINEAR
from protocol.terms import ModelTerms

SECRET = "s3cret-98765"
PERSONAL = ModelTerms(personal=("output.bias",))


def logits_of(trained, records):
    """Return plaintext scores of records in the columns' units."""
    return trained.logits(trained.describe("model").standardised(records))


def test_probabilities_are_those_of_the_model_in_plaintext(offered, trained, vault, records):
    predictor = EncryptedPredictor(offered, "model", vault=vault)
    expected = logits_of(trained, records)

    assert np.abs(predictor.decision_function(records) - expected).max() < LINEAR.tolerance
    probabilities = predictor.predict_proba(records)
    assert probabilities.shape == (len(records), 2)
    assert np.abs(probabilities[:, 1] - expit(expected)).max() < LINEAR.tolerance
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    np.testing.assert_array_equal(predictor.predict(records), expected > 0)


def test_a_missing_value_is_taken_for_the_mean(offered, trained, vault):
    records = np.array([trained.mean])
    records[0, 2] = np.nan
    predictor = EncryptedPredictor(offered, "model", vault=vault)

    assert predictor.decision_function(records) == pytest.approx(trained.tensors["output.bias"], abs=1e-4)


def test_many_patients_travel_in_several_queries_and_come_back_in_order(offered, trained, vault, records, monkeypatch):
    monkeypatch.setattr(asking_module, "MOST_QUERY_BYTES", 1)
    predictor = EncryptedPredictor(offered, "model", vault=vault)
    told = []

    logits = predictor.decision_function(records[:7], told=lambda done, total: told.append((done, total)))

    assert np.abs(logits - logits_of(trained, records[:7])).max() < LINEAR.tolerance
    assert [what for what, _ in offered.sent] == ["register", *["predict"] * 7]
    assert told == [(count, 7) for count in range(1, 8)]


@pytest.mark.parametrize("is_seeded", [True, False])
@pytest.mark.parametrize("inputs", [1, 13, 20, 60, 200])
def test_queries_stay_below_their_bound_and_are_not_smaller_than_need_be(inputs, is_seeded):
    description = trained_model(inputs, LOGISTIC).describe("model")

    patients = patients_per_query(description, is_seeded=is_seeded)

    assert query_bytes(description, patients=patients, is_seeded=is_seeded) <= MOST_QUERY_BYTES
    if patients < LINEAR.patients:
        assert query_bytes(description, patients=2 * patients, is_seeded=is_seeded) > MOST_QUERY_BYTES


def test_the_predicted_length_is_that_of_the_query(offered, vault, records):
    EncryptedPredictor(offered, "model", vault=vault).decision_function(records)

    description = offered.describe("model")
    assert offered.sent[-1] == ("predict", query_bytes(description, patients=len(records), is_seeded=True))


def test_no_patients_need_no_service(offered, vault):
    assert len(EncryptedPredictor(offered, "model", vault=vault).decision_function(np.empty((0, 5)))) == 0
    assert offered.sent == []


@pytest.mark.parametrize("shape", [(5,), (3, 4), (3, 6)])
def test_records_of_another_shape_are_refused_before_anything_is_sent(offered, vault, shape):
    with pytest.raises(ConfigurationError, match=r"takes \(n, 5\)"):
        EncryptedPredictor(offered, "model", vault=vault).decision_function(np.zeros(shape))
    assert offered.sent == []


class Frame:
    """What a data frame is to NumPy and to us."""

    def __init__(self, values, columns):
        self._values, self.columns = values, columns

    def __array__(self, dtype=None, copy=None):
        return np.array(self._values, dtype=dtype)


def test_a_data_frame_is_scored_by_the_names_of_its_columns(offered, vault, records):
    predictor = EncryptedPredictor(offered, "model", vault=vault)
    names = list(predictor.feature_names_in_)
    expected = predictor.decision_function(records)

    for columns in (names, range(5)):
        scores = predictor.decision_function(Frame(records, columns))
        assert np.abs(scores - expected).max() < 2 * LINEAR.tolerance
    for columns, place in (
        (names[::-1], 1),
        ([(name, "mean") for name in names[::-1]], 1),  # columns of two levels
        ([*names[:3], *names[:2:-1]], 4),
        ([*names[:4], SECRET], 5),
        (names[:2], 3),
    ):
        with pytest.raises(ConfigurationError, match=f"column {place} is not '{names[place - 1]}'") as refusal:
            predictor.decision_function(Frame(records[:, : len(columns)], columns))
        assert SECRET not in str(refusal.value)
    with pytest.raises(ConfigurationError, match="there are more"):
        predictor.decision_function(Frame(np.zeros((1, 6)), [*names, SECRET]))


def test_lists_integers_and_missing_objects_are_taken(offered, trained, vault, records):
    predictor = EncryptedPredictor(offered, "model", vault=vault)
    with_gap = records[:3].astype(object)
    with_gap[0, 1] = None
    expected = records[:3].copy()
    expected[0, 1] = np.nan

    for given, same in (
        (records[:3].tolist(), records[:3]),
        (with_gap, expected),
        (np.ones((2, 5), int), np.ones((2, 5))),
        (np.full((1, 5), 1e300), np.full((1, 5), 1e300)),
    ):
        assert np.abs(predictor.decision_function(given) - logits_of(trained, same)).max() < LINEAR.tolerance


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (np.full((1, 5), np.inf), "infinite"),
        (np.full((1, 5), -np.inf), "infinite"),
        (np.ones((1, 5)) * 1j, "no number"),
        (np.full((1, 5), "1"), "no number"),
        ([[1, 2, 3, 4, SECRET]], "no number"),
        (np.array([[1, 2, 3, 4, SECRET]], dtype=object), "no number"),
        ([[1, 2, 3, 4, 5], [1]], "several lengths"),
        (csr_matrix(np.ones((1, 5))), "toarray"),
        (7, r"takes \(n, 5\)"),
    ],
    ids=["inf", "-inf", "complex", "text", "list of text", "object", "ragged", "sparse", "number"],
)  # fmt: skip
def test_what_is_no_table_of_numbers_is_refused_before_anything_is_sent(offered, vault, given, what):
    with pytest.raises(ConfigurationError, match=what) as refusal:
        EncryptedPredictor(offered, "model", vault=vault).decision_function(given)
    assert SECRET not in str(refusal.value)
    assert offered.sent == []


def test_it_says_what_scikit_learn_s_models_say(offered, vault, records):
    predictor = EncryptedPredictor(offered, "model", vault=vault)

    assert predictor.classes_.tolist() == [0, 1]
    assert predictor.n_features_in_ == 5
    assert predictor.feature_names_in_.tolist() == ["c0", "c1", "c2", "c3", "c4"]
    assert set(predictor.predict(records)) <= set(predictor.classes_)


def test_a_key_is_registered_once(offered, vault, records):
    predictor = EncryptedPredictor(offered, "model", vault=vault)

    predictor.decision_function(records)
    predictor.decision_function(records)

    assert [what for what, _ in offered.sent] == ["register", "predict", "predict"]


def test_answers_after_a_rotation_are_under_the_new_key(offered, trained, vault, records):
    EncryptedPredictor(offered, "model", vault=vault).decision_function(records)
    KeyStore(vault).rotate()

    logits = EncryptedPredictor(offered, "model", vault=vault).decision_function(records)

    assert np.abs(logits - logits_of(trained, records)).max() < LINEAR.tolerance
    assert len(offered.keys) == 2


def test_an_answer_to_another_query_is_refused(offered, vault, records):
    kept = []
    offered.answered = lambda answer: kept.append(answer) or kept[0]
    predictor = EncryptedPredictor(offered, "model", vault=vault)
    predictor.decision_function(records)

    with pytest.raises(ParametersMismatchError, match="this query"):
        predictor.decision_function(records)


# --- Canaries ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def canaries(trained, records):
    return Canaries(features=records[30:], logits=logits_of(trained, records[30:]))


def test_canaries_are_not_among_the_scores(offered, trained, vault, records, canaries):
    predictor = EncryptedPredictor(offered, "model", vault=vault, canaries=canaries)

    logits = predictor.decision_function(records[:30])

    assert np.abs(logits - logits_of(trained, records[:30])).max() < LINEAR.tolerance


def test_canaries_lie_at_other_places_in_each_query(offered, vault, records, canaries, monkeypatch):
    seen = []
    real = asking_module.encrypt_records

    def watched(batch, *rest):
        seen.append(batch)
        return real(batch, *rest)

    monkeypatch.setattr(asking_module, "encrypt_records", watched)
    predictor = EncryptedPredictor(offered, "model", vault=vault, canaries=canaries)
    predictor.decision_function(records[:30])
    predictor.decision_function(records[:30])

    assert [len(batch) for batch in seen] == [40, 40]
    assert not np.array_equal(seen[0], seen[1])


def test_another_model_in_the_services_hands_shows_in_the_canaries(offered, trained, vault, records, canaries):
    weights = trained.tensors["output.weight"] + 0.01
    other = plain(replace(trained, tensors={**trained.tensors, "output.weight": weights}))
    offered.published["model"] = (offered.describe("model"), other.model)
    told = []
    predictor = EncryptedPredictor(offered, "model", vault=vault, canaries=canaries)

    with pytest.raises(AnswerRefusedError, match="known patients"):
        told.append(predictor.decision_function(records[:30]))
    assert told == []
    EncryptedPredictor(offered, "model", vault=vault).decision_function(records[:30])  # goes unnoticed without


def test_each_canary_counts(offered, vault, records, canaries):
    logits = canaries.logits.copy()
    logits[-1] += 2 * (LINEAR.tolerance + MARGIN)
    predictor = EncryptedPredictor(
        offered, "model", vault=vault, canaries=Canaries(features=canaries.features, logits=logits)
    )

    with pytest.raises(AnswerRefusedError, match="1 of 10"):
        predictor.decision_function(records[:30])


def test_what_is_sent_does_not_depend_on_scores(offered, vault, records, canaries, monkeypatch):
    """A reaction to wrong answers would tell whoever made them up what is in them."""
    monkeypatch.setattr(asking_module, "MOST_QUERY_BYTES", 50_000)
    small = query_bytes(offered.describe("model"), patients=512, is_seeded=True)
    assert small <= 50_000
    many = np.repeat(records[:30], 100, axis=0)

    def sent(known):
        offered.sent.clear()
        predictor = EncryptedPredictor(offered, "model", vault=vault, canaries=known)
        predictor.decision_function(many)
        return list(offered.sent)

    sent(canaries)
    right = sent(canaries)
    with pytest.raises(AnswerRefusedError):
        sent(Canaries(features=canaries.features, logits=canaries.logits + 1))

    assert len(right) > 4
    assert offered.sent == right


def test_canaries_that_leave_no_room_are_refused(offered, vault):
    with pytest.raises(ConfigurationError, match="no room"):
        EncryptedPredictor(
            offered, "model", vault=vault, canaries=Canaries(features=np.zeros((4096, 5)), logits=np.zeros(4096))
        )


@pytest.mark.parametrize(
    ("features", "logits"),
    [(np.zeros((2, 5)), np.zeros(3)), (np.zeros(5), np.zeros(5)), (np.zeros((0, 5)), np.zeros(0)),
     (np.zeros((1, 5)), np.array([np.nan]))],
)  # fmt: skip
def test_canaries_of_no_use_are_refused(features, logits):
    with pytest.raises(ConfigurationError, match="canaries"):
        Canaries(features=features, logits=logits)


# --- The personal intercept -------------------------------------------------------------------------------------------


@pytest.fixture
def personal(trained):
    return replace(trained, model=PERSONAL)


@pytest.fixture
def offered_personal(personal):
    service = InProcessService()
    service.offer(plain(personal))
    return service


def test_the_sites_own_intercept_is_added_at_home(offered_personal, personal, vault, records):
    vault.write("models/last.safetensors", model_file(personal))

    logits = EncryptedPredictor(offered_personal, "model", vault=vault).decision_function(records)

    assert np.abs(logits - logits_of(personal, records)).max() < LINEAR.tolerance


def test_a_clinic_without_a_model_gives_its_intercept(offered_personal, personal, vault, records):
    logits = EncryptedPredictor(offered_personal, "model", vault=vault, intercept=-1.25).decision_function(records)

    expected = logits_of(personal, records) - personal.tensors["output.bias"] - 1.25
    assert np.abs(logits - expected).max() < LINEAR.tolerance


def test_without_an_intercept_a_person_reads_what_to_do(offered_personal, vault):
    with pytest.raises(ConfigurationError, match="--intercept"):
        EncryptedPredictor(offered_personal, "model", vault=vault)


def test_the_intercept_of_another_model_is_not_taken(offered_personal, personal, vault):
    vault.write("models/last.safetensors", model_file(replace(personal, mean=personal.mean + 1)))

    with pytest.raises(ConfigurationError, match="not the one"):
        EncryptedPredictor(offered_personal, "model", vault=vault)


@pytest.mark.parametrize("intercept", [0.5, float("nan")])
def test_an_intercept_that_a_model_does_not_take_is_refused(offered, vault, intercept):
    with pytest.raises(ConfigurationError, match="leave it out"):
        EncryptedPredictor(offered, "model", vault=vault, intercept=intercept)


# --- Encrypted models -------------------------------------------------------------------------------------------------


def test_a_hospital_scores_with_its_own_encrypted_model_even_after_a_rotation(trained, vault, records):
    service = InProcessService()
    publish_model(prepare_model(trained, "heart", owner="clinic", vault=vault), service, vault, ())
    KeyStore(vault).rotate()

    logits = EncryptedPredictor(service, "heart", vault=vault).decision_function(records)

    assert np.abs(logits - logits_of(trained, records)).max() < LINEAR.tolerance


def test_a_model_under_anothers_key_cannot_be_read(trained, vault, tmp_path):
    service = InProcessService()
    stranger = KeyStore(Vault(tmp_path / "stranger")).create()
    holder = KeyHolder(key=stranger.secret_key(LINEAR), public_key=stranger.public_key(LINEAR))
    service.offer(encrypted(trained, holder))

    with pytest.raises(ConfigurationError, match="another client's"):
        EncryptedPredictor(service, "model", vault=vault)


# --- Secrets ----------------------------------------------------------------------------------------------------------


def test_a_predictor_shows_no_secret_and_does_not_travel(offered, vault):
    predictor = EncryptedPredictor(offered, "model", vault=vault)
    secret = vault.path(f"{KEYS}/1/key.secret").read_bytes()

    assert secret.hex() not in repr(predictor)
    assert repr(secret) not in repr(predictor)
    for travel in (pickle.dumps, copy.copy):
        with pytest.raises(SecretMaterialError):
            travel(predictor)


def test_an_unknown_model_is_an_error_of_the_service(offered, vault):
    with pytest.raises(ServiceError, match="no model of this name"):
        EncryptedPredictor(offered, "other", vault=vault)


def test_a_program_may_score_in_several_threads(offered, trained, vault, records):
    predictor = EncryptedPredictor(offered, "model", vault=vault)
    predictor.decision_function(records)
    expected = logits_of(trained, records)

    with ThreadPoolExecutor(4) as pool:
        scores = list(pool.map(predictor.decision_function, [records] * 12))

    assert np.abs(np.array(scores) - expected).max() < LINEAR.tolerance
