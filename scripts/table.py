"""Print a summary for people.

Trust: runs at the simulation's observer.
"""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from scripts.events import RunStatus
from scripts.summary import Comparison, Scores, Summary


def print_summary(summary: Summary, console: Console) -> None:
    """Print the table of sites, and below it what the run cost and what was checked."""
    if summary.results:
        console.print(_site_table(summary), "")
    facts = Table.grid(padding=(0, 2))
    for name, text in _facts(summary):
        facts.add_row(f"[bold]{name}", text)
    console.print(facts, highlight=False)


def _site_table(summary: Summary) -> Table:
    title = "Held-out patients, scored by each site's own model and by the shared one"
    table = Table(title=title, title_justify="left", box=box.SIMPLE, show_edge=False, pad_edge=False)
    table.add_column("site", no_wrap=True)
    table.add_column("train/\ntest", justify="right", no_wrap=True)
    for model in ("alone", "shared"):
        for measure in ("AUC", "acc.", "Brier"):
            table.add_column(f"{model}\n{measure}", justify="right")
    table.add_column("alone\nAUC*", justify="right")
    for name, result in summary.results.items():
        patients = f"{result.train_records}/{result.test_records}"
        table.add_row(name, patients, *_cells(result.scores), _measures(result.local_everywhere)[0])
    if summary.pooled:
        table.add_section()
        train = sum(result.train_records for result in summary.results.values())
        table.add_row("all", f"{train}/{summary.pooled.federated.n}", *_cells(summary.pooled), style="bold")
    notes = ["* of the model trained alone, on the held-out patients of all sites"]
    if any(result.scores.federated.auc is None for result in summary.results.values()):
        notes.append("- no AUC: this site's held-out patients all have the same label")
    table.caption = "\n".join(notes)
    table.caption_justify = "left"
    return table


def _cells(scores: Comparison) -> Iterator[str]:
    for measured in (scores.local, scores.federated):
        yield from _measures(measured)


def _measures(scores: Scores) -> tuple[str, str, str]:
    auc = "-" if scores.auc is None else f"{scores.auc:.3f}"
    return auc, f"{scores.accuracy:.3f}", f"{scores.brier:.3f}"


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
            f"{traffic.up_bytes_per_value:.2f} bytes per encrypted value (float32: 4)",
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
    yield from _checks(summary)


def _checks(summary: Summary) -> Iterator[tuple[str, str]]:
    identical = summary.checks.sites_bit_identical
    if identical is not None:
        yield "check", "every site holds the same model, bit for bit" if identical else "[red]the sites' models differ"
    difference = summary.checks.max_abs_difference_from_plaintext
    if difference == 0:
        yield "check", "the same run without encryption gives the same model, bit for bit"
    elif difference is not None:
        yield "check", f"[red]the same run without encryption gives a model that differs by up to {difference:.3g}"


def _duration(seconds: float) -> str:
    """Return seconds with as many digits as mean something."""
    if round(seconds, 3) < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:  # noqa: PLR2004 - a minute
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
