"""Values that a site trains for itself: they shape its model and never its contribution's sum."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from plain_sum import after_statistics, federation

from clients.data.table import Table
from clients.learning.learner import Learner
from clients.learning.models import ParameterLayout
from protocol.data_terms import ColumnTerms, DataTerms
from protocol.errors import ValueRefusedError
from protocol.packing import METRIC_FIELDS, RoundKind, packing_plan
from protocol.parameters import advise
from protocol.terms import ModelTerms, Terms, TrainingTerms

PARAMETERS = advise(sites=3, value_bits=21, values=100).parameters
REGRESSION = ModelTerms(personal=("output.bias",))
MLP = ModelTerms(kind="mlp", hidden=(4,), personal=("hidden.0.bias", "output.weight"))
DATA = DataTerms(
    name="ward", columns=(ColumnTerms(name="a", centre=0, scale=1), ColumnTerms(name="b", centre=0, scale=1))
)


def sites(model=REGRESSION, **training):
    """Return three sites that agree on what the features say, and not on how often the outcome is."""
    terms = Terms(data=DATA, model=model, training=TrainingTerms(**training))
    rng = np.random.default_rng(5)
    learners = []
    for number, (rows, threshold) in enumerate(((60, -1.5), (60, 0.0), (60, 1.5))):
        features = rng.normal(size=(rows, 2))
        labels = (features[:, 0] + 0.5 * rng.normal(size=rows) > threshold).astype(np.int8)
        table = Table(features=features, labels=labels)
        learners.append(Learner(terms=terms, parameters=PARAMETERS, table=table, site=f"site-{number}"))
    return learners


@pytest.mark.parametrize("model", [REGRESSION, MLP])
def test_the_sum_has_no_place_for_personal_values(model):
    plan = packing_plan(RoundKind.TRAIN, Terms(data=DATA, model=model), PARAMETERS)
    names = [field.name for field in plan.fields]

    shared = [name for name in model.tensor_shapes(2) if name not in model.personal]
    assert names == [*shared, "weight", "clipped", *METRIC_FIELDS]


@pytest.mark.parametrize("model", [REGRESSION, MLP])
def test_the_trained_personal_values_are_in_no_integer_of_the_contribution(model):
    learner, *_ = learners = sites(model, learning_rate=0.5)
    state, personal = after_statistics(learners), learner.initial_personal()

    contribution = learner.contribution(state, personal, RoundKind.TRAIN, 1)

    content = packing_plan(RoundKind.TRAIN, learner.terms, PARAMETERS).unpack(contribution.packed)
    layout = ParameterLayout(model, 2)
    sizes = {name: place.stop - place.start for name, place in layout.shared_slices.items()}
    assert {name: len(content[name]) for name in sizes} == sizes
    assert (
        len(contribution.personal)
        == len(personal)
        == sum(place.stop - place.start for name, place in layout.slices.items() if name in model.personal)
    )
    assert (contribution.personal != personal).any()
    # neither they nor their changes, in any unit in which they could have been packed
    packed = set(contribution.packed.ravel().tolist())
    weight = learner.training_table.records / state.standardisation.records
    for value in [*contribution.personal, *(contribution.personal - personal)]:
        units = [value / 2.0**exponent * share for exponent in state.step_exponents for share in (1, weight)]
        assert not {round(unit) for unit in units} & packed


@pytest.mark.parametrize("kind", [RoundKind.STATISTICS, RoundKind.EVALUATE])
def test_only_training_changes_personal_values(kind):
    learner, *_ = learners = sites()
    state = learner.initial_state() if kind is RoundKind.STATISTICS else after_statistics(learners)
    personal = np.array([0.25])

    assert learner.contribution(state, personal, kind, 1).personal.tolist() == [0.25]


def test_applying_a_sum_knows_nothing_of_personal_values():
    learner, other, _ = learners = sites()
    state = after_statistics(learners)
    total = learner.contribution(state, np.array([0.5]), RoundKind.TRAIN, 1).packed

    moved, elsewhere = (site.apply(state, RoundKind.TRAIN, total) for site in (learner, other))

    assert moved.shared_digest() == elsewhere.shared_digest()
    assert len(moved.model) == 2


@pytest.mark.parametrize("model", [REGRESSION, MLP])
def test_sites_end_with_one_shared_model_and_each_with_its_own_values(model):
    learners = sites(model, rounds=4)

    states, personals = federation(learners, 4)

    assert len({history[-1].shared_digest() for history in states}) == 1
    assert len({personal[-1].tobytes() for personal in personals}) == 3
    for learner, history, personal in zip(learners, states, personals, strict=True):
        shared, own = ParameterLayout(model, 2).split(learner.values(history[-1], personal[-1]))
        np.testing.assert_array_equal(shared, history[-1].model)
        np.testing.assert_array_equal(own, personal[-1])


def test_an_own_intercept_serves_sites_whose_outcome_is_not_equally_frequent():
    def briers(model):
        learners = sites(model, rounds=15, learning_rate=0.2)
        states, personals = federation(learners, 15)
        return [
            learner.evaluate(learner.values(history[-1], personal[-1]), history[-1].standardisation).brier
            for learner, history, personal in zip(learners, states, personals, strict=True)
        ]

    assert np.mean(briers(REGRESSION)) < 0.9 * np.mean(briers(ModelTerms()))


def test_personal_values_begin_at_the_shared_model_s_start():
    for learner in sites(MLP):
        values = learner.values(learner.initial_state(), learner.initial_personal())
        np.testing.assert_array_equal(values, sites(replace(MLP, personal=()))[0].initial_state().model)


def test_all_values_are_shared_unless_the_agreement_says_otherwise():
    assert sites(ModelTerms())[0].initial_personal().shape == (0,)


def test_personal_values_that_diverge_are_refused():
    learner, *_ = learners = sites(local_epochs=2)
    state = after_statistics(learners)

    with pytest.raises(ValueRefusedError, match=r"tensor output\.weight: NaN|personal values: NaN|scores: NaN"):
        learner.contribution(state, np.array([np.inf]), RoundKind.TRAIN, 1)
