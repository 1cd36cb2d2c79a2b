"""The provider's ServerApp: runs what the run config says, and records how it ended."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from flwr.app import Context, RecordDict

import conf
import server.app
from protocol.envelope import Request
from protocol.errors import AgreementMismatchError, CohortError, ConfigurationError, RunPausedError


@pytest.fixture
def serve(grid_of):
    def serve_over(federation, interfere=lambda reply: reply, **changes):
        experiment = federation.experiment
        waits = {"join_seconds": 1.0, "ready_seconds": 1.0, "upload_seconds": 1.0}
        experiment = replace(experiment, federation=replace(experiment.federation, **waits), **changes)
        grid = grid_of(federation, interfere)
        config = {"hydra": conf.to_yaml(experiment)}
        server.app.app(grid, Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=config))

    return serve_over


def events(federation):
    lines = (federation.directory / "provider" / "events.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_run_is_recorded_from_start_to_finish(serve, founded):
    serve(founded)

    assert [entry["event"] for entry in events(founded)] == [
        "started",
        "joined",
        "opened",
        *["sum-kept", "round"] * 4,
        "finished",
    ]
    assert {path.name for path in founded.directory.iterdir()} == {"sites", "provider"}


def test_a_run_without_a_cohort_is_recorded_as_failed(serve, founded):
    with pytest.raises(CohortError):
        serve(founded, lambda reply: None if reply.metadata.message_type == str(Request.PREPARE) else reply)

    assert events(founded)[-1]["event"] == "failed"
    assert events(founded)[-1]["reason"].startswith("CohortError: sites ready for round 0")


def test_a_paused_run_is_recorded_once(serve, founded):
    def lose(reply):
        is_lost = (reply.metadata.message_type, reply.metadata.src_node_id) == (str(Request.UPLOAD), 102)
        return None if is_lost else reply

    with pytest.raises(RunPausedError):
        serve(founded, lose)

    assert [entry["event"] for entry in events(founded)][-1] == "paused"
    assert "failed" not in [entry["event"] for entry in events(founded)]


def test_a_run_under_other_terms_than_the_sites_is_not_opened(serve, founded):
    strategy = replace(founded.experiment.strategy, rounds=1)

    with pytest.raises(AgreementMismatchError):
        serve(founded, strategy=strategy)
    assert events(founded)[-1]["reason"].startswith("AgreementMismatchError")


def test_a_run_config_that_is_none_starts_nothing(founded, grid_of):
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={"hydra": "nothing"})
    with pytest.raises(ConfigurationError):
        server.app.app(grid_of(founded), context)
    assert not (founded.directory / "provider").exists()
