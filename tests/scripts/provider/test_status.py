"""How runs are shown, from the records that a provider keeps."""

from __future__ import annotations

import io
import json
import time

import pytest
from filelock import FileLock
from rich.console import Console

from scripts.events import PROVIDER_EVENTS
from scripts.provider.directory import ProviderDirectory, ProviderSettings
from scripts.provider.status import print_log, print_status, run_overviews, status_json

NAME = "2026-01-31_12-00-00"
STARTED = {"event": "started", "time": 1.0, "rounds": 2, "sites": 3}
ROUND = {
    "event": "round", "time": 2.0, "round": 1, "kind": "train", "cohort": ["a", "b", "c"],
    "left_out": ["d"], "up_bytes": 1000, "down_bytes": 2000, "seconds": {"total": 1.5},
}  # fmt: skip
PAUSED = {"event": "paused", "time": 3.0, "reason": "round 2 waits"}


@pytest.fixture
def provider(tmp_path):
    directory = ProviderDirectory(tmp_path / "p")
    directory.found(ProviderSettings(hosts=("localhost",), listen="127.0.0.1", port=9092), None)
    for path in (directory.runs, directory.admitted):
        path.mkdir()
    return directory


def keep(provider, *events, name=NAME):
    log = provider.runs / name / PROVIDER_EVENTS
    log.parent.mkdir(parents=True)
    log.write_text("".join(json.dumps(event) + "\n" for event in events))
    return log


def shown(provider):
    text = io.StringIO()
    print_status(provider, Console(file=text, width=120))
    return text.getvalue()


def test_a_run_is_summed_up_from_its_events(provider):
    keep(provider, STARTED, ROUND, {**ROUND, "time": time.time() - 3600, "round": 2, "cohort": ["a", "b"]})

    (run,) = run_overviews(provider)

    assert (run.state, run.round, run.rounds, run.cohort) == ("stopped", 2, 2, 2)
    assert (run.up_bytes, run.down_bytes) == (5000, 10_000)
    assert run.age_seconds == pytest.approx(3600, abs=60)
    text = shown(provider)
    assert "2 of 2" in text
    assert "5.0 kB" in text
    assert "1 h ago" in text
    assert "the provider does not run" in text


def test_run_and_state_are_whole_on_a_narrow_terminal(provider):
    keep(
        provider,
        STARTED,
        {**ROUND, "up_bytes": 10**8, "down_bytes": 10**8, "round": 2},
        {**PAUSED, "event": "finished"},
    )
    text = io.StringIO()

    print_status(provider, Console(file=text, width=80))

    assert f"{NAME} │ completed │" in text.getvalue()


@pytest.mark.parametrize(
    ("last", "state"), [("finished", "completed"), ("paused", "paused"), ("failed", "failed"), ("joined", "stopped")]
)
def test_the_last_event_says_how_a_run_stands(provider, last, state):
    keep(provider, STARTED, {"event": last, "time": 1.0})

    assert run_overviews(provider)[0].state == state


def test_a_run_that_somebody_works_on_is_running_whatever_came_before(provider):
    log = keep(provider, STARTED, PAUSED)

    with FileLock(log.parent / ".lock"):
        assert run_overviews(provider)[0].state == "running"
    assert run_overviews(provider)[0].state == "paused"


def test_a_run_that_has_not_begun_is_shown_too(provider):
    (provider.runs / NAME).mkdir()

    (run,) = json.loads(status_json(provider))["runs"]

    assert (run["state"], run["round"], run["rounds"], run["age_seconds"]) == ("stopped", None, None, None)
    assert NAME in shown(provider)


def test_events_become_readable_lines(provider, capsys):
    keep(provider, STARTED, ROUND, PAUSED)

    print_log(provider, NAME, as_json=False)

    lines = [line[20:] for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "waiting for 3 sites",
        "round 1/2: 3 sites in 1.5 s, each 1.0 kB up and 2.0 kB down; left out: d",
        "paused reason=round 2 waits",
    ]


def test_or_stay_what_they_are(provider, capsys):
    keep(provider, STARTED, ROUND, PAUSED)

    print_log(provider, NAME, as_json=True)

    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [STARTED, ROUND, PAUSED]
