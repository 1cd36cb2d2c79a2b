"""Benchmark sums over few and many sites in both forms.

In a seeded sum every site expands the seeds of all others, in an expanded one the provider does it once. Both forms are
measured in turns within one process. Expanding at the provider costs bytes on the way down, and saves each site time;
above some speed of its line a site is better off.

Trust: a benchmark; it makes up values, sites and keys.
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from clients.secrets.self_check import check_backend
from protocol.errors import ResidualError
from protocol.packing import Integers
from protocol.parameters import MAX_SITES
from scripts.benchmarks.federation import BenchFederation

COHORTS = (4, 8, 16, 32, 64, 128)
LARGEST_SEEDED_COHORT = {"seeded": MAX_SITES, "expanded": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What one form of a sum costs; medians.

    Attributes:
        seal_seconds: One site makes its update.
        provider_seconds: The provider parses, checks and adds all updates, and writes the sum.
        open_seconds: One site parses, verifies and decrypts the sum.
        down_bytes_per_value: Bytes of the sum.
    """

    seal_seconds: float
    provider_seconds: float
    open_seconds: float
    down_bytes_per_value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Both forms with the same number of sites.

    Attributes:
        sites: Sites in the sum.
        values: Values per update.
        modulus_bits: log2 q.
        seeded: Every site expands all seeds.
        expanded: The provider expands them.
    """

    sites: int
    values: int
    modulus_bits: int
    seeded: Figures
    expanded: Figures

    @property
    def site_saves_seconds(self) -> float:
        """What a site computes less per round if the sum comes expanded."""
        seeded, expanded = self.seeded, self.expanded
        return seeded.seal_seconds + seeded.open_seconds - expanded.seal_seconds - expanded.open_seconds

    @property
    def pays_from_mbit_per_second(self) -> float | None:
        """Speed of a site's line above which the expanded sum is in its hands sooner; None if it never is."""
        more_bytes = (self.expanded.down_bytes_per_value - self.seeded.down_bytes_per_value) * self.values
        if self.site_saves_seconds <= 0:
            return None
        return max(0.0, 8e-6 * more_bytes / self.site_saves_seconds)


class Runner:
    """One form of a sum, repeated.

    Args:
        federation: Sites, with real keys.
        packed: What each of them contributes.
    """

    def __init__(self, federation: BenchFederation, packed: Integers) -> None:
        self._federation = federation
        self._packed = packed
        self._seal_seconds: list[float] = []
        self._provider_seconds: list[float] = []
        self._open_seconds: list[float] = []
        self._down_bytes = 0
        self._updates: list[bytes] = []

    def seal(self, site: int) -> None:
        """Measure how a site makes its update."""
        started = time.perf_counter()
        self._updates.append(self._federation.seal(self._packed, site))
        self._seal_seconds.append(time.perf_counter() - started)

    def sum_up(self) -> None:
        """Measure the sum of all updates, at the provider and at a site.

        Raises:
            ResidualError: The sum is not exact, so its time says nothing.
        """
        arrived = [bytearray(update) for update in self._updates]  # as a transport leaves them: just written
        started = time.perf_counter()
        aggregate = self._federation.add(arrived).close().to_bytes()
        self._provider_seconds.append(time.perf_counter() - started)
        started = time.perf_counter()
        exact = self._federation.release(aggregate)
        self._open_seconds.append(time.perf_counter() - started)
        self._down_bytes = len(aggregate)
        if not np.array_equal(exact, len(arrived) * self._packed):
            raise ResidualError("sum of the benchmark", expected="exact", got="another")

    def figures(self) -> Figures:
        """Return the medians."""
        return Figures(
            seal_seconds=statistics.median(self._seal_seconds),
            provider_seconds=statistics.median(self._provider_seconds),
            open_seconds=statistics.median(self._open_seconds),
            down_bytes_per_value=self._down_bytes / self._federation.plan.values,
        )


def compare(*, values: int, sites: int, value_bits: int, repeats: int) -> Comparison:
    """Measure both forms in turns.

    Args:
        values: Values per update.
        sites: Sites in the sum.
        value_bits: Exact bits wanted per value.
        repeats: Rounds of each form.
    """
    runners = {}
    for form, largest in LARGEST_SEEDED_COHORT.items():
        federation = BenchFederation(values, sites, value_bits, largest)
        check_backend(federation.plan.parameters)
        update = np.random.default_rng(1).normal(scale=0.1, size=federation.parameters)
        runners[form] = Runner(federation, federation.pack(update))
    for site in range(sites):
        for runner in runners.values():
            runner.seal(site)
    for _ in range(repeats):
        for runner in runners.values():
            runner.sum_up()
    return Comparison(
        sites=sites,
        values=federation.plan.values,
        modulus_bits=federation.plan.parameters.modulus_bits,
        **{form: runner.figures() for form, runner in runners.items()},
    )


def sites(
    values: Annotated[int, typer.Option(help="Values in one update, about.", min=1)] = 100_000,
    cohorts: Annotated[
        list[int] | None,
        typer.Option(
            "--sites", help="Sites in the sum; may be repeated.", min=3, max=MAX_SITES, show_default="4 to 128"
        ),
    ] = None,
    value_bits: Annotated[
        int, typer.Option(help="Exact bits per value; picks the 24-, 32- or 40-bit prime.", min=8, max=32)
    ] = 21,
    repeats: Annotated[int, typer.Option(help="Rounds of each form, in turns; medians are shown.", min=1)] = 5,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the result to this file.")] = None,
) -> None:
    """Time sums over few and many sites: seeds sent on to all sites, or expanded at the provider.

    Example: `cipherward bench sites --values 100000 --sites 16 --sites 128`
    """
    console = Console()
    with Progress(console=console, transient=True) as progress:
        comparisons = [
            compare(values=values, sites=count, value_bits=value_bits, repeats=repeats)
            for count in progress.track(cohorts or COHORTS, description="measuring in turns")
        ]
    console.print(_table(comparisons))
    console.print(f"{comparisons[0].values:,} values", highlight=False)
    if json_file is not None:
        document: list[dict[str, Any]] = [
            asdict(comparison) | {"pays_from_mbit_per_second": comparison.pays_from_mbit_per_second}
            for comparison in comparisons
        ]
        json_file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        console.print(f"written to {json_file}")


def _table(comparisons: list[Comparison]) -> Table:
    table = Table(
        title="Seeded / expanded sums, medians", title_justify="left", box=box.SIMPLE, show_edge=False, pad_edge=False
    )
    headings = "sites,bits\nof q,seal\nms,provider\nms,open\nms,down\nbytes/value,pays from\nMbit/s"
    for heading in headings.split(","):
        table.add_column(heading, justify="right", no_wrap=True)
    for comparison in comparisons:
        seeded, expanded = comparison.seeded, comparison.expanded
        pays_from = comparison.pays_from_mbit_per_second
        table.add_row(
            str(comparison.sites),
            str(comparison.modulus_bits),
            f"{1000 * seeded.seal_seconds:,.0f} / {1000 * expanded.seal_seconds:,.0f}",
            f"{1000 * seeded.provider_seconds:,.0f} / {1000 * expanded.provider_seconds:,.0f}",
            f"{1000 * seeded.open_seconds:,.0f} / {1000 * expanded.open_seconds:,.0f}",
            f"{seeded.down_bytes_per_value:.2f} / {expanded.down_bytes_per_value:.2f}",
            "never" if pays_from is None else f"{pays_from:,.0f}",
        )
    return table
