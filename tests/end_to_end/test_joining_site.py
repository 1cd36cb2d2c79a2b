"""A hospital joins: a new agreement, whose run starts from the consortium's model, which a peer has sealed to it."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
from next_agreement import next_agreement
from recovery import stand
from safetensors.numpy import load_file

from clients.learning.learner import Learner
from clients.learning.models import tensors_of
from clients.run.start import share_starting_model, start_of, take_starting_model
from protocol.envelope import Request
from protocol.errors import ConfigurationError, ProtocolError, SecondUploadError
from protocol.terms import ModelTerms
from scripts.simulation.twin import plaintext_models, run_cohorts, run_learners, train_plain

OLD, NEW = (0, 1, 2), 3
EVERYONE = (*OLD, NEW)
REGRESSION, OWN_INTERCEPT = ModelTerms(), ModelTerms(personal=("output.bias",))
MLP = ModelTerms(kind="mlp", hidden=(4,), personal=("output.weight",))
MODELS = {"regression": REGRESSION, "own intercept": OWN_INTERCEPT, "mlp": MLP}


def finished(directory, founded_once, model):
    """Run three hospitals to the end."""
    experiment = founded_once.experiment
    federation = type(founded_once).found(
        directory,
        replace(
            experiment,
            model=model,
            strategy=replace(experiment.strategy, rounds=4, learning_rate=0.2),
            federation=replace(experiment.federation, sites=len(OLD)),
        ),
    )
    federation.open()
    federation.run_all()
    for site in OLD:
        federation.close(site)
    return federation


@pytest.fixture(scope="module")
def finished_once(founded_once, tmp_path_factory):
    made = {}

    def make(name):
        if name not in made:
            made[name] = finished(tmp_path_factory.mktemp("finished") / "run", founded_once, MODELS[name])
        return made[name]

    return make


@pytest.fixture(params=MODELS)
def before(request, finished_once, tmp_path):
    """The consortium of three with its finished run, for each kind of model."""
    return finished_once(request.param).copied_to(tmp_path / "run")


@pytest.fixture
def plain_before(finished_once, tmp_path):
    """The same for the plainest model."""
    return finished_once("regression").copied_to(tmp_path / "run")


def admit(federation, **changes):
    """Have a fourth hospital join, and get the model from the first one."""
    joined = next_agreement(federation, sites=len(EVERYONE), start_from=0, **changes)
    take_starting_model(joined.member(NEW), share_starting_model(joined.member(0), joined.member(NEW).name))
    return joined


def logits(tensors, features):
    """Return what a model says of patients who lack nothing, from its file's tensors, in float64."""
    signal = (features - tensors["standardisation.mean"]) / tensors["standardisation.deviation"]
    if "hidden.0.weight" in tensors:
        signal = np.maximum(signal @ tensors["hidden.0.weight"].T + tensors["hidden.0.bias"], 0)
    return signal @ tensors["output.weight"][0] + tensors["output.bias"]


def model_of(federation, position):
    return load_file(federation.vault(position).path("models/last.safetensors"))


def model_at(federation, position):
    """Return the tensors of the model that a site stands at, as its file at the end of the run will hold them."""
    standing, terms = stand(federation, position), federation.agreement.terms
    values = federation.site(position).learner(federation.run).values(standing.learner, standing.personal)
    common = standing.learner.standardisation
    return tensors_of(terms.model.tensor_shapes(len(terms.data.inputs)), values) | {
        "standardisation.mean": common.mean,
        "standardisation.deviation": common.deviation,
    }


def losses(federation, position):
    """Return the federation's training loss before each training round of its run, from a site's own log."""
    return [
        entry["federation_before_round"]["training_loss"]
        for entry in federation.vault(position).lines("metrics.jsonl")
        if entry["run"] == federation.run.hex() and "federation_before_round" in entry
    ]


def test_before_its_first_round_the_new_run_s_model_says_what_the_old_one_said(before):
    old = {site: model_of(before, site) for site in OLD}
    joined = admit(before)
    joined.open()
    joined.prepare_all()
    joined.sum_up()
    joined.prepare_all()

    assert all(np.array_equal(model_of(joined, site)["output.weight"], old[site]["output.weight"]) for site in OLD)
    new_patients = joined.site(NEW).learner(joined.run).table.features
    assert not np.isnan(new_patients).any()
    for site in OLD:
        new = model_at(joined, site)
        assert not np.array_equal(new["standardisation.mean"], old[site]["standardisation.mean"])
        np.testing.assert_allclose(logits(new, new_patients), logits(old[site], new_patients), rtol=0, atol=1e-12)
    assert len({stand(joined, site).state for site in EVERYONE}) == 1
    assert len({stand(joined, site).learner.shared_digest() for site in EVERYONE}) == 1


def test_the_new_run_goes_on_where_the_old_one_ended_and_is_its_twin_bit_for_bit(before, run):
    joined = admit(before)

    run(joined)

    twins = plaintext_models(joined.directory)
    for site in EVERYONE:
        assert np.array_equal(joined.values(site), twins[joined.member(site).name])
    (new_run,) = {entry["run"] for entry in joined.vault(NEW).lines("metrics.jsonl")}
    joined.run = bytes.fromhex(new_run)
    untrained = losses(before, 0)[0]
    assert losses(joined, NEW)[0] < 0.7 * untrained
    assert losses(joined, NEW) == losses(joined, 0)


def test_without_the_starting_model_the_twin_is_another(plain_before, run):
    joined = admit(plain_before)
    run(joined)
    agreement = joined.agreement
    learners = {
        name: Learner(terms=agreement.terms, parameters=agreement.parameters, table=learner.table, site=name)
        for name, learner in run_learners(joined.directory, agreement).items()
    }

    twins = train_plain(agreement, learners, run_cohorts(joined.directory, agreement))

    assert not any(np.array_equal(joined.values(site), twins[joined.member(site).name]) for site in EVERYONE)


def test_each_old_site_goes_on_with_its_own_values_and_the_new_one_with_the_shared_start(finished_once, tmp_path):
    before = finished_once("own intercept").copied_to(tmp_path / "run")
    old = {site: model_of(before, site)["output.bias"] for site in OLD}
    joined = admit(before)

    joined.open()

    starts = {site: start_of(joined.member(site)).personal for site in EVERYONE}
    assert len({value.tobytes() for value in old.values()}) == 3
    assert all(np.array_equal(starts[site], old[site]) for site in OLD)
    assert starts[NEW] is None
    joined.prepare_all()
    assert joined.site(NEW).learner(joined.run).initial_personal().tolist() == [0.0]


def test_a_new_site_without_the_model_takes_no_part_and_is_told_what_to_do(plain_before):
    joined = next_agreement(plain_before, sites=len(EVERYONE), start_from=0)

    with pytest.raises(
        ConfigurationError, match=r"ended no run; ask another hospital .* `cipherward site share-model`"
    ):
        joined.ask(NEW, Request.ANNOUNCE)

    assert not joined.run_path(NEW).exists()
    for site in OLD:
        joined.ask(site, Request.ANNOUNCE)


def test_an_old_site_with_another_last_model_takes_no_part_until_a_peer_has_sent_it_the_model(plain_before):
    plain_before.vault(1).write("models/last.safetensors", plain_before.vault(1).read("models/local.safetensors"))
    joined = admit(plain_before)

    with pytest.raises(ConfigurationError, match="the last model in this vault is another one; ask another hospital"):
        joined.ask(1, Request.ANNOUNCE)
    take_starting_model(joined.member(1), share_starting_model(joined.member(2), joined.member(1).name))

    joined.open()
    joined.prepare_all()


def test_the_joined_site_is_caught_up_after_it_was_away(plain_before):
    joined = admit(plain_before)
    joined.open()
    joined.prepare_all()
    joined.sum_up()
    for _ in range(2):
        for site in OLD:
            joined.prepare(site, len(joined.sums))
        joined.sum_up(OLD)

    joined.prepare_all()

    assert stand(joined, NEW).round == 3
    assert len({stand(joined, site).state for site in EVERYONE}) == 1
    joined.sum_up()
    joined.run_all()
    for site in EVERYONE:
        joined.close(site)
    assert len({joined.vault(site).read("models/last.safetensors") for site in EVERYONE}) == 1


def test_a_new_agreement_carries_one_run_in_an_old_vault_and_no_second_one(plain_before):
    joined = admit(plain_before)
    joined.open()
    joined.prepare_all()
    joined.sum_up()
    first = joined.run

    joined.run = os.urandom(len(first))
    for site in EVERYONE:
        with pytest.raises(SecondUploadError):
            joined.ask(site, Request.ANNOUNCE)


def test_nor_does_the_old_agreement_s_run_go_on_under_the_new_one(plain_before):
    joined = admit(plain_before)
    joined.run = plain_before.run

    with pytest.raises(ProtocolError):
        joined.prepare(0, 0)
    assert joined.ask(0, Request.ANNOUNCE)["card"] == plain_before.cards[0]  # which names the old agreement
