"""Read the event logs that provider and sites write while a run goes on.

Each line is one JSON object with at least "event" and "time" (seconds since 1970).

Trust: runs at the simulation's observer. Events hold names, sizes and times; never values, keys or records.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, TypeAlias

from protocol.errors import RunFailedError, RunPausedError

Event: TypeAlias = Mapping[str, Any]

PROVIDER_EVENTS: Final = Path("provider", "events.jsonl")
"""The provider's log, below a run directory."""


PROVIDER_SUMS: Final = Path("provider", "sums")
"""The encrypted sums that the provider keeps, below a run directory; a file per round, in order of name."""


class RunStatus(StrEnum):
    """How a run stands."""

    COMPLETED = "completed"
    PAUSED = "paused"
    FAILED = "failed"
    INCOMPLETE = "incomplete"


FINAL_EVENTS: Final = {
    "finished": RunStatus.COMPLETED,
    "paused": RunStatus.PAUSED,
    "failed": RunStatus.FAILED,
}
"""Events after which the provider writes no more, and what they mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended.

    Attributes:
        status: Completed or not.
        reason: Why not, in the provider's words; empty for a completed run.
    """

    status: RunStatus
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundEvent:
    """One finished round, as the provider saw it.

    Attributes:
        round: 0 for statistics, 1..R for training, R + 1 for evaluation.
        kind: "statistics", "train" or "evaluate".
        cohort: Names of the sites that were summed.
        left_out: Names of the sites that were not.
        up_bytes: Bytes that each site of the cohort sent.
        down_bytes: Bytes that each site of the cohort received.
        seconds: Phase -> seconds, with at least "total".
    """

    round: int
    kind: str
    cohort: tuple[str, ...]
    left_out: tuple[str, ...]
    up_bytes: int
    down_bytes: int
    seconds: Mapping[str, float]

    @classmethod
    def from_event(cls, event: Event) -> RoundEvent:
        """Convert an event of the kind "round"."""
        return cls(
            round=event["round"],
            kind=event["kind"],
            cohort=tuple(event["cohort"]),
            left_out=tuple(event["left_out"]),
            up_bytes=event["up_bytes"],
            down_bytes=event["down_bytes"],
            seconds=event["seconds"],
        )


class EventTail:
    """Follows a log that is still being written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read(self) -> list[Event]:
        """Return the events that were completed since the last call; a half-written line waits for its end."""
        try:
            with self._path.open("rb") as log:
                log.seek(self._offset)
                text = log.read()
        except FileNotFoundError:
            return []
        complete = text[: text.rfind(b"\n") + 1]
        self._offset += len(complete)
        return [event for line in complete.splitlines() if (event := _event_from_line(line)) is not None]


def read_events(path: Path) -> list[Event]:
    """Return all complete events of a log; none if there is no such file."""
    return EventTail(path).read()


def outcome_from_events(events: Sequence[Event]) -> Outcome:
    """Return what the provider's events say about the end of their run."""
    if not events or events[-1]["event"] not in FINAL_EVENTS:
        return Outcome(status=RunStatus.INCOMPLETE, reason="the provider's log has no end")
    last = events[-1]
    if last["event"] == "finished" and not last["states_identical"]:
        return Outcome(status=RunStatus.FAILED, reason="the sites did not end in one state")
    return Outcome(status=FINAL_EVENTS[last["event"]], reason=last.get("reason", ""))


def site_complaints(sites: Path) -> list[str]:
    """Return what each site last refused and why, from its own log; sites with the same reason together.

    Args:
        sites: Directory with a vault per site.
    """
    sites_by_reason: dict[str, list[str]] = {}
    for log in sorted(sites.glob("*/events.jsonl")):
        refusals = [event for event in read_events(log) if event["event"] == "refused"]
        if refusals:
            reason = f"{refusals[-1]['request']} refused: {refusals[-1]['reason']}"
            sites_by_reason.setdefault(reason, []).append(log.parent.name)
    return [f"{', '.join(names)}: {reason}" for reason, names in sites_by_reason.items()]


def check_completed(outcome: Outcome) -> None:
    """Raise unless a run has completed.

    Raises:
        RunPausedError: It waits for people.
        RunFailedError: It failed, or has not ended.
    """
    match outcome.status:
        case RunStatus.PAUSED:
            raise RunPausedError(f"the run is paused: {outcome.reason}")
        case RunStatus.FAILED:
            raise RunFailedError(f"the run failed: {outcome.reason}")
        case RunStatus.INCOMPLETE:
            raise RunFailedError(f"the run has not ended: {outcome.reason}")


def _event_from_line(line: bytes) -> Event | None:
    """Convert a line; None for one that a crash cut short."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "event" in event else None
