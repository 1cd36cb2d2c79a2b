"""Show how a run goes on: a bar on a terminal, a line per round elsewhere.

Trust: runs at the simulation's observer, or at the provider; shows names, sizes and times.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Final

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from scripts.events import Event, RoundEvent

STEPS_BESIDE_TRAINING: Final = 2
"""Statistics before the first round, evaluation after the last."""


class ProgressDisplay:
    """Takes the provider's events as they come."""

    def __init__(self, console: Console, bar: Progress | None) -> None:
        self._console = console
        self._bar = bar
        self._task: TaskID | None = bar.add_task("starting", total=None) if bar else None
        self._rounds = 0

    def show(self, event: Event) -> None:
        """Show one event; kinds that say nothing to a person are passed over."""
        if event["event"] == "started":
            self._rounds = event["rounds"]
        text = describe(event, self._rounds)
        if text:
            self._advance(text, 1 if event["event"] == "round" else 0)

    def _advance(self, text: str, steps: int) -> None:
        if self._bar is None or self._task is None:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)
            return
        total = self._rounds + STEPS_BESIDE_TRAINING
        self._bar.update(self._task, description=text, total=total, advance=steps)


@contextlib.contextmanager
def progress_display(console: Console) -> Iterator[ProgressDisplay]:
    """Open a display that fits the console, and close it at the end of the context."""
    with _bar(console) as bar:
        yield ProgressDisplay(console, bar)


@contextlib.contextmanager
def steps_display(console: Console, name: str, steps: int) -> Iterator[Callable[[str], None]]:
    """Open a display of equal steps; what it gives is called with a text after each.

    Args:
        console: Where to show it.
        name: What the steps are, plural.
        steps: How many there are.
    """
    with _bar(console) as bar:
        if bar is None:
            done = itertools.count(1)
            yield lambda text: console.print(f"{next(done)}/{steps} {name}: {text}", highlight=False)
            return
        task = bar.add_task(name, total=steps)
        yield lambda text: bar.update(task, advance=1, description=f"{name}: {text}")


@contextlib.contextmanager
def count_display(console: Console, name: str) -> Iterator[Callable[[int, int], None]]:
    """Open a display of a count; what it gives is called with how many are done, and how many there are.

    Args:
        console: Where to show it.
        name: What is counted, plural.
    """
    with _bar(console) as bar:
        if bar is None:
            yield lambda done, total: console.print(f"{done}/{total} {name}", highlight=False)
            return
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextlib.contextmanager
def _bar(console: Console) -> Iterator[Progress | None]:
    if not console.is_terminal:
        yield None
        return
    columns = (BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console) as bar:
        yield bar


def describe(event: Event, rounds: int) -> str:
    """Return one line about an event; empty for kinds that say nothing to a person.

    Args:
        event: The provider's event.
        rounds: Number of training rounds.
    """
    match event["event"]:
        case "started":
            return f"waiting for {event['sites']} sites"
        case "joined":
            return f"{len(event['sites'])} sites joined: {', '.join(event['sites'])}"
        case "opened":
            return "the consortium's key is in place at every site"
        case "round":
            return describe_round(RoundEvent.from_event(event), rounds)
        case "finished":
            return "finished; closing the run"
        case _:
            return str(event.get("text", ""))


def describe_round(event: RoundEvent, rounds: int) -> str:
    """Return one line about a finished round.

    Args:
        event: The round.
        rounds: Number of training rounds.
    """
    name = f"round {event.round}/{rounds}" if event.kind == "train" else event.kind
    text = (
        f"{name}: {len(event.cohort)} sites in {event.seconds['total']:.1f} s, "
        f"each {decimal(event.up_bytes)} up and {decimal(event.down_bytes)} down"
    )
    return text + (f"; left out: {', '.join(event.left_out)}" if event.left_out else "")
