"""The plaintext twin ends in the encrypted run's model, bit for bit, whoever was in which cohort."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from protocol.envelope import Request, pack_refusal
from protocol.errors import CohortIncompleteError
from scripts.simulation.twin import plaintext_models, run_cohorts, run_learners, train_plain


def final_models(federation):
    return {federation.member(position).name: federation.values(position) for position in federation.everyone}


def are_equal(models, twins):
    assert models.keys() == twins.keys()
    return all(np.array_equal(values, twins[name]) for name, values in models.items())


def test_the_twin_ends_in_the_same_model(run, founded):
    run(founded)

    twins = plaintext_models(founded.directory)

    assert {twin.dtype for twin in twins.values()} == {np.dtype(np.float64)}
    assert are_equal(final_models(founded), twins)


def test_the_twin_follows_the_run_s_cohorts(run, founded):
    prepared = []

    def refuse_round_1(reply):
        if (reply.metadata.message_type, reply.metadata.src_node_id) == (str(Request.PREPARE), 102):
            prepared.append(reply)
            if len(prepared) == 2:
                reply.content = pack_refusal()
        return reply

    run(founded, refuse_round_1, patience_seconds=4)
    cohorts = run_cohorts(founded.directory, founded.agreement)
    learners = run_learners(founded.directory, founded.agreement)

    assert cohorts == [[0, 1, 2, 3], [0, 1, 3], [0, 1, 2, 3], [0, 1, 2, 3]]
    assert are_equal(final_models(founded), plaintext_models(founded.directory))
    assert not are_equal(train_plain(founded.agreement, learners, [[0, 1, 2, 3]] * 4), final_models(founded))


def test_one_changed_cell_changes_the_twin(run, founded):
    run(founded)
    twins = plaintext_models(founded.directory)
    table = founded.vault(3).path("data.csv")
    header, first, *rest = table.read_text().splitlines(keepends=True)
    cells = first.split(",")
    table.write_text("".join([header, ",".join([str(float(cells[0]) + 1), *cells[1:]]), *rest]))

    assert not are_equal(plaintext_models(founded.directory), twins)


def test_flower_s_log_is_as_loud_after_the_twin_as_before(run, founded):
    run(founded)
    log = logging.getLogger("flwr")
    before = log.level

    plaintext_models(founded.directory)

    assert log.level == before


def test_a_run_that_did_not_finish_has_no_twin(founded):
    (founded.directory / "provider" / "sums").mkdir(parents=True)

    with pytest.raises((CohortIncompleteError, IndexError)):
        plaintext_models(founded.directory)
