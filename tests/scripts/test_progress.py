from __future__ import annotations

import io

from rich.console import Console

from scripts.events import Event, RoundEvent
from scripts.progress import describe_round, progress_display


def round_event(number: int, kind: str, left_out: tuple[str, ...] = ()) -> Event:
    return {
        "event": "round", "time": 1.0, "round": number, "kind": kind, "cohort": ["a", "b", "c"],
        "left_out": list(left_out), "up_bytes": 49_400, "down_bytes": 51_000, "seconds": {"total": 1.26},
    }  # fmt: skip


EVENTS: list[Event] = [
    {"event": "started", "time": 0.0, "rounds": 2, "sites": 3},
    {"event": "joined", "time": 0.5, "sites": ["a", "b", "c"]},
    {"event": "opened", "time": 0.6},
    round_event(0, "statistics"),
    round_event(1, "train"),
    round_event(2, "train", ("d",)),
    round_event(3, "evaluate"),
    {"event": "finished", "time": 9.0, "states_identical": True},
    {"event": "a kind of a later version", "time": 9.0},
]


def shown(*, terminal: bool) -> str:
    text = io.StringIO()
    with progress_display(Console(file=text, force_terminal=terminal, width=120)) as display:
        for event in EVENTS:
            display.show(event)
    return text.getvalue()


def test_without_a_terminal_there_is_a_line_per_event() -> None:
    lines = shown(terminal=False).splitlines()
    assert len(lines) == len(EVENTS) - 1
    assert "\x1b" not in "".join(lines)
    assert lines[4] == "round 1/2: 3 sites in 1.3 s, each 49.4 kB up and 51.0 kB down"
    assert lines[5].endswith("; left out: d")


def test_on_a_terminal_the_bar_counts_statistics_training_and_evaluation() -> None:
    text = shown(terminal=True)
    assert "4/4" in text
    assert "\x1b" in text


def test_rounds_beside_training_are_named_by_what_they_sum() -> None:
    assert describe_round(RoundEvent.from_event(round_event(0, "statistics")), 2).startswith("statistics: 3 sites")
