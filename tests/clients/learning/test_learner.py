"""Sites that learn together: contributions are added as plain integers, which is what the encrypted sum returns."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from plain_sum import after_statistics, federation, summed
from sklearn.metrics import roc_auc_score

import conf
from clients.data.generator import public_generator
from clients.data.partition import partition
from clients.data.public_data import load_hospitals
from clients.data.table import Table
from clients.data.table_file import encode_table
from clients.learning.grid import RANGE_LIMITS
from clients.learning.learner import Learner
from clients.learning.models import tensor_slices
from clients.learning.training import train
from protocol.data_terms import ColumnTerms, DataTerms
from protocol.errors import DataError, RoundKindMismatchError, ValueRefusedError
from protocol.packing import RoundKind, packing_plan
from protocol.parameters import advise
from protocol.terms import ModelTerms, Terms, TrainingTerms

EXPERIMENT = conf.compose([])
TERMS = EXPERIMENT.terms
PARAMETERS = advise(sites=5, value_bits=TERMS.crypto.value_bits, values=100).parameters
TABLE = encode_table(load_hospitals(EXPERIMENT.data)["wisconsin"], TERMS.data)
ROUNDS = TERMS.training.rounds


def sites(terms=TERMS, *, seed=TERMS.training.seed, parameters=PARAMETERS):
    dealt = partition(TABLE.labels, sites=5, kind="dirichlet", alpha=0.5, seed=seed)
    return [
        Learner(terms=terms, parameters=parameters, table=TABLE.rows(rows), site=f"site-{number}")
        for number, rows in enumerate(dealt, start=1)
    ]


def packed(learner, state, kind=RoundKind.TRAIN, round_number=1):
    return learner.contribution(state, learner.initial_personal(), kind, round_number).packed


def pooled_auc(learners, values, common):
    labels = np.concatenate([learner.held_out_table.labels for learner in learners])
    return roc_auc_score(labels, np.concatenate([learner.held_out_scores(values, common) for learner in learners]))


def mean_change(learners, state, round_number):
    """Return FedAvg's change in float64, without grid or clipping."""
    total = np.zeros_like(state.model)
    for learner in learners:
        trained = train(
            learner.terms.model,
            state.model,
            state.standardisation.apply(learner.training_table.features),
            learner.training_table.labels,
            learner.terms.training,
            epochs=learner.terms.training.local_epochs,
            rng=public_generator(
                "batches", seed=learner.terms.training.seed, site=learner.site, round_number=round_number
            ),
        )
        weight = learner.training_table.records / state.standardisation.records
        total += weight * (trained - state.model.astype(np.float32))
    return total


@pytest.fixture(scope="module")
def learners():
    return sites()


@pytest.fixture(scope="module")
def histories(learners):
    return federation(learners, ROUNDS)[0]


def test_five_unlike_sites_learn_together_what_none_learns_alone(learners, histories):
    last = histories[0][-1]
    alone = [pooled_auc(learners, *learner.local_baseline()) for learner in learners]

    together = pooled_auc(learners, last.model, last.standardisation)

    assert together >= 0.985
    assert together > np.mean(alone)
    assert last.federated.auc == pytest.approx(together, abs=last.federated.auc_bound)
    assert last.federated.records == sum(learner.held_out_table.records for learner in learners)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_an_mlp_learns_on_other_deals_too(seed):
    terms = replace(TERMS, model=ModelTerms(kind="mlp", hidden=(16,)), training=replace(TERMS.training, seed=seed))
    learners = sites(terms, seed=seed)
    last = federation(learners, ROUNDS)[0][0][-1]

    together = pooled_auc(learners, last.model, last.standardisation)

    assert together >= 0.98
    assert together > np.mean([pooled_auc(learners, *learner.local_baseline()) for learner in learners])


def test_all_sites_are_in_the_same_state_after_every_sum(histories):
    digests = [[state.shared_digest() for state in history] for history in histories]

    assert all(history == digests[0] for history in digests)
    assert len(set(digests[0])) == len(digests[0])


def test_the_same_seed_gives_the_same_bits_and_another_does_not(histories):
    again = federation(sites(), 2)[0][0][3]
    other = federation(sites(replace(TERMS, training=replace(TERMS.training, seed=1))), 2)[0][0][3]

    assert again.shared_digest() == histories[0][3].shared_digest()
    assert other.shared_digest() != again.shared_digest()


def test_each_sum_is_float64_fedavg_within_the_quantisation_bound(learners, histories):
    slices = tensor_slices(TERMS.model.tensor_shapes(30))
    weight_error = len(learners) * 2.0 ** -(PARAMETERS.value_bits - 2)
    for round_number in range(1, ROUNDS + 1):
        before, after = histories[0][round_number], histories[0][round_number + 1]
        expected = mean_change(learners, before, round_number)
        for exponent, place in zip(before.step_exponents.tolist(), slices.values(), strict=True):
            bound = (len(learners) / 2 * math.ldexp(1, exponent) + np.abs(expected[place]) * weight_error) * 1.01
            assert (np.abs(after.model[place] - before.model[place] - expected[place]) <= bound).all()


def test_the_whole_run_stays_near_float64_fedavg(learners, histories):
    state = histories[0][1]
    for round_number in range(1, ROUNDS + 1):
        state = replace(state, model=state.model + mean_change(learners, state, round_number))

    np.testing.assert_allclose(histories[0][-1].model, state.model, atol=1e-4)


def test_the_grid_gets_finer_as_the_model_settles(histories):
    assert (histories[0][-1].step_exponents < histories[0][0].step_exponents).all()


def test_the_first_grid_covers_the_agreed_clip(learners):
    exponent = int(learners[0].initial_state().step_exponents[0])

    assert math.ldexp(PARAMETERS.clip_steps, exponent) >= TERMS.training.clip
    assert math.ldexp(PARAMETERS.clip_steps, exponent - 1) < TERMS.training.clip


def test_statistics_are_those_of_training_patients_only(learners):
    common = after_statistics(learners).standardisation
    pooled = np.concatenate([learner.training_table.features for learner in learners])

    assert common.records == len(pooled)
    np.testing.assert_allclose(common.mean, pooled.mean(axis=0), rtol=1e-5)


def test_metrics_belong_to_the_model_before_the_sum_and_the_best_loss_is_kept(learners, histories):
    history = histories[0]
    for before, after in pairwise(history[1:]):
        assert after.best_loss == min(before.best_loss, after.federated.training_loss)

    scores = [learner.held_out_scores(history[5].model, history[5].standardisation) for learner in learners]
    labels = np.concatenate([learner.held_out_table.labels for learner in learners])
    assert history[6].federated.brier == pytest.approx(np.mean((np.concatenate(scores) - labels) ** 2), abs=2.0**-20)


def test_a_worse_model_does_not_change_the_best_loss(learners):
    good = after_statistics(learners)
    good = learners[0].apply(good, RoundKind.EVALUATE, summed(learners, good, RoundKind.EVALUATE, 1))
    worse = replace(good, model=good.model + 1)

    kept = learners[0].apply(worse, RoundKind.EVALUATE, summed(learners, worse, RoundKind.EVALUATE, 2))

    assert kept.federated.training_loss > kept.best_loss == good.best_loss


def test_an_evaluation_moves_no_model_and_no_grid(histories):
    trained, evaluated = histories[0][-2:]

    np.testing.assert_array_equal(evaluated.model, trained.model)
    np.testing.assert_array_equal(evaluated.step_exponents, trained.step_exponents)


def test_a_sum_over_some_of_the_sites_is_their_weighted_mean(learners):
    state = after_statistics(learners)
    some = learners[:3]

    moved = some[0].apply(state, RoundKind.TRAIN, summed(some, state, RoundKind.TRAIN, 1))

    share = sum(learner.training_table.records for learner in some) / state.standardisation.records
    assert share < 0.95
    np.testing.assert_allclose(moved.model, mean_change(some, state, 1) / share, atol=1e-4)


def test_sites_with_one_label_take_part():
    rows = np.flatnonzero(TABLE.labels == 1)[:20]
    learners = [
        *sites()[:3],
        Learner(terms=TERMS, parameters=PARAMETERS, table=TABLE.rows(rows), site="malignant only"),
    ]

    last = federation(learners, 3)[0][0][-1]
    metrics = learners[-1].evaluate(last.model, last.standardisation)

    assert metrics.auc is None
    assert metrics.records == 5
    assert pooled_auc(learners, last.model, last.standardisation) > 0.9


def small(*, rows=24, **training):
    """Return one site with a tiny table of two features."""
    data = DataTerms(
        name="ward",
        columns=(ColumnTerms(name="a", centre=0, scale=1), ColumnTerms(name="b", centre=0, scale=1)),
        smallest_count=1,
    )
    features = np.random.default_rng(8).normal(size=(rows, 2))
    table = Table(features=features, labels=(features[:, 0] > 0).astype(np.int8))
    terms = Terms(data=data, training=TrainingTerms(**training))
    return Learner(terms=terms, parameters=PARAMETERS, table=table, site="small")


def test_a_change_beyond_the_range_is_clipped_and_widens_the_next_range():
    learner = small(learning_rate=0.5, clip=0.01)
    state = after_statistics([learner])

    moved = learner.apply(state, RoundKind.TRAIN, packed(learner, state))

    limit = math.ldexp(PARAMETERS.clip_steps, int(state.step_exponents[0]))
    unlimited = mean_change([learner], state, 1)
    assert np.abs(unlimited[0]) > limit
    assert np.abs(moved.model[0]) == pytest.approx(limit, rel=1e-4)
    assert math.ldexp(PARAMETERS.clip_steps, int(moved.step_exponents[0])) >= 2 * 16 * limit


def test_the_range_never_leaves_its_limits():
    learner = small(learning_rate=1e-9, clip=1.0)
    state = after_statistics([learner])

    moved = learner.apply(state, RoundKind.TRAIN, packed(learner, state))

    assert math.ldexp(PARAMETERS.clip_steps, int(moved.step_exponents[0]) - 1) < RANGE_LIMITS[0]


def test_weight_and_clipped_share_are_sent_with_the_update():
    learner = small(learning_rate=0.5, clip=0.01)
    state = after_statistics([learner])
    state = replace(state, standardisation=replace(state.standardisation, records=learner.training_table.records * 3))

    plan = packing_plan(RoundKind.TRAIN, learner.terms, PARAMETERS)
    content = plan.unpack(packed(learner, state))

    unit = 2 ** (PARAMETERS.value_bits - 2)
    assert content["weight"].tolist() == [unit // 3]
    assert content["clipped"].tolist() == [round(unit / 3)]  # every weight of the network was clipped


def test_a_diverged_update_is_refused_by_its_tensor():
    learner = small(learning_rate=1e3, weight_decay=1e3, local_epochs=30)
    state = after_statistics([learner])

    with pytest.raises(ValueRefusedError, match=r"tensor output\.weight: NaN"):
        packed(learner, state)


def test_a_diverged_model_is_refused_by_its_tensor():
    learner = small()
    state = after_statistics([learner])
    total = packed(learner, state)

    with pytest.raises(ValueRefusedError, match=r"tensor output\.bias: NaN or infinite after the sum"):
        learner.apply(replace(state, model=np.array([0.0, 0.0, math.inf])), RoundKind.TRAIN, total)


@pytest.mark.parametrize("weight", [-1, (1 << (PARAMETERS.value_bits - 2)) + 1])
def test_weights_that_are_no_shares_are_refused(weight):
    learner = small()
    state = after_statistics([learner])
    plan = packing_plan(RoundKind.TRAIN, learner.terms, PARAMETERS)
    content = plan.unpack(packed(learner, state))
    content["weight"] = np.array([weight])

    with pytest.raises(ValueRefusedError, match="weight"):
        learner.apply(state, RoundKind.TRAIN, plan.pack(content))


def test_a_sum_that_withheld_its_counts_moves_the_model_and_says_nothing_else():
    learner = small()
    state = after_statistics([learner])
    plan = packing_plan(RoundKind.TRAIN, learner.terms, PARAMETERS)
    total = packed(learner, state)

    full, bare = (learner.apply(state, RoundKind.TRAIN, vector) for vector in (total, plan.model_only(total)))

    np.testing.assert_array_equal(bare.model, full.model)  # a single site's weight is 1 anyway
    assert full.federated is not None
    assert (bare.federated, bare.best_loss) == (None, state.best_loss)


def test_a_site_outside_the_statistics_sum_cannot_weigh_more_than_all():
    learner = small()
    state = after_statistics([learner])
    state = replace(state, standardisation=replace(state.standardisation, records=3))

    with pytest.raises(ValueRefusedError, match="statistics sum"):
        packed(learner, state)


@pytest.mark.parametrize("kind", [RoundKind.TRAIN, RoundKind.EVALUATE])
def test_statistics_come_first(learners, kind):
    with pytest.raises(RoundKindMismatchError, match=f"expected STATISTICS, got {kind.name}"):
        packed(learners[0], learners[0].initial_state(), kind)


def test_statistics_come_once(learners):
    state = after_statistics(learners)

    with pytest.raises(RoundKindMismatchError, match="got STATISTICS"):
        packed(learners[0], state, RoundKind.STATISTICS)
    with pytest.raises(RoundKindMismatchError, match="got STATISTICS"):
        learners[0].apply(state, RoundKind.STATISTICS, np.zeros((1, PARAMETERS.ring_degree), dtype=np.int64))


def test_the_local_baseline_uses_nothing_but_the_site_itself():
    learner = small()
    values, own = learner.local_baseline()

    assert own.records == learner.training_table.records == 18
    np.testing.assert_allclose(own.mean, learner.training_table.features.mean(axis=0), atol=1e-4)
    assert learner.evaluate(values, own).auc == 1.0


def test_one_patient_cannot_be_a_site():
    with pytest.raises(DataError):
        small(rows=1)
