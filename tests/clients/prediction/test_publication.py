"""A hospital publishes its model encrypted; its devices ask with the public key alone; only its vault reads scores."""

from __future__ import annotations

import numpy as np
import pytest
from served import InProcessService

from clients.prediction import asking as asking_module
from clients.prediction.devices import opened_scores, scores_for
from clients.prediction.key_store import KEYS, KeyStore
from clients.prediction.publication import prepare_model, publish_model
from clients.prediction.published import Published
from clients.prediction.score_file import ScoredRows, ScoreFile
from clients.secrets.vault import Vault
from protocol.errors import ConfigurationError, MalformedError, ParametersMismatchError, ProtocolError
from protocol.prediction.parameters import LINEAR
from protocol.prediction.wire import HEADER_BYTES
from protocol.terms import ModelTerms


@pytest.fixture
def service(vault, trained):
    service = InProcessService()
    publish_model(prepare_model(trained, "heart", owner="clinic", vault=vault), service, vault, ("ward-3",))
    return service


@pytest.fixture
def public_key(vault):
    return KeyStore(vault).current().public_key(LINEAR)


def logits_of(trained, records):
    return trained.logits(trained.describe("model").standardised(records))


def test_the_service_gets_no_weight_and_no_bias(service, trained, vault):
    description = service.describe("heart")

    assert (description.form, description.owner) == ("encrypted", "clinic")
    assert service.allowed["heart"] == ("ward-3",)
    assert str(trained.tensors["output.bias"][0]).encode() not in description.to_bytes()
    assert Published.read(vault, description.digest).bias == trained.tensors["output.bias"][0]


def test_a_device_gets_scores_that_only_the_vault_reads(service, trained, vault, records, public_key, tmp_path):
    rows = np.arange(1, len(records) + 1)

    data = scores_for(service, "heart", public_key, records, rows).to_bytes()

    opened, logits = opened_scores(ScoreFile.from_bytes(data), vault)
    np.testing.assert_array_equal(opened, rows)
    assert np.abs(logits - logits_of(trained, records)).max() < LINEAR.tolerance
    with pytest.raises(ConfigurationError, match="published no such"):
        opened_scores(ScoreFile.from_bytes(data), Vault(tmp_path / "device"))


def test_a_device_that_asks_a_plain_model_is_told_that_it_needs_no_public_key(offered, records, public_key):
    with pytest.raises(ConfigurationError, match="leave --public-key out"):
        scores_for(offered, "model", public_key, records, np.arange(len(records)))


def test_many_patients_of_a_device_keep_their_rows(service, trained, vault, records, public_key, monkeypatch):
    monkeypatch.setattr(asking_module, "MOST_QUERY_BYTES", 1)
    rows = np.array([9, 2, 7, 4])

    file = scores_for(service, "heart", public_key, records[:4], rows)

    assert len(file.answers) == 4
    opened, logits = opened_scores(file, vault)
    np.testing.assert_array_equal(opened, rows)
    assert np.abs(logits - logits_of(trained, records[:4])).max() < LINEAR.tolerance


def test_scores_of_before_a_rotation_and_another_training_are_still_read(service, trained, vault, records, public_key):
    file = scores_for(service, "heart", public_key, records, np.arange(len(records)))
    KeyStore(vault).rotate()
    vault.write("models/last.safetensors", b"trained anew")

    assert np.abs(opened_scores(file, vault)[1] - logits_of(trained, records)).max() < LINEAR.tolerance


def test_scores_under_a_deleted_key_are_gone(service, vault, records, public_key):
    file = scores_for(service, "heart", public_key, records, np.arange(len(records)))
    KeyStore(vault).delete(KeyStore(vault).current())

    with pytest.raises(ConfigurationError, match="deleted"):
        opened_scores(file, vault)


def test_a_device_with_another_public_key_is_told_before_it_sends_a_record(service, vault, records):
    other = KeyStore(vault).rotate().public_key(LINEAR)

    with pytest.raises(ConfigurationError, match="keys export"):
        scores_for(service, "heart", other, records, np.arange(len(records)))
    assert [what for what, _ in service.sent] == ["register"]


def test_a_device_does_not_pass_on_an_answer_to_another_query(service, records, public_key):
    kept = []
    service.answered = lambda answer: kept.append(answer) or kept[0]
    rows = np.arange(len(records))
    scores_for(service, "heart", public_key, records, rows)

    with pytest.raises(ParametersMismatchError, match="this query"):
        scores_for(service, "heart", public_key, records, rows)


def test_no_key_no_publication(trained, tmp_path):
    with pytest.raises(ConfigurationError, match="keys create"):
        prepare_model(trained, "heart", owner="clinic", vault=Vault(tmp_path / "empty"))


def test_a_model_without_its_own_intercept_is_not_published(trained, vault):
    tensors = {"output.weight": trained.tensors["output.weight"]}
    released = type(trained)(
        data=trained.data, model=ModelTerms(personal=("output.bias",)), tensors=tensors, mean=trained.mean,
        deviation=trained.deviation, digest=trained.digest,
    )  # fmt: skip

    with pytest.raises(ConfigurationError, match="site's vault"):
        prepare_model(released, "heart", owner="clinic", vault=vault)


@pytest.mark.parametrize(
    "harm", [b"", b"{}", b"[]", b'{"description": 7, "bias": 1}', b'{"description": "{}", "bias": 1}']
)
def test_a_damaged_record_of_a_publication_is_told(service, vault, harm):
    digest = service.describe("heart").digest
    vault.write(f"published-models/{digest.hex()}.json", harm)

    with pytest.raises(ConfigurationError, match="damaged"):
        Published.read(vault, digest)


def test_what_is_kept_of_a_publication_holds_no_key(service, vault):
    secret = vault.path(f"{KEYS}/1/key.secret").read_bytes()

    for path in vault.path("published-models").iterdir():
        assert secret.hex().encode() not in path.read_bytes()


# --- The file of scores -----------------------------------------------------------------------------------------------


@pytest.fixture
def file(service, records, public_key):
    return scores_for(service, "heart", public_key, records[:6], np.array([1, 2, 3, 5, 8, 13]))


def test_a_file_comes_back_as_it_was_written(file):
    assert ScoreFile.from_bytes(file.to_bytes()).to_bytes() == file.to_bytes()


def test_a_file_that_is_cut_at_any_place_is_refused(file):
    data = file.to_bytes()
    for end in [*range(100), len(data) - 1]:
        with pytest.raises(ProtocolError):
            ScoreFile.from_bytes(data[:end])


@pytest.mark.parametrize("place", [0, 4, 8, 40, 68, 72])
def test_a_changed_head_is_refused(file, vault, place):
    data = bytearray(file.to_bytes())
    data[place] ^= 0xFF

    with pytest.raises((ProtocolError, ConfigurationError)):
        opened_scores(ScoreFile.from_bytes(bytes(data)), vault)


def test_rows_that_are_not_those_of_the_answer_are_refused(file):
    (scored,) = file.answers
    harmed = ScoreFile(model=file.model, answers=(ScoredRows(rows=scored.rows[:-1], answer=scored.answer),))

    with pytest.raises(MalformedError, match="rows of an answer"):
        ScoreFile.from_bytes(harmed.to_bytes())


def test_an_answer_under_another_key_is_refused(file, vault):
    (scored,) = file.answers
    answer = bytearray(scored.answer)
    answer[HEADER_BYTES - 17] ^= 1  # the last byte of the key's id
    harmed = ScoreFile(model=file.model, answers=(ScoredRows(rows=scored.rows, answer=bytes(answer)),))

    with pytest.raises(ParametersMismatchError):
        opened_scores(harmed, vault)
