"""What a site hands out of a run: the shared model alone, the same file everywhere, and its signed decision."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load

from clients.run.membership import Membership, Place, pin
from clients.run.model_release import releasable_model, release
from protocol.envelope import Request
from protocol.errors import ConfigurationError, SecondUploadError
from protocol.prediction.model_file import TrainedModel
from protocol.prediction.release import check_release
from protocol.terms import ModelTerms

EVERYONE = (0, 1, 2, 3)
PURPOSE = "Cardio Cloud AG: scoring referrals"
MODELS = {
    "regression": ModelTerms(),
    "own intercept": ModelTerms(personal=("output.bias",)),
    "network": ModelTerms(kind="mlp", hidden=(4,), activation="quadratic", personal=("output.bias",)),
}


@pytest.fixture(scope="module", params=MODELS)
def ended(request, founded_once, tmp_path_factory):
    experiment = replace(founded_once.experiment, model=MODELS[request.param])
    federation = type(founded_once).found(tmp_path_factory.mktemp("ended") / "run", experiment)
    federation.open()
    federation.run_all()
    for site in EVERYONE:
        federation.close(site)
    return federation


def files_of(vault):
    """Return what is in a vault, but for its own log."""
    return {
        path: (path.read_bytes(), path.stat().st_mode)
        for path in vault.directory.rglob("*")
        if path.is_file() and path.name not in ("events.jsonl", ".lock")
    }


def test_every_site_releases_the_same_file_and_together_they_release_it(ended):
    models = [releasable_model(ended.member(site)) for site in EVERYONE]
    decisions = [release(ended.member(site), model, PURPOSE) for site, model in zip(EVERYONE, models, strict=True)]

    assert len({model.file for model in models}) == 1
    assert {model.run for model in models} == {ended.run}
    check_release(ended.agreement, decisions, models[0].file)


def test_the_file_holds_the_shared_tensors_of_the_last_model_and_no_personal_one(ended):
    terms, model = ended.agreement.terms, releasable_model(ended.member(1))
    tensors, own = load(model.file), load(ended.vault(1).read("models/last.safetensors"))
    trained = TrainedModel.from_bytes(model.file)

    shared = set(terms.model.shared_shapes(len(terms.data.inputs)))
    assert set(tensors) == shared | {"standardisation.mean", "standardisation.deviation"}
    assert all(np.array_equal(tensors[name], own[name]) for name in tensors)
    assert (trained.model, trained.data, trained.is_personal) == (terms.model, terms.data, False)
    for name in terms.model.personal:
        assert own[name].tobytes() not in model.file


def test_a_release_is_told_to_the_site_s_people_and_touches_nothing_else_in_the_vault(ended):
    member = ended.member(2)
    before = files_of(member.vault)

    decision = release(member, releasable_model(member), PURPOSE)

    assert files_of(member.vault) == before
    event = list(member.vault.lines("events.jsonl"))[-1]
    assert (event["event"], event["run"], event["model"]) == ("model_released", ended.run.hex(), decision.model)
    assert event["purpose"] == PURPOSE


def test_a_run_that_has_not_ended_here_has_nothing_to_release(summed):
    with pytest.raises(ConfigurationError, match="0 runs have ended"):
        releasable_model(summed.member(0))

    summed.close(0)
    assert releasable_model(summed.member(0)).run == summed.run
    with pytest.raises(ConfigurationError, match="0 runs that --run ffff0"):
        releasable_model(summed.member(0), "ffff0")


def test_a_run_that_was_only_begun_does_not_stand_beside_the_one_that_ended(summed):
    summed.close(0)
    with pytest.raises(SecondUploadError):
        summed.site(0).handle(Request.ANNOUNCE, {"run": bytes(range(16))})

    assert releasable_model(summed.member(0)).run == summed.run


def test_the_model_of_an_older_agreement_is_not_released_under_the_pinned_one(summed):
    summed.close(0)
    member: Membership = summed.member(0)
    newer = replace(member.agreement, start="ab" * 32)
    pin(member.vault, agreement=newer, consortium_secret=member.consortium_secret, may_replace=True)

    with pytest.raises(ConfigurationError, match="under the pinned agreement"):
        releasable_model(Place.read(member.vault))


@pytest.mark.parametrize("purpose", ["", "two  spaces", "a\nb", "a" * 401])
def test_a_purpose_that_cannot_be_read_as_it_is_signed_releases_nothing(summed, purpose):
    summed.close(0)
    member = summed.member(0)

    with pytest.raises(ConfigurationError, match="purpose"):
        release(member, releasable_model(member), purpose)

    assert "model_released" not in {event["event"] for event in member.vault.lines("events.jsonl")}
