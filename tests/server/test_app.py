"""The provider's ServerApp: runs what the run config says, and records how it ended."""

from __future__ import annotations

import gc
import json
import weakref
from dataclasses import replace
from types import SimpleNamespace

import pytest
from flwr.app import Context, RecordDict

import conf
import server.app
from conf.run_directory import RUN_DIRECTORY_VARIABLE, RUNS_VARIABLE
from protocol.envelope import Request
from protocol.errors import AgreementMismatchError, CohortError, ConfigurationError, RunFailedError, RunPausedError
from server.record import RunRecord


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


class Response:
    """Is in a cycle with itself, as an HTTP response of Flower's is."""

    def __init__(self) -> None:
        self.itself = self


def test_responses_in_cycles_do_not_pile_up_while_a_run_goes_on(serve, founded):
    alive = []

    def receive(reply):
        responses = [weakref.ref(Response()) for _ in range(100)]
        alive.append(sum(response() is not None for response in responses))
        return reply

    usual = gc.get_threshold()
    serve(founded, receive)

    assert max(alive) < 60
    assert gc.get_threshold() == usual


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


def test_a_deployed_run_is_recorded_below_its_name(founded, grid_of, monkeypatch, tmp_path):
    grid = grid_of(founded, lambda reply: None)
    monkeypatch.delenv(RUN_DIRECTORY_VARIABLE)
    monkeypatch.setenv(RUNS_VARIABLE, str(tmp_path))
    federation = replace(founded.experiment.federation, join_seconds=1.0, ready_seconds=1.0)
    config = {**conf.run_config(replace(founded.experiment, federation=federation)), "run": "2026-01-31_12-00-00"}
    with pytest.raises(CohortError):
        server.app.app(grid, Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=config))

    assert (tmp_path / "2026-01-31_12-00-00" / "provider" / "events.jsonl").exists()


def test_a_run_that_another_serverapp_works_on_is_left_alone(serve, founded, monkeypatch):
    monkeypatch.setattr("server.app.LOCK_SECONDS", 0.1)
    with RunRecord(founded.directory / "provider").locked(1), pytest.raises(RunFailedError, match="another ServerApp"):
        serve(founded)

    assert not (founded.directory / "provider" / "events.jsonl").exists()


def test_a_full_disk_is_named_whatever_failed_because_of_it(serve, founded, monkeypatch):
    monkeypatch.setattr("server.app.shutil.disk_usage", lambda path: SimpleNamespace(free=0))
    with pytest.raises(CohortError):
        serve(founded, lambda reply: None)

    (failed,) = [event for event in events(founded) if event["event"] == "failed"]
    assert failed["reason"].startswith("No space left on device (")
    assert "CohortError" in failed["reason"]
