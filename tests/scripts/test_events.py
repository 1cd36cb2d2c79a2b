from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import FederationError, RunFailedError, RunPausedError
from scripts.events import EventTail, Outcome, RoundEvent, RunStatus, check_completed, outcome_from_events, read_events

FINISHED = {"event": "finished", "time": 9.0, "states_identical": True}


def test_a_log_that_does_not_exist_yet_has_no_events(tmp_path: Path) -> None:
    assert EventTail(tmp_path / "events.jsonl").read() == []


def test_a_half_written_line_waits_for_its_end(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    tail = EventTail(log)
    log.write_text('{"event": "started", "time": 1}\n{"event": "jo')
    assert [event["event"] for event in tail.read()] == ["started"]
    assert tail.read() == []
    with log.open("a") as file:
        file.write('ined", "time": 2}\n')
    assert [event["event"] for event in tail.read()] == ["joined"]
    assert tail.read() == []


@given(cuts=st.lists(st.integers(0, 10_000), max_size=8))
def test_events_come_once_and_in_order_however_the_log_grows(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int]
) -> None:
    log = tmp_path_factory.mktemp("log") / "events.jsonl"
    content = "".join(json.dumps({"event": "round", "site": "Köln", "round": number}) + "\n" for number in range(9))
    data = content.encode()
    tail, seen = EventTail(log), []
    for end in [*sorted(cut % len(data) for cut in cuts), len(data)]:
        log.write_bytes(data[:end])
        seen += tail.read()
    assert [event["round"] for event in seen] == list(range(9))


def test_a_line_that_a_crash_cut_short_is_passed_over(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    log.write_text('{"event": "started", "time": 1}\n{"event": "rou\n["event"]\n{"event": "opened", "time": 2}\n')
    assert [event["event"] for event in read_events(log)] == ["started", "opened"]


def test_a_round_event_is_read_with_all_its_fields() -> None:
    event = {
        "event": "round", "time": 1.0, "round": 2, "kind": "train", "cohort": ["a", "b"], "left_out": ["c"],
        "up_bytes": 10, "down_bytes": 20, "seconds": {"ready": 1.0, "upload": 0.5, "aggregate": 0.25, "total": 1.75},
    }  # fmt: skip
    assert RoundEvent.from_event(event) == RoundEvent(
        round=2, kind="train", cohort=("a", "b"), left_out=("c",), up_bytes=10, down_bytes=20,
        seconds={"ready": 1.0, "upload": 0.5, "aggregate": 0.25, "total": 1.75},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("last", "status", "error"),
    [
        ({"event": "paused", "reason": "no upload by b"}, RunStatus.PAUSED, RunPausedError),
        ({"event": "failed", "reason": "refused"}, RunStatus.FAILED, RunFailedError),
        ({"event": "finished", "states_identical": False}, RunStatus.FAILED, RunFailedError),
        ({"event": "opened"}, RunStatus.INCOMPLETE, RunFailedError),
    ],
)
def test_only_a_finished_run_has_completed(
    last: dict[str, Any], status: RunStatus, error: type[FederationError]
) -> None:
    outcome = outcome_from_events([{"event": "started"}, last])
    assert outcome.status is status
    with pytest.raises(error, match=outcome.reason) as caught:
        check_completed(outcome)
    assert caught.type is error


def test_a_finished_run_has_completed() -> None:
    outcome = outcome_from_events([{"event": "started"}, FINISHED])
    assert outcome == Outcome(status=RunStatus.COMPLETED)
    check_completed(outcome)


def test_a_run_without_events_has_not_ended() -> None:
    assert outcome_from_events([]).status is RunStatus.INCOMPLETE
