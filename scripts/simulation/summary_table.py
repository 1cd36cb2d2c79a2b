"""Print a summary for people.

Trust: runs at the simulation's observer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from scripts.events import RunStatus
from scripts.simulation.summary import Scores, Summary, privacy_in_words


def print_summary(summary: Summary, console: Console) -> None:
    """Print the table of sites, and below it what the run cost and what was checked."""
    if summary.results:
        console.print(_site_table(summary), "")
    facts = Table.grid(padding=(0, 2))
    for name, text in _facts(summary):
        facts.add_row(f"[bold]{name}", text)
    console.print(facts, highlight=False)


def _site_table(summary: Summary) -> Table:
    title = "Models trained alone and the shared model, on held-out patients"
    table = Table(title=title, title_justify="left", box=box.SIMPLE, show_edge=False, pad_edge=False)
    table.add_column("site", no_wrap=True)
    table.add_column("train/\ntest", justify="right", no_wrap=True)
    for heading in _HEADINGS:
        table.add_column(heading, justify="right")
    for name, result in summary.results.items():
        own = [_auc(result.scores.local), _auc(result.scores.federated)]
        everywhere = _measures(result.local_everywhere)
        table.add_row(name, f"{result.train_records}/{result.test_records}", *own, *everywhere)
    if summary.pooled and summary.typical_local:
        table.add_section()
        table.add_row("alone, median", "", "", "", *_measures(summary.typical_local))
        train = sum(result.train_records for result in summary.results.values())
        shared = summary.pooled.federated
        table.add_row("shared model", f"{train}/{shared.n}", "", "", *_measures(shared), style="bold")
    table.caption = "own: on the site's own held-out patients; all sites: its model alone on everybody's"
    if any(result.scores.federated.auc is None for result in summary.results.values()):
        table.caption += "\n- no AUC: all of this site's held-out patients have the same label"
    table.caption_justify = "left"
    return table


_HEADINGS: Final = ("own AUC\nalone", "own AUC\nshared", "all sites\nAUC", "all sites\naccuracy", "all sites\nBrier")
"""Each site's own held-out patients, then all sites' together."""


def _auc(scores: Scores) -> str:
    return "-" if scores.auc is None else f"{scores.auc:.3f}"


def _measures(scores: Scores) -> tuple[str, str, str]:
    return _auc(scores), f"{scores.accuracy:.3f}", f"{scores.brier:.3f}"


def _remark_on_size(bytes_per_value: float) -> str:
    is_mostly_empty = bytes_per_value > 2 * _FLOAT32_BYTES
    return ": a model this small leaves most of its one ciphertext empty" if is_mostly_empty else ""


_FLOAT32_BYTES: Final = 4


def _facts(summary: Summary) -> Iterator[tuple[str, str]]:
    outcome, crypto, seconds, traffic = summary.outcome, summary.crypto, summary.seconds, summary.traffic
    rounds = f"{summary.rounds} training round{'' if summary.rounds == 1 else 's'}"
    if outcome.status is RunStatus.COMPLETED:
        yield "status", f"completed, {rounds} over {len(summary.sites)} sites"
    else:
        yield "status", f"{outcome.status} after {rounds}: {outcome.reason}"
    yield "model", f"{summary.model_parameters:,} parameters"
    if traffic:
        yield (
            "traffic",
            f"per site and round {decimal(round(traffic.up_bytes_per_site_per_round))} up, "
            f"{decimal(round(traffic.down_bytes_per_site_per_round))} down; "
            f"{traffic.up_bytes_per_value:.2f} bytes per encrypted value (float32: 4)"
            + _remark_on_size(traffic.up_bytes_per_value),
        )
    yield (
        "time",
        f"{_duration(seconds.total)} in all; per site {_duration(seconds.train)} training, "
        f"{_duration(seconds.encrypt)} encrypting, {_duration(seconds.decrypt)} decrypting; "
        f"{_duration(seconds.aggregate)} adding at the provider",
    )
    yield (
        "encryption",
        f"CKKS, N = {crypto.ring_degree}, one {crypto.modulus_bits}-bit prime, {crypto.guard_bits} guard bits, "
        f"{crypto.value_bits} exact bits per value, {crypto.security_bits}-bit security",
    )
    if summary.privacy:
        yield "privacy", privacy_in_words(summary.privacy.epsilon, summary.privacy.delta)
    yield from _checks(summary)


def _checks(summary: Summary) -> Iterator[tuple[str, str]]:
    identical = summary.checks.sites_bit_identical
    if identical is not None:
        yield (
            "check",
            "every site holds the same shared model, bit for bit"
            if identical
            else "[red]the sites' shared models differ",
        )
    difference = summary.checks.max_abs_difference_from_plaintext
    if summary.privacy and summary.outcome.status is RunStatus.COMPLETED:
        yield "check", "not compared with the same run without encryption: noise is drawn anew"
    elif difference == 0:
        yield "check", "the same run without encryption gives the same models, bit for bit"
    elif difference is not None:
        yield "check", f"[red]the same run without encryption gives a model that differs by up to {difference:.3g}"


def _duration(seconds: float) -> str:
    """Return seconds with as many digits as mean something."""
    if round(seconds, 3) < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:  # noqa: PLR2004 - a minute
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
