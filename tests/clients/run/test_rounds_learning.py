"""What learning means for the rounds: personal values go with the sums, and a run that diverges says where."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from recovery import ready, sum_up, void
from safetensors import safe_open
from safetensors.numpy import load_file

from clients.run.files import RunFiles
from protocol.errors import ValueRefusedError
from protocol.prediction.model_file import MODEL_FORMAT
from protocol.terms import ModelTerms
from scripts.simulation.twin import run_learners, train_plain

EVERYONE = (0, 1, 2, 3)
THREE = (0, 1, 2)


@pytest.fixture(scope="module")
def personal_once(founded_once, tmp_path_factory):
    """A run whose sites keep their intercepts, with the statistics summed and round 1 prepared."""
    experiment = replace(founded_once.experiment, model=ModelTerms(personal=("output.bias",)))
    federation = type(founded_once).found(tmp_path_factory.mktemp("personal") / "run", experiment)
    federation.open()
    federation.prepare_all()
    federation.sum_up()
    federation.prepare_all()
    return federation


@pytest.fixture
def personal(personal_once, tmp_path):
    return personal_once.copied_to(tmp_path / "personal")


def files_of(federation, position):
    return RunFiles(federation.vault(position), federation.run)


def own(federation, position):
    return files_of(federation, position).position().personal


def test_personal_values_wait_for_the_sum_that_contains_the_site(personal):
    trained = {site: files_of(personal, site).pending(1).personal for site in EVERYONE}

    assert all(np.array_equal(own(personal, site), [0.0]) for site in EVERYONE)
    assert all((values != 0).all() for values in trained.values())
    personal.sum_up(THREE)
    personal.prepare_all()

    assert all(np.array_equal(own(personal, site), trained[site]) for site in THREE)
    assert np.array_equal(own(personal, 3), [0.0])


def test_a_site_that_was_left_out_goes_on_from_the_values_that_it_had(personal):
    personal.sum_up(THREE)
    personal.prepare_all()

    assert (files_of(personal, 3).pending(2).personal != 0).all()
    personal.sum_up()
    personal.prepare_all()
    assert (own(personal, 3) != 0).all()


def test_a_site_that_was_given_up_goes_on_from_the_values_that_it_had(personal):
    trained = {site: files_of(personal, site).pending(1).personal for site in EVERYONE}
    for site in THREE:
        personal.upload(site, EVERYONE)
    history = [*personal.sums, void(personal, 3, 1)]

    history.append(sum_up(personal, THREE, history))
    for site in EVERYONE:
        ready(personal, site, history)

    # those of the others are the ones that were trained with what left first
    assert all(np.array_equal(own(personal, site), trained[site]) for site in THREE)
    assert np.array_equal(own(personal, 3), [0.0])


def test_a_restart_trains_no_second_time(personal):
    before = files_of(personal, 1).pending(1)
    trained = [entry["event"] for entry in personal.vault(1).lines("events.jsonl")].count("trained")

    personal.prepare(1, 1)
    personal.upload(1, EVERYONE)
    personal.prepare(1, 1)

    assert np.array_equal(files_of(personal, 1).pending(1).personal, before.personal)
    assert [entry["event"] for entry in personal.vault(1).lines("events.jsonl")].count("trained") == trained


def test_personal_values_leave_in_no_message(personal):
    needles = [
        trained.astype(kind).tobytes()
        for site in EVERYONE
        for trained in [files_of(personal, site).pending(1).personal]
        for kind in (np.float64, np.float32)
    ]
    kept = [path.read_bytes() for path in personal.directory.rglob("pending.safetensors")]
    assert sum(needle in content for needle in needles for content in kept) == len(EVERYONE)

    sent = [personal.upload(site, EVERYONE) for site in EVERYONE]
    personal.run_all()
    sent += [personal.session, *personal.cards.values(), *personal.sums]
    sent += [personal.close(site) for site in EVERYONE]

    assert not any(needle in message for needle in needles for message in sent)


@pytest.mark.parametrize("cohort", [EVERYONE, THREE])
def test_each_site_ends_with_its_twin_s_model_bit_for_bit(personal, cohort):
    personal.sum_up(cohort)
    personal.run_all()
    for site in EVERYONE:
        personal.close(site)
    cohorts = [EVERYONE, cohort, EVERYONE, EVERYONE]

    agreement = personal.agreement
    twins = train_plain(agreement, run_learners(personal.directory, agreement), cohorts)

    models = [load_file(personal.vault(site).path("models/last.safetensors")) for site in EVERYONE]
    for card, model in zip(agreement.roster, models, strict=True):
        values = np.concatenate([model["output.weight"].ravel(), model["output.bias"]])
        assert values.tobytes() == twins[card.name].tobytes()
    assert len({model["output.weight"].tobytes() for model in models}) == 1
    assert len({model["output.bias"].tobytes() for model in models}) == 4


def test_a_model_file_says_which_of_its_values_are_the_site_s_own(personal):
    personal.run_all()
    personal.close(1)

    with safe_open(personal.vault(1).path("models/last.safetensors"), "numpy") as file:
        assert json.loads(file.metadata()[MODEL_FORMAT])["model"]["personal"] == ["output.bias"]
        assert set(file.keys()) == {
            "output.weight",
            "output.bias",
            "standardisation.mean",
            "standardisation.deviation",
        }


def test_the_site_s_scores_are_those_of_its_own_model(personal):
    personal.run_all()
    personal.close(1)
    (learner,) = (
        site for name, site in run_learners(personal.directory, personal.agreement).items() if name == "hospital-2"
    )
    position = files_of(personal, 1).position()

    with personal.vault(1).path("scores.csv").open(newline="") as file:
        kept = [float(row["federated"]) for row in csv.DictReader(file)]

    values = learner.values(position.learner, position.personal)
    assert kept == learner.held_out_scores(values, position.learner.standardisation).tolist()


@pytest.fixture
def diverging(founded_once, found):
    def start(**training):
        strategy = replace(founded_once.experiment.strategy, rounds=4, **training)
        federation = found(replace(founded_once.experiment, strategy=strategy))
        federation.open()
        return federation

    return start


def test_training_that_ends_in_nan_is_told_with_round_and_tensor_and_nothing_leaves(diverging):
    federation = diverging(learning_rate=1e3, weight_decay=1e3, local_epochs=30)
    federation.prepare_all()
    federation.sum_up()

    with pytest.raises(ValueRefusedError, match=r"^round 1: tensor output\.weight: NaN or infinite value$"):
        federation.prepare(1, 1)
    assert files_of(federation, 1).pending(1) is None
    assert files_of(federation, 1).position().round == 1


def test_a_model_that_diverged_stops_the_run_by_name_and_the_best_one_is_kept(diverging):
    # decay beyond what a step can take: each overshoots to the other side, farther than the one before
    federation = diverging(learning_rate=10.0, weight_decay=0.3, clip=1e5)
    with pytest.raises(ValueRefusedError, match=r"^round \d: the shared model diverged: its mean loss"):
        federation.run_all()

    vault = federation.vault(0)
    losses = [
        entry["federation_before_round"]["training_loss"]
        for entry in vault.lines("metrics.jsonl")
        if "federation_before_round" in entry
    ]
    assert losses
    assert np.isfinite(files_of(federation, 0).position().learner.model).all()
    (kept,) = vault.path("models").iterdir()  # and no last one: no run has ended here
    best = load_file(kept)
    assert kept.name == "best.safetensors"
    # nobody learnt anything since, so the best is the one that all started from
    assert min(losses) == losses[0] == pytest.approx(np.log(2), abs=1e-6)
    assert np.array_equal(best["output.weight"], np.zeros((1, 3)))
