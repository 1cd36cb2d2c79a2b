"""Optimisers that run at the sites do what Flower's strategies do at a server, and always with the same bits."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import strategy as flower
from plain_sum import federation

from clients.data.generator import public_generator
from clients.data.table import Table
from clients.learning.learner import Learner
from clients.learning.optimisers import OptimiserState, apply_change
from clients.learning.training import train
from protocol.data_terms import ColumnTerms, DataTerms
from protocol.parameters import advise
from protocol.terms import OPTIMISERS, OptimiserTerms, Terms, TrainingTerms
from scripts.simulation.in_process import InProcessGrid, quiet_flower

RATE, MOMENTUM, BETA_1, BETA_2, TAU = 0.3, 0.8, 0.7, 0.95, 0.1
FLOWER = {
    "fedavg": lambda: flower.FedAvg(fraction_evaluate=0.0),
    "fedavgm": lambda: flower.FedAvgM(fraction_evaluate=0.0, server_learning_rate=RATE, server_momentum=MOMENTUM),
    "fedadagrad": lambda: flower.FedAdagrad(fraction_evaluate=0.0, eta=RATE, tau=TAU),
    "fedadam": lambda: flower.FedAdam(fraction_evaluate=0.0, eta=RATE, beta_1=BETA_1, beta_2=BETA_2, tau=TAU),
    "fedyogi": lambda: flower.FedYogi(fraction_evaluate=0.0, eta=RATE, beta_1=BETA_1, beta_2=BETA_2, tau=TAU),
}
ROUNDS = 5
SITES = 3
PARAMETERS = advise(sites=SITES, value_bits=21, values=100).parameters


def terms_of(kind):
    # Flower's FedAvg knows no step size
    rate = 1.0 if kind == "fedavg" else RATE
    return OptimiserTerms(kind=kind, learning_rate=rate, momentum=MOMENTUM, beta_1=BETA_1, beta_2=BETA_2, tau=TAU)


def flower_models(kind, start, examples, train_client):
    """Run Flower's own strategy to the end; return the model after each round.

    `train_client(client, round_number, model)` returns a client's model, and `examples` its weight.
    """
    app, received = ClientApp(), {}

    @app.train()
    def reply(message, context):
        round_number, model = message.content["config"]["server-round"], message.content["arrays"]["model"].numpy()
        received[round_number] = model
        client = context.node_id - 1
        content = {
            "arrays": ArrayRecord({"model": Array(train_client(client, round_number, model))}),
            "metrics": MetricRecord({"num-examples": examples[client]}),
        }
        return Message(RecordDict(content), reply_to=message)

    grid = InProcessGrid(app, {client + 1: {} for client in range(len(examples))}, {})
    with quiet_flower():
        result = FLOWER[kind]().start(grid, ArrayRecord({"model": Array(start)}), num_rounds=ROUNDS)
    return [*(received[number] for number in range(2, ROUNDS + 1)), result.arrays["model"].numpy()]


@pytest.mark.parametrize("kind", OPTIMISERS)
@pytest.mark.parametrize("seed", range(3))
def test_five_rounds_are_flower_s_own(kind, seed):
    rng = np.random.default_rng(seed)
    examples = [7, 30, 63]
    start, updates = rng.normal(size=50), rng.normal(scale=0.1, size=(ROUNDS + 1, len(examples), 50))

    expected = flower_models(
        kind, start, examples, lambda client, round_number, model: model + updates[round_number, client]
    )

    model, state = start, OptimiserState()
    for round_number in range(1, ROUNDS + 1):
        change = np.average(updates[round_number], axis=0, weights=examples)
        model, state = apply_change(terms_of(kind), model, change, state)
        np.testing.assert_allclose(model, expected[round_number - 1], rtol=1e-12)


def sites(kind):
    """Return three sites of unlike size."""
    data = DataTerms(
        name="ward", columns=(ColumnTerms(name="a", centre=0, scale=1), ColumnTerms(name="b", centre=0, scale=1))
    )
    training = TrainingTerms(rounds=ROUNDS, optimiser=terms_of(kind))
    rng = np.random.default_rng(8)
    learners = []
    for number, rows in enumerate((24, 40, 100)):
        features = rng.normal(loc=number / 2, size=(rows, 2))
        labels = (features[:, 0] + rng.normal(size=rows) > 0.5).astype(np.int8)
        table = Table(features=features, labels=labels)
        terms = Terms(data=data, training=training)
        learners.append(Learner(terms=terms, parameters=PARAMETERS, table=table, site=f"site-{number}"))
    return learners


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_sites_that_train_on_the_grid_stay_with_flower_s_server(kind):
    learners = sites(kind)
    states = federation(learners, ROUNDS)[0][0]
    common, training = states[1].standardisation, learners[0].terms.training

    def train_client(client, round_number, model):
        learner = learners[client]
        return train(
            learner.terms.model,
            model,
            common.apply(learner.training_table.features),
            learner.training_table.labels,
            training,
            epochs=training.local_epochs,
            rng=public_generator("batches", seed=training.seed, site=learner.site, round_number=round_number),
        )

    expected = flower_models(
        kind, states[1].model, [learner.training_table.records for learner in learners], train_client
    )

    # an adaptive step multiplies the grid's error by at most rate / tau
    steepest = {"fedavg": 1.0, "fedavgm": RATE}.get(kind, RATE / TAU)
    step = math.ldexp(1, int(states[1].step_exponents.max()))
    weight_error = SITES * 2.0 ** -(PARAMETERS.value_bits - 2)
    bound = steepest * (SITES / 2 * step + weight_error + 1e-6)
    assert np.abs(states[2].model - expected[0]).max() <= bound
    np.testing.assert_allclose(states[ROUNDS + 1].model, expected[-1], atol=1e-5)
    assert np.abs(expected[-1]).max() > 0.1


def fixed_changes(count, width=67):
    """Return changes that no library's random numbers or logarithms can alter."""
    return np.array(
        [
            [(step * 7919 + place * 104729 + 1) * 2654435761 % 2**32 / 2**32 - 0.5 for place in range(width)]
            for step in range(count)
        ]
    )


def walk(kind, changes, model):
    state = OptimiserState()
    for change in changes:
        model, state = apply_change(terms_of(kind), model, change, state)
    return model, state


@pytest.mark.parametrize(
    ("kind", "digest"),
    [
        ("fedavg", "918060c71767a2acbc7c64ae71d575d0aa85611b3900d353c4055b22f8fc25c9"),
        ("fedavgm", "3be645bcf34f5bc520862710eeb51bb4bfe98c7246fc9fb77c211df95f4cadb8"),
        ("fedadagrad", "86a67eea6db34b1c5e3b46be992c5141e86040443b3c80bd9d034a1c17551b3f"),
        ("fedadam", "23d3f56aa5475557e327c77313a27eb62fe8839a2625b18a6881df85757315dd"),
        ("fedyogi", "8e47fb415fba0bd410fc70ef15f29606accc7124547692f30d43272427f46aa3"),
    ],
)
def test_the_bits_of_twenty_steps_are_fixed_for_ever(kind, digest):
    start, *changes = fixed_changes(21)

    model, state = walk(kind, changes, start)

    assert hashlib.sha256(model.tobytes() + state.first.tobytes() + state.second.tobytes()).hexdigest() == digest


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_each_value_s_bits_depend_on_its_own_changes_alone(kind):
    start, *changes = fixed_changes(9)
    whole, _ = walk(kind, changes, start)

    for place in (0, 13, 66):
        alone, _ = walk(kind, [change[place : place + 1] for change in changes], start[place : place + 1])
        assert alone.tobytes() == whole[place : place + 1].tobytes()


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_a_step_leaves_what_it_is_given_as_it_was(kind):
    start, first, second = fixed_changes(3)
    model, state = apply_change(terms_of(kind), start, first, OptimiserState())
    before = [array.copy() for array in (model, second, state.first, state.second)]

    apply_change(terms_of(kind), model, second, state)

    for array, copy in zip((model, second, state.first, state.second), before, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_no_change_at_all_moves_nothing(kind):
    start, *_ = fixed_changes(1)

    model, state = walk(kind, np.zeros((3, len(start))), start)

    np.testing.assert_array_equal(model, start)
    assert state.steps == 3


@pytest.mark.parametrize(
    ("kind", "first", "second"),
    [("fedavg", 0, 0), ("fedavgm", 67, 0), ("fedadagrad", 0, 67), ("fedadam", 67, 67), ("fedyogi", 67, 67)],
)
def test_an_optimiser_remembers_only_what_it_needs(kind, first, second):
    start, *changes = fixed_changes(3)

    _, state = walk(kind, changes, start)

    assert (state.first.size, state.second.size) == (first, second)


def test_fedavg_scales_the_change_by_its_rate():
    start, change = fixed_changes(2)

    model, _ = apply_change(replace(terms_of("fedavg"), learning_rate=0.5), start, change, OptimiserState())

    np.testing.assert_array_equal(model, start + 0.5 * change)


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_the_optimiser_is_part_of_the_state_that_sites_compare(kind):
    states = federation(sites(kind), 2)[0]

    assert len({history[-1].shared_digest() for history in states}) == 1
    assert states[0][-1].optimiser.steps == 2  # neither the statistics nor the evaluation is a step
    forgetful = replace(states[0][-1], optimiser=OptimiserState())
    assert forgetful.shared_digest() != states[0][-1].shared_digest()
