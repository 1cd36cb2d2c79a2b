"""The provider's report of one run: how it went, and what the provider saw of it.

Made of the provider's own directory alone, so it can say no more than what a provider knows.

Trust: runs at the provider; shows names, sizes, times and refusals.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from conf.page import FIRST, SECOND, figure_svg, render_page
from server.report_template import REPORT_TEMPLATE

REPORT: Final = "report.html"

Event: TypeAlias = Mapping[str, Any]

_EVENTS: Final = "events.jsonl"
_KEPT: Final = {
    "run.id": "the run's random number",
    "agreement.json": "the agreement: terms, names, public keys",
    "session.cwk": "the sites' signed public keys of this run",
    "secrets.cws": "the sites' common secret, sealed to each of them",
    "cohorts/*.cwc": "who was named for a round's sum",
    "states/*.mac": "a number that tells sites in one state from others",
    "voids/*.cwn": "a site's signed word that nothing of it left in a round",
    "sums/*.cwa": "an encrypted sum over a whole cohort",
    ".lock": "nothing; held by the program that works on the run",
}
"""What the provider keeps in order to go on, as patterns of paths; a crash may leave a `.partial` beside each."""

_TROUBLES: Final = (
    "refused", "refused-by-site", "no-answer", "states-differ", "absent", "returned", "waiting", "voided",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How a run ended.

    Attributes:
        status: "completed", "paused", "failed" or "incomplete".
        reason: Why it is not completed; empty if it is.
    """

    status: str
    reason: str = ""

    @classmethod
    def of(cls, events: Sequence[Event]) -> End:
        """Read the end of a run from its last event."""
        match events[-1] if events else {}:
            case {"event": "finished", "states_identical": True}:
                return cls(status="completed")
            case {"event": "finished"}:
                return cls(status="failed", reason="no site confirmed the state in which the run ended")
            case {"event": ("paused" | "failed") as status, "reason": reason}:
                return cls(status=status, reason=reason)
        return cls(status="incomplete", reason="the record has no end: the provider's process stopped before it")


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldFile:
    """A file in the provider's directory, or several of one kind.

    Attributes:
        name: Its path below that directory; of several, the first and the last.
        count: Number of files.
        size: Bytes of all of them.
        content: What each holds; empty for a file that the provider's program has not written.
    """

    name: str
    count: int
    size: int
    content: str


def write_provider_report(directory: Path) -> None:
    """Write `provider/report.html` from what is in `provider/`.

    Args:
        directory: The run's directory.
    """
    provider = directory / "provider"
    events = _read_events(provider / _EVENTS)
    rounds = [event for event in events if event["event"] == "round"]
    page = render_page(
        REPORT_TEMPLATE,
        end=End.of(events),
        started=events[0]["time"] if events else None,
        ended=events[-1]["time"] if events else None,
        planned=next((event["rounds"] for event in events if event["event"] == "started"), None),
        sites=next((event["sites"] for event in events if event["event"] == "joined"), []),
        not_closed=next((event["not_closed"] for event in events if event["event"] == "finished"), []),
        rounds=rounds,
        charts=[_bytes_chart(rounds), _seconds_chart(rounds)] if rounds else [],
        troubles=[event for event in events if event["event"] in _TROUBLES],
        files=_held_files(provider),
    )
    report = provider / REPORT
    partial = report.with_suffix(".partial")
    partial.write_bytes(page)
    partial.replace(report)


def _read_events(path: Path) -> list[Event]:
    events: list[Event] = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            event = json.loads(line)
        except ValueError:  # a crash cut this line off
            continue
        if isinstance(event, dict) and {"event", "time"} <= set(event):
            events.append(event)
    return events


def _held_files(provider: Path) -> list[HeldFile]:
    """Return what the provider's directory holds; files of one kind in a row."""
    paths = sorted(path for path in provider.rglob("*") if path.is_file() and path != provider / REPORT)
    names: dict[str, list[Path]] = {}
    for path in paths:
        content = _content_of(path, provider)
        names.setdefault(content or str(path), []).append(path)
    return [
        HeldFile(
            name=" to ".join(dict.fromkeys(str(path.relative_to(provider)) for path in (alike[0], alike[-1]))),
            count=len(alike),
            size=sum(path.stat().st_size for path in alike),
            content=_content_of(alike[0], provider),
        )
        for alike in names.values()
    ]


def _content_of(path: Path, provider: Path) -> str:
    if path == provider / _EVENTS:
        return "names, sizes, times, refusals: all that this page shows"
    name = path.relative_to(provider)
    for pattern, content in _KEPT.items():
        if name.match(pattern) or name.match(str(Path(pattern).with_suffix(".partial"))):
            return content
    return ""


def _bytes_chart(rounds: Sequence[Event]) -> Markup:
    def draw(figure: Figure) -> None:
        axes = figure.add_subplot(title="Bytes per site and round")
        edges = _edges(rounds)
        for key, name, colour, dashes in (
            ("up_bytes", "from each site", FIRST, "-"),
            ("down_bytes", "to each site", SECOND, "--"),
        ):
            axes.stairs(
                [event[key] for event in rounds],
                edges,
                baseline=None,
                color=colour,
                linestyle=dashes,
                linewidth=1.8,
                label=name,
            )
        axes.yaxis.set_major_formatter(EngFormatter(unit="B"))
        _finish(axes)

    return figure_svg(draw, width=4.6, height=3.1, description="Bytes that each site sent and received, per round")


def _seconds_chart(rounds: Sequence[Event]) -> Markup:
    def draw(figure: Figure) -> None:
        axes = figure.add_subplot(title="Seconds per round")
        below = np.zeros(len(rounds))
        for key, name, colour in (("ready", "sites train", FIRST), ("upload", "updates come and are added", SECOND)):
            above = below + [event["seconds"][key] for event in rounds]
            axes.stairs(above, _edges(rounds), baseline=below, fill=True, color=colour, alpha=0.8, label=name)
            below = above
        _finish(axes)

    return figure_svg(draw, width=4.6, height=3.1, description="Seconds that each round took, by what it waited for")


def _edges(rounds: Sequence[Event]) -> list[float]:
    numbers = [event["round"] for event in rounds]
    return [*(number - 0.5 for number in numbers), numbers[-1] + 0.5]


def _finish(axes: Axes) -> None:
    axes.set_xlabel("round")
    axes.set_ylim(0, 1.12 * axes.dataLim.y1)
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
