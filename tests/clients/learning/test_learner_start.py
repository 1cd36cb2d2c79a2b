"""A learner that goes on from an earlier run's model: the statistics change how it is written, not what it says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from plain_sum import after_statistics, federation, summed

from clients.data.table import Table
from clients.learning.learner import Learner
from clients.learning.starting_model import ModelPurpose, Start, StartingModel
from protocol.data_terms import ColumnTerms, DataTerms
from protocol.packing import RoundKind
from protocol.parameters import advise
from protocol.privacy_terms import PrivacyTerms
from protocol.terms import ModelTerms, Terms, TrainingTerms

PARAMETERS = advise(sites=3, value_bits=21, values=100).parameters
DATA = DataTerms(
    name="ward", columns=(ColumnTerms(name="a", centre=0, scale=1), ColumnTerms(name="b", centre=0, scale=1))
)
TERMS = Terms(data=DATA, training=TrainingTerms(rounds=2))
OWN_INTERCEPT = replace(TERMS, model=ModelTerms(personal=("output.bias",)))
MEAN, DEVIATION = np.array([0.5, -0.25]), np.array([2.0, 0.5])


def start_of(terms, personal=None):
    values = np.array([1.5, -0.5, 0.25])[: 3 - len(terms.model.personal)]
    model = StartingModel(purpose=ModelPurpose.of(terms), mean=MEAN, deviation=DEVIATION, values=values)
    return Start(model=model, personal=personal)


def sites(terms=TERMS, *, starts=None):
    rng = np.random.default_rng(5)
    learners = []
    for number in range(3):
        features = rng.normal(size=(60, 2))
        labels = (features[:, 0] + 0.5 * rng.normal(size=60) > 0).astype(np.int8)
        start = starts[number] if starts else start_of(terms)
        learners.append(
            Learner(
                terms=terms,
                parameters=PARAMETERS,
                table=Table(features=features, labels=labels),
                site=f"site-{number}",
                start=start,
            )
        )
    return learners


def logits(values, mean, deviation):
    patients = np.array([[0.0, 0.0], [1.0, -2.0], [-3.0, 0.5]])
    return (patients - mean) / deviation @ values[:2] + values[2]


def test_before_the_statistics_it_is_the_starting_model_and_after_them_it_says_the_same():
    learner, *_ = learners = sites()

    before, after = learner.initial_state(), after_statistics(learners)

    assert before.model.tolist() == [1.5, -0.5, 0.25]
    assert not np.isclose(after.model, before.model).any()
    common = after.standardisation
    np.testing.assert_allclose(
        logits(after.model, common.mean, common.deviation), logits(before.model, MEAN, DEVIATION), rtol=0, atol=1e-12
    )


def test_with_noise_too():
    privacy = PrivacyTerms(noise_multiplier=1.0)
    after = after_statistics(sites(replace(TERMS, privacy=privacy, training=TrainingTerms(rounds=2, clip=8.0))))

    assert after.model.tobytes() == after_statistics(sites()).model.tobytes()


def test_an_own_intercept_takes_the_shift_and_the_shared_values_do_not_know_it():
    starts = [start_of(OWN_INTERCEPT, np.array([personal])) for personal in (0.25, -1.0)]
    learners = sites(OWN_INTERCEPT, starts=[*starts, start_of(OWN_INTERCEPT)])
    before = learners[0].initial_state()
    total = summed(learners, before, RoundKind.STATISTICS, 0)

    states = [learner.apply(before, RoundKind.STATISTICS, total) for learner in learners]

    assert len({state.shared_digest() for state in states}) == 1
    common = states[0].standardisation
    for learner, state, personal in zip(learners, states, (0.25, -1.0, 0.0), strict=True):
        assert learner.initial_personal().tolist() == [personal]
        moved = learner.personal_after(before, state, learner.initial_personal())
        np.testing.assert_allclose(
            logits(learner.values(state, moved), common.mean, common.deviation),
            logits(np.array([1.5, -0.5, personal]), MEAN, DEVIATION),
            rtol=0,
            atol=1e-12,
        )


def test_personal_values_change_with_the_statistics_alone():
    learner, *_ = learners = sites(OWN_INTERCEPT)
    state, personal = after_statistics(learners), np.array([0.75])

    trained = learner.apply(state, RoundKind.TRAIN, summed(learners, state, RoundKind.TRAIN, 1))

    assert learner.personal_after(state, trained, personal) is personal


@pytest.mark.parametrize("terms", [TERMS, OWN_INTERCEPT])
def test_a_whole_federation_goes_on_from_it_with_the_same_bits_everywhere(terms):
    states, _ = federation(sites(terms), 2)
    untrained, _ = federation(sites(terms, starts=[None] * 3), 2)

    assert len({history[-1].shared_digest() for history in states}) == 1
    assert states[0][2].federated.training_loss < 0.95 * untrained[0][2].federated.training_loss


def test_what_a_site_learns_alone_knows_nothing_of_the_starting_model():
    with_start, without = sites()[0], sites(starts=[None] * 3)[0]

    assert with_start.local_baseline()[0].tobytes() == without.local_baseline()[0].tobytes()
