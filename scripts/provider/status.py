"""How a provider's runs and sites stand.

Trust: runs at the provider; shows names, sizes and times.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from scripts.events import FINAL_EVENTS, PROVIDER_EVENTS, Event, RoundEvent, read_events
from scripts.flower_commands import FlowerCommands
from scripts.progress import describe
from scripts.provider.admission import admitted_sites
from scripts.provider.directory import ProviderDirectory
from server.record import is_worked_on


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOverview:
    """How one run stands.

    Attributes:
        name: The run.
        state: "running", "completed", "paused", "failed" or "stopped": nothing works on it, and nothing says why.
        round: The last round that was summed, 0 for statistics; None before it.
        rounds: Training rounds; None before the run has started.
        cohort: Sites in that round's sum.
        up_bytes: What all sites have sent in updates.
        down_bytes: What all sites have received in sums.
        age_seconds: Since the last event; None if there is none.
    """

    name: str
    state: str
    round: int | None
    rounds: int | None
    cohort: int
    up_bytes: int
    down_bytes: int
    age_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteOverview:
    """How one admitted site stands.

    Attributes:
        name: The site.
        status: "online", "offline", "never seen", or "unknown" while the provider does not run.
        since: Since when it is online or offline, as text in UTC; empty if it never was.
    """

    name: str
    status: str
    since: str


def run_overviews(directory: ProviderDirectory) -> list[RunOverview]:
    """Return how each run stands, oldest first."""
    return [_run_overview(directory, name) for name in directory.run_names()]


def site_overviews(directory: ProviderDirectory) -> list[SiteOverview]:
    """Return how each admitted site stands, by name."""
    sites = admitted_sites(directory)
    if not directory.is_running():
        return [SiteOverview(name=name, status="unknown", since="") for name in sites]
    nodes = FlowerCommands(directory.environment).nodes() if sites else {}
    overviews = []
    for name, site in sites.items():
        node = nodes.get(site.node)
        match None if node is None else node.status:
            case "online":
                status, since = "online", node.online_since if node else ""
            case "offline":
                status, since = "offline", node.offline_since if node else ""
            case _:
                status, since = "never seen", ""
        overviews.append(SiteOverview(name=name, status=status, since=since))
    return overviews


def print_status(directory: ProviderDirectory, console: Console) -> None:
    """Print runs and sites as tables."""
    runs = Table("run", "state", "round", "cohort", "bytes up", "bytes down", "last event", title="Runs")
    for column in runs.columns[:2]:
        column.no_wrap = True
    for run in run_overviews(directory):
        runs.add_row(
            run.name,
            run.state,
            _progress(run),
            str(run.cohort or "-"),
            decimal(run.up_bytes),
            decimal(run.down_bytes),
            "-" if run.age_seconds is None else f"{_duration(run.age_seconds)} ago",
        )
    sites = Table("site", "status", "since (UTC)", title="Sites")
    for site in site_overviews(directory):
        sites.add_row(site.name, site.status, site.since or "-")
    console.print(runs)
    console.print(sites)
    if not directory.is_running():
        console.print("the provider does not run; `cipherward provider start` starts it")


def status_json(directory: ProviderDirectory) -> str:
    """Return runs and sites as one JSON object."""
    return json.dumps(
        {
            "is_running": directory.is_running(),
            "runs": [asdict(run) for run in run_overviews(directory)],
            "sites": [asdict(site) for site in site_overviews(directory)],
        }
    )


def print_log(directory: ProviderDirectory, name: str, *, as_json: bool) -> None:
    """Print a run's events, a line for each.

    Raises:
        ConfigurationError: There is no such run.
    """
    path = directory.run(name) / PROVIDER_EVENTS
    rounds = 0
    for event in read_events(path):
        rounds = event.get("rounds", rounds)
        print(json.dumps(event, separators=(",", ":")) if as_json else _line(event, rounds))


def _run_overview(directory: ProviderDirectory, name: str) -> RunOverview:
    events = read_events(directory.run(name) / PROVIDER_EVENTS)
    started = next((event for event in reversed(events) if event["event"] == "started"), None)
    done = [RoundEvent.from_event(event) for event in events if event["event"] == "round"]
    return RunOverview(
        name=name,
        state=_state(directory, name, events),
        round=done[-1].round if done else None,
        rounds=started["rounds"] if started else None,
        cohort=len(done[-1].cohort) if done else 0,
        up_bytes=sum(event.up_bytes * len(event.cohort) for event in done),
        down_bytes=sum(event.down_bytes * len(event.cohort) for event in done),
        age_seconds=round(time.time() - events[-1]["time"], 1) if events else None,
    )


def _state(directory: ProviderDirectory, name: str, events: list[Event]) -> str:
    if is_worked_on((directory.run(name) / PROVIDER_EVENTS).parent):
        return "running"
    if events and events[-1]["event"] in FINAL_EVENTS:
        return str(FINAL_EVENTS[events[-1]["event"]])
    return "stopped"


def _line(event: Event, rounds: int) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["time"]))
    fields = " ".join(f"{key}={value}" for key, value in event.items() if key not in {"event", "time"})
    text = "finished" if event["event"] == "finished" else describe(event, rounds)
    return f"{when} {text or event['event'] + ' ' + fields}"


def _progress(run: RunOverview) -> str:
    if run.round is None or run.rounds is None:
        return "-"
    return f"{run.round} of {run.rounds}" if run.round <= run.rounds else "evaluated"


def _duration(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
