"""A plain model is put into the store as a whole: by all its sites' decisions, or as the provider's own."""

from __future__ import annotations

import errno
import json
from dataclasses import replace

import numpy as np
import pytest
from consortium import Consortium
from published import client, encrypted, trained_model

from protocol.errors import (
    AgreementMismatchError,
    ConfigurationError,
    ModelMismatchError,
    PurposeMismatchError,
    ReleaseIncompleteError,
)
from protocol.prediction.description import ModelDescription
from protocol.prediction.model_file import model_file
from protocol.prediction.parameters import LINEAR
from protocol.prediction.release import ReleaseDecision, check_release, model_digest
from protocol.terms import ModelTerms, Terms
from server.prediction.evaluation import ENCRYPTED_FILE
from server.prediction.model_store import ModelStore
from server.prediction.publication import publish_own, publish_released

CONSORTIUM = Consortium()
AGREEMENT = CONSORTIUM.agreement
OWN_INTERCEPT = ModelTerms(personal=("output.bias",))
NETWORK = ModelTerms(kind="mlp", hidden=(4,), activation="quadratic")


def file_of(model=OWN_INTERCEPT, *, seed=7, with_personal=False, scale=1.0):
    trained = trained_model(3, model, seed=seed)
    tensors = {
        name: scale * tensor for name, tensor in trained.tensors.items() if with_personal or name not in model.personal
    }
    terms = Terms(data=trained.data, model=model)
    return model_file(terms, tensors, mean=trained.mean, deviation=trained.deviation)


MODEL = file_of()


def decisions_for(model=MODEL, purpose="Cardio Cloud AG: scoring"):
    made = []
    for card, key in zip(AGREEMENT.roster, CONSORTIUM.signing_keys, strict=True):
        unsigned = ReleaseDecision(
            agreement=AGREEMENT.digest.hex(),
            run=CONSORTIUM.run.hex(),
            model=model_digest(model),
            purpose=purpose,
            site=card.name,
            time=1_795_000_000,
            signature="00" * 64,
        )
        made.append(replace(unsigned, signature=key.sign(unsigned.signed_bytes()).hex()))
    return made


DECISIONS = decisions_for()


@pytest.fixture
def models(tmp_path):
    return tmp_path / "prediction" / "models"


def publish(models, name="heart", model=MODEL, decisions=DECISIONS, agreement=AGREEMENT, **options):
    return publish_released(ModelStore(models), name, model, agreement=agreement, decisions=decisions, **options)


def content(models):
    return {
        str(path.relative_to(models)): path.read_bytes()
        for path in models.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def test_a_released_model_lies_in_the_store_with_its_sites_decisions(models):
    description = publish(models, decisions=DECISIONS[::-1])

    assert ModelDescription.from_bytes((models / "heart/description.json").read_bytes()) == description
    assert (models / "heart/model.safetensors").read_bytes() == MODEL
    assert description.weights == model_digest(MODEL)
    record = json.loads((models / "heart/decision.json").read_bytes())
    assert record["origin"] == "consortium"
    kept = [ReleaseDecision(**decision) for decision in record["decisions"]]
    check_release(AGREEMENT, kept, MODEL)
    assert json.dumps(record["agreement"], sort_keys=True) == json.dumps(
        json.loads(AGREEMENT.to_bytes()) | {"start": ""}, sort_keys=True
    )
    assert sorted(path.name for path in models.iterdir() if not path.name.endswith(".lock")) == ["heart"]


def test_the_provider_s_own_model_needs_no_decision_and_says_whose_it_is(models):
    description = publish_own(ModelStore(models), "risk", file_of(NETWORK))

    assert description.model == NETWORK
    assert json.loads((models / "risk/decision.json").read_bytes()) == {"origin": "own"}


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"decisions": DECISIONS[1:]}, ReleaseIncompleteError),
        ({"model": file_of(seed=8)}, ModelMismatchError),
        ({"decisions": [*DECISIONS[:3], decisions_for(purpose="another")[3]]}, PurposeMismatchError),
        ({"agreement": Consortium(clip=2.0).agreement}, AgreementMismatchError),
    ],
)
def test_what_is_not_released_is_not_published(models, changes, error):
    with pytest.raises(error):
        publish(models, **changes)

    assert content(models) == {}


@pytest.mark.parametrize(
    "model",
    [
        file_of(with_personal=True),
        file_of(ModelTerms(kind="mlp", hidden=(4,))),
        file_of(scale=1e12),
        file_of(scale=np.nan),
        b"",
        MODEL[:-1],
    ],
    ids=["personal", "relu", "too large", "not a number", "empty", "cut"],
)
def test_what_cannot_be_computed_under_encryption_is_not_published_even_if_released(models, model):
    with pytest.raises(ConfigurationError):
        publish(models, model=model, decisions=decisions_for(model))

    assert content(models) == {}


@pytest.mark.parametrize("name", ["", "../heart", "Heart", ".heart", "a/b", "-heart", "a" * 64])
def test_a_name_that_leaves_the_store_is_refused(models, name):
    with pytest.raises(ConfigurationError, match="model's name"):
        publish(models, name)

    assert content(models) == {}


def test_a_name_that_is_taken_is_replaced_only_on_demand(models):
    publish(models)
    before, other = content(models), file_of(seed=8)

    with pytest.raises(ConfigurationError, match="--replace"):
        publish_own(ModelStore(models), "heart", other)
    assert content(models) == before

    publish_own(ModelStore(models), "heart", other, may_replace=True)
    assert (models / "heart/model.safetensors").read_bytes() == other
    assert {path.name for path in models.iterdir()} == {"heart"}


def test_a_disk_that_is_full_costs_no_model(models, monkeypatch):
    publish(models)
    before = content(models)

    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("server.prediction.files.write_file", full)
    with pytest.raises(ConfigurationError, match="nothing was replaced: No space left"):
        publish_own(ModelStore(models), "heart", file_of(seed=8), may_replace=True)

    assert content(models) == before
    assert {path.name for path in models.iterdir()} == {"heart"}


def test_a_damaged_model_is_not_replaced_for_nobody_knows_whose_it_is(models):
    publish(models)
    (models / "heart/description.json").write_bytes(b"{}")

    with pytest.raises(ConfigurationError, match="service withdraw heart"):
        publish(models, may_replace=True)


def test_what_replaces_nothing_leaves_the_old_model(models):
    publish(models)
    before = content(models)

    with pytest.raises(ConfigurationError):
        publish_own(ModelStore(models), "heart", b"none", may_replace=True)

    assert content(models) == before


def test_a_client_s_encrypted_model_is_never_replaced(models):
    store = ModelStore(models)
    hospital_s = encrypted(trained_model(3, ModelTerms()), client(LINEAR))
    store.publish(replace(hospital_s.description, name="heart"), {ENCRYPTED_FILE: hospital_s.weights})
    before = content(models)

    with pytest.raises(ConfigurationError, match="only its owner"):
        publish(models, may_replace=True)

    assert content(models) == before
