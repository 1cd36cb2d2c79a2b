"""Tables that no textbook has, and training that goes wrong: each has one defined outcome, and none is NaN."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_sum import after_statistics, federation, summed

from clients.data.table import Table
from clients.learning.learner import MAX_TRAINING_LOSS, Learner
from protocol.data_terms import ColumnTerms, DataTerms
from protocol.errors import DataError, ValueRefusedError
from protocol.packing import RoundKind, packing_plan
from protocol.parameters import advise
from protocol.privacy_terms import PrivacyTerms
from protocol.terms import ModelTerms, Terms, TrainingTerms

PARAMETERS = advise(sites=3, value_bits=21, values=100).parameters
DATA = DataTerms(
    name="ward", columns=(ColumnTerms(name="a", centre=0, scale=1), ColumnTerms(name="b", centre=0, scale=1))
)


def ward(rows, *, seed=8):
    features = np.random.default_rng(seed).normal(size=(rows, 2))
    return Table(features=features, labels=(features[:, 0] > 0).astype(np.int8))


def site(table, name="odd", *, model=None, data=DATA, **training):
    privacy = PrivacyTerms(smallest_cell=1)  # so few patients are all in small cells
    terms = Terms(data=data, model=model or ModelTerms(), training=TrainingTerms(**training), privacy=privacy)
    return Learner(terms=terms, parameters=PARAMETERS, table=table, site=name)


def with_two_wards(table, **options):
    return [site(table, **options), *(site(ward(40, seed=seed), f"ward-{seed}", **options) for seed in (1, 2))]


def last_state(learners, rounds=3):
    state = federation(learners, rounds)[0][0][-1]
    assert np.isfinite(state.model).all()
    assert math.isfinite(state.federated.training_loss)
    return state


@pytest.mark.parametrize("label", [0, 1])
def test_sites_that_all_have_one_and_the_same_outcome_learn_it(label):
    tables = [Table(features=ward(20, seed=seed).features, labels=np.full(20, label, np.int8)) for seed in range(3)]
    learners = [site(table, f"ward-{seed}") for seed, table in enumerate(tables)]

    state = last_state(learners)

    assert (state.federated.auc, state.federated.auc_bound) == (None, None)
    assert state.federated.training_loss < math.log(2)


def test_one_class_at_one_site_leaves_its_own_auc_undefined_and_nothing_else():
    one_class = Table(features=ward(20).features, labels=np.ones(20, dtype=np.int8))
    learners = with_two_wards(one_class)

    state = last_state(learners)
    own = learners[0].evaluate(state.model, state.standardisation)

    assert own.auc is None
    assert all(math.isfinite(number) for number in (own.accuracy, own.brier, state.federated.auc))


@pytest.mark.parametrize("model", [ModelTerms(), ModelTerms(kind="mlp", hidden=(3,))])
@pytest.mark.parametrize("rows", [2, 3, 5])
def test_a_site_with_fewer_patients_than_a_batch_takes_part(rows, model):
    learners = with_two_wards(ward(rows), model=model, batch_size=32)

    last_state(learners)

    assert learners[0].training_table.records + learners[0].held_out_table.records == rows


@pytest.mark.parametrize("rows", [2, 3, 9])
def test_a_site_with_few_patients_still_has_a_baseline_of_its_own(rows):
    # the smallest count keeps sites from learning about each other's patients, not a site from its own
    learner = site(ward(rows), data=replace(DATA, smallest_count=100))

    values, own = learner.local_baseline()

    assert np.isfinite(values).all()
    assert own.records == learner.training_table.records


@pytest.mark.parametrize("rows", [0, 1])
def test_a_site_with_nothing_to_hold_out_is_refused_by_its_size(rows):
    with pytest.raises(DataError, match=f"a table of {rows} rows"):
        site(ward(rows))


def test_a_feature_that_nobody_measured_has_no_weight():
    tables = [ward(40, seed=seed) for seed in range(3)]
    for table in tables:
        table.features[:, 1] = math.nan
    state = last_state([site(table, f"ward-{number}") for number, table in enumerate(tables)])

    assert state.model[1] == 0
    assert state.federated.auc > 0.9
    assert state.standardisation.deviation[1] == math.inf


def test_a_feature_that_one_site_never_measured_is_learnt_from_the_others():
    table = ward(40)
    table.features[:, 0] = math.nan

    state = last_state(with_two_wards(table))

    assert state.model[0] > 0.1
    assert math.isfinite(state.standardisation.deviation[0])


def test_a_feature_that_is_the_same_for_everybody_does_no_harm():
    tables = [ward(40, seed=seed) for seed in range(3)]
    for table in tables:
        table.features[:, 1] = 7.0

    assert last_state([site(table, f"ward-{number}") for number, table in enumerate(tables)]).federated.auc > 0.9


def test_patients_that_stand_there_twice_count_twice():
    table = ward(20)
    doubled = table.rows(np.repeat(np.arange(20), 2))
    once, twice = site(table), site(doubled)

    assert (table.repeated, doubled.repeated) == (0, 20)
    state = after_statistics([site(doubled)])
    assert state.standardisation.records == twice.training_table.records == 2 * once.training_table.records
    last_state(with_two_wards(doubled))


features = st.floats(allow_nan=True, allow_infinity=False)


@given(rows=st.lists(st.tuples(features, features, st.integers(0, 1)), min_size=2, max_size=12))
@settings(max_examples=60)
def test_no_table_whatever_makes_a_model_that_is_not_a_number(rows):
    table = Table(features=np.array([row[:2] for row in rows]), labels=np.array([row[2] for row in rows], np.int8))

    last_state(with_two_wards(table, local_epochs=1), rounds=2)


def test_training_that_ends_in_nan_is_refused_by_its_tensor():
    learners = with_two_wards(ward(40), learning_rate=1e3, weight_decay=1e3, local_epochs=30)
    state = after_statistics(learners)

    with pytest.raises(ValueRefusedError, match=r"tensor output\.weight: NaN or infinite value"):
        summed(learners, state, RoundKind.TRAIN, 1)


@pytest.mark.parametrize(("excess", "refused"), [(-0.01, False), (0.01, True)])
def test_a_model_that_costs_more_than_any_sensible_one_is_refused(excess, refused):
    learners = with_two_wards(ward(40))
    state = after_statistics(learners)
    plan = packing_plan(RoundKind.EVALUATE, learners[0].terms, PARAMETERS)
    content = plan.unpack(summed(learners, state, RoundKind.EVALUATE, 1))
    loss = (MAX_TRAINING_LOSS + excess) * int(content["training_records"][0])
    total = plan.pack(content | {"training_loss": np.array([round(loss * 2**20)])})

    if not refused:
        assert learners[0].apply(state, RoundKind.EVALUATE, total).federated.training_loss < MAX_TRAINING_LOSS
        return
    with pytest.raises(
        ValueRefusedError, match=r"mean loss over all sites' training patients is 4\.0 nats, more than 4; lower"
    ):
        learners[0].apply(state, RoundKind.EVALUATE, total)


def test_overshooting_steps_are_refused_before_the_model_is_lost():
    # every number is finite, and the model is sure of the wrong outcome
    noise = [Table(features=ward(40, seed=seed).features, labels=ward(40, seed=seed + 9).labels) for seed in range(3)]
    learners = [site(table, f"ward-{seed}", learning_rate=500.0, clip=1e5) for seed, table in enumerate(noise)]
    state = after_statistics(learners)
    state = learners[0].apply(state, RoundKind.TRAIN, summed(learners, state, RoundKind.TRAIN, 1))
    total = summed(learners, state, RoundKind.TRAIN, 2)

    assert np.isfinite(state.model).all()
    with pytest.raises(ValueRefusedError, match=r"diverged: its mean loss over .* lower strategy\.learning_rate"):
        learners[0].apply(state, RoundKind.TRAIN, total)
