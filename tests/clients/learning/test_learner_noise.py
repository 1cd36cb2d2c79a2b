"""Learning with noise: one clipped step per round, noise in every shared value, and nothing exact beside it."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
from coalition import Insider
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_sum import after_statistics, federation, summed
from scipy.stats import chi2
from sklearn.metrics import roc_auc_score

import conf
from clients.data.table import Table
from clients.data.table_file import encode_table
from clients.learning.epsilon import epsilon_of
from clients.learning.learner import Learner
from clients.learning.noise import Noise, noise_of
from clients.run.files import RunFiles
from clients.simulation import site_tables
from protocol.errors import ConfigurationError
from protocol.packing import METRIC_FIELDS, RoundKind, packing_plan
from protocol.parameters import advise

EXPERIMENT = conf.compose(["privacy=noise"])
MLP = conf.compose(["privacy=noise", "model=mlp"])
PARAMETERS = advise(sites=5, value_bits=EXPERIMENT.crypto.value_bits, values=1000).parameters
SILENT = patch.object(Noise, "draw", lambda noise, count: np.zeros(count, dtype=np.int64))


TABLES = {name: encode_table(file, EXPERIMENT.data) for name, file in site_tables(EXPERIMENT).items()}


def sites(experiment=EXPERIMENT, **training):
    terms = replace(experiment.terms, training=replace(experiment.strategy, **training))
    return [Learner(terms=terms, parameters=PARAMETERS, table=table, site=name) for name, table in TABLES.items()]


def contribution(learner, state, round_number=1, kind=RoundKind.TRAIN):
    return learner.contribution(state, learner.initial_personal(), kind, round_number)


def shared(learner, packed):
    content = packing_plan(RoundKind.TRAIN, learner.terms, PARAMETERS).unpack(packed)
    return np.concatenate([content[name] for name in learner.terms.model.shared_shapes(30)])


@pytest.fixture(scope="module")
def learners():
    return sites()


@pytest.fixture(scope="module")
def state(learners):
    return after_statistics(learners)


@pytest.mark.parametrize("experiment", [EXPERIMENT, MLP])
def test_a_model_with_epsilon_two_still_knows_its_patients(experiment):
    learners = sites(experiment)
    last = federation(learners, experiment.strategy.rounds)[0][0][-1]

    labels = np.concatenate([learner.held_out_table.labels for learner in learners])
    scores = np.concatenate([learner.held_out_scores(last.model, last.standardisation) for learner in learners])
    assert epsilon_of(learners[0].terms) < 2.2
    assert roc_auc_score(labels, scores) > 0.9


def test_noise_is_added_to_every_shared_value_once(learners, state):
    noise = noise_of(EXPERIMENT.terms, PARAMETERS, state.standardisation.records)
    with SILENT:
        exact = shared(learners[0], contribution(learners[0], state).packed)
    added = np.array([shared(learners[0], contribution(learners[0], state).packed) - exact for _ in range(40)])

    count = added.size
    low, high = chi2.ppf([1e-7, 1 - 1e-7], count) / count
    assert low < (added.astype(np.float64) ** 2).mean() / noise.deviation**2 < high
    assert (added.std(axis=0) > 0).all()


SITES_BY_MODEL = {"logistic_regression": sites(), "mlp": sites(MLP)}
STATES = {model: after_statistics(learners) for model, learners in SITES_BY_MODEL.items()}
PATIENTS = Table(
    features=np.concatenate([table.features for table in TABLES.values()]),
    labels=np.concatenate([table.labels for table in TABLES.values()]),
)


@pytest.mark.parametrize("model", ["logistic_regression", "mlp"])
@given(
    seed=st.integers(0, 10**6),
    spread=st.sampled_from([0.1, 3.0]),
    count=st.integers(2, 60),
    extreme=st.sampled_from([1.0, 1e6, -1e6]),
)
@settings(max_examples=40)
def test_one_patient_moves_the_integers_by_no_more_than_the_sensitivity(model, seed, spread, count, extreme):
    learner, state, rng = copy(SITES_BY_MODEL[model][0]), STATES[model], np.random.default_rng(seed)
    state = replace(state, model=rng.normal(0, spread, len(state.model)))
    chosen = PATIENTS.rows(rng.permutation(PATIENTS.records)[:count])
    chosen.features[0] *= extreme

    vectors = []
    for rows in (np.arange(count), np.arange(1, count)):
        learner.training_table = chosen.rows(rows)
        with SILENT:
            vectors.append(shared(learner, contribution(learner, state).packed))

    noise = noise_of(learner.terms, PARAMETERS, state.standardisation.records)
    assert np.linalg.norm((vectors[0] - vectors[1]).astype(np.float64)) <= noise.sensitivity


def test_without_noise_and_clipping_a_round_is_one_step_of_gradient_descent():
    learners = sites(replace(EXPERIMENT, privacy=replace(EXPERIMENT.privacy, clip_norm=1e3)), weight_decay=0.5)
    state = replace(after_statistics(learners), model=np.linspace(-0.5, 0.5, 31))
    features = np.concatenate([state.standardisation.apply(one.training_table.features) for one in learners])
    labels = np.concatenate([one.training_table.labels for one in learners])
    columns = np.column_stack([features, np.ones(len(features))]).astype(np.float64)
    slope = columns.T @ (1 / (1 + np.exp(-columns @ state.model)) - labels) / len(labels)
    slope[:-1] += 0.5 * state.model[:-1]

    with SILENT:
        moved = learners[0].apply(state, RoundKind.TRAIN, summed(learners, state, RoundKind.TRAIN, 1))

    np.testing.assert_allclose(moved.model, state.model - 0.05 * slope, atol=5 * 2.0 ** state.step_exponents[0])


@pytest.mark.parametrize("kind", [RoundKind.TRAIN, RoundKind.EVALUATE])
def test_nothing_exact_stands_beside_the_noise(learners, state, kind):
    packed = contribution(learners[0], state, kind=kind).packed
    content = packing_plan(kind, EXPERIMENT.terms, PARAMETERS).unpack(packed)

    assert not any(content[name].any() for name in METRIC_FIELDS)
    assert not any(content[name].any() for name in ("weight", "clipped") if name in content)
    assert packed.any() == (kind is RoundKind.TRAIN)


def test_the_grid_stays_as_wide_as_the_noise_needs(learners, state):
    noise = noise_of(EXPERIMENT.terms, PARAMETERS, state.standardisation.records)

    moved = learners[0].apply(state, RoundKind.TRAIN, summed(learners, state, RoundKind.TRAIN, 1))

    assert set(moved.step_exponents) == set(state.step_exponents) == {noise.step_exponent}
    assert moved.federated is None


def test_a_site_does_not_refuse_by_what_it_alone_sees(learners, state):
    # that it refuses would say something of its patients, which no noise hides
    certain_and_wrong = replace(state, model=state.model + 1e3)

    assert contribution(learners[0], certain_and_wrong).has_noise


def test_personal_values_and_noise_exclude_each_other():
    with pytest.raises(ConfigurationError, match=r"privacy\.noise_multiplier > 0 and model\.personal exclude"):
        conf.compose(["experiment=heart_disease", "privacy=noise"])
    conf.compose(["experiment=heart_disease", "privacy=noise", "model.personal=[]"])


@pytest.fixture
def noisy_run(found, founded_once):
    federation = found(
        replace(founded_once.experiment, privacy=replace(EXPERIMENT.privacy, smallest_events=5), model=MLP.model)
    )
    federation.open()
    federation.prepare_all()
    federation.sum_up()
    return federation


def test_the_encrypted_sum_is_that_of_the_kept_contributions_bit_for_bit(noisy_run):
    noisy_run.prepare_all()
    files = [RunFiles(noisy_run.vault(site), noisy_run.run) for site in noisy_run.everyone]
    pending = [one.pending(1) for one in files]
    kept = np.sum([one.packed for one in pending], axis=0)
    before = files[0].position().learner

    total = Insider(noisy_run, 0).read_sum(noisy_run.sum_up())
    noisy_run.prepare_all()

    assert all(one.has_noise for one in pending)
    np.testing.assert_array_equal(total, kept)
    expected = noisy_run.site(0).learner(noisy_run.run).apply(before, RoundKind.TRAIN, kept).shared_digest()
    assert [one.position().learner.shared_digest() for one in files] == [expected] * 4


def test_a_site_that_starts_again_keeps_its_noise(noisy_run):
    noisy_run.prepare(2, 1)
    kept = RunFiles(noisy_run.vault(2), noisy_run.run).pending(1)

    noisy_run.prepare(2, 1)  # every request loads the site from its vault, as a new process does

    np.testing.assert_array_equal(RunFiles(noisy_run.vault(2), noisy_run.run).pending(1).packed, kept.packed)
