"""The plaintext twin adds exactly what its cohort contributes, or nothing."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from protocol.errors import CohortIncompleteError
from scripts.simulation.in_process import InProcessGrid
from strategies.plain_fedavg import CONTRIBUTION, ROUND, SUMS, PlainFedAvg

BIG = 2**53 + 1
"""An integer that float64 cannot hold."""


@pytest.fixture
def asked():
    """What the clients were asked: (node, round, the last sum)."""
    return []


@pytest.fixture
def grid(asked):
    """Three nodes; node n contributes n times (1, -2, BIG) in every round, and node 3 fails in round 2."""
    app = ClientApp()

    @app.train()
    def contribute(message, context):
        round_number = message.content.config_records[ROUND][ROUND]
        sums = [array.numpy() for array in message.content.array_records[SUMS].values()]
        asked.append((context.node_id, round_number, sums))
        if (context.node_id, round_number) == (3, 2):
            return Message(Error(code=1, reason="none"), reply_to=message)
        contribution = context.node_id * np.array([[1, -2, BIG]])
        return Message(RecordDict({SUMS: ArrayRecord({CONTRIBUTION: Array(contribution)})}), reply_to=message)

    return InProcessGrid(app, {1: {}, 2: {}, 3: {}}, {})


def run(grid, *cohorts):
    result = PlainFedAvg(cohorts).start(grid, ArrayRecord(), num_rounds=len(cohorts))
    (total,) = (array.numpy() for array in result.arrays.values())
    return total


def test_the_sum_is_exact_in_integers(grid):
    total = run(grid, [1, 2, 3])

    assert total.dtype == np.int64
    assert total.tolist() == [[6, -12, 6 * BIG]]


def test_each_round_adds_its_own_cohort_and_everybody_gets_the_sum(grid, asked):
    total = run(grid, [1, 2, 3], [2, 3], [1, 2])

    assert total.tolist() == [[3, -6, 3 * BIG]]
    assert [(node, number) for node, number, _ in asked] == [
        (node, number) for number in range(3) for node in (1, 2, 3)
    ]
    received = {number: [sum_.tolist() for sum_ in sums] for _, number, sums in asked}
    assert received == {0: [], 1: [[[6, -12, 6 * BIG]]], 2: [[[5, -10, 5 * BIG]]]}


@pytest.mark.parametrize(("last_cohort", "added"), [([1, 2, 3], (1, 2)), ([3], ()), ([1, 4], (1,))])
def test_a_contribution_that_is_missing_is_an_error(grid, last_cohort, added):
    with pytest.raises(CohortIncompleteError) as refusal:
        run(grid, [1, 2], [1, 2], last_cohort)
    assert (refusal.value.expected, refusal.value.got) == (tuple(last_cohort), added)


def test_nobody_is_asked_to_evaluate(grid):
    strategy = PlainFedAvg([[1]])

    assert list(strategy.configure_evaluate(1, ArrayRecord(), ConfigRecord(), grid)) == []
    assert strategy.aggregate_evaluate(1, iter([])) is None
