"""Show a study's result: as a table for people, as JSON and CSV for programs, and as pictures.

Trust: a study, run by one person who holds all sites' patients; every number here is about many patients.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from clients.learning.intervals import MEASURES
from scripts.study.scores import DIFFERENCES, METHODS, Estimate, Estimates, StudyResult

CSV_COLUMNS: Final = ("site", "method", "measure", "value", "sd", "low", "high", "n")

_MACRO: Final = "macro"


def as_json(result: StudyResult, **facts: object) -> dict[str, Any]:
    """Return the result for `json.dumps(..., allow_nan=False)`; what is undefined is None.

    Args:
        result: The study.
        **facts: About the study, stored beside it: name, repeats, folds, seconds.

    Returns:
        `macro.<method>.<measure>` and `sites.<site>.<method>.<measure>` as plain numbers; the same under `sd` and, as
        [low, high], under `intervals`; `differences` holds value, sd and interval of each; `patients` counts them.
    """

    def numbers(estimates: Estimates, of: Callable[[Estimate], object]) -> dict[str, dict[str, object]]:
        return {name: {measure: of(measures[measure]) for measure in MEASURES} for name, measures in estimates.items()}

    def everywhere(of: Callable[[Estimate], object]) -> dict[str, object]:
        return {
            "macro": numbers(result.macro.estimates, of),
            "sites": {name: numbers(site.estimates, of) for name, site in result.sites.items()},
        }

    return {
        **facts,
        **everywhere(lambda estimate: estimate.value),
        "sd": everywhere(lambda estimate: estimate.sd),
        "intervals": everywhere(_interval),
        "differences": {
            "macro": numbers(result.macro.differences, _whole),
            "sites": {name: numbers(site.differences, _whole) for name, site in result.sites.items()},
        },
        "patients": {name: {"n": site.n, "positives": site.positives} for name, site in result.sites.items()},
        "macro_sites": {measure: list(sites) for measure, sites in result.macro.sites.items()},
    }


def _interval(estimate: Estimate) -> list[float] | None:
    return None if estimate.interval is None else list(estimate.interval)


def _whole(estimate: Estimate) -> dict[str, object]:
    return {"value": estimate.value, "sd": estimate.sd, "interval": _interval(estimate)}


def write_csv(result: StudyResult, path: Path) -> None:
    """Write a row for each site (and "macro"), method or difference, and measure; an empty cell is undefined.

    Args:
        result: The study.
        path: File to write; replaced if it exists.
    """
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(CSV_COLUMNS)
        for name, measure, estimates, n in _blocks(result):
            for method, estimate_of in estimates.items():
                estimate = estimate_of[measure]
                writer.writerow([name, method, measure, estimate.value, estimate.sd, *_bounds(estimate), n])


def _blocks(result: StudyResult) -> Iterator[tuple[str, str, Estimates, int]]:
    """Yield site, measure, estimates and patients; the macro mean's are those of the sites that it is of."""
    for name, site in result.sites.items():
        for measure in MEASURES:
            yield name, measure, {**site.estimates, **site.differences}, site.n
    for measure in MEASURES:
        n = sum(result.sites[name].n for name in result.macro.sites[measure])
        yield _MACRO, measure, {**result.macro.estimates, **result.macro.differences}, n


def _bounds(estimate: Estimate) -> tuple[float | None, float | None]:
    return estimate.interval or (None, None)


def print_result(result: StudyResult, console: Console) -> None:
    """Print a table of the methods and one of their differences, for a terminal of 79 columns or more."""
    for part in (_methods_table(result), "", _differences_table(result), "", _caption(result)):
        console.print(part)


def _methods_table(result: StudyResult) -> Table:
    table = _table("Methods: AUC at each site, and means over sites", gap=2)
    table.add_column("site, positive/n", overflow="fold")
    for method in METHODS:
        table.add_column(method.replace("_", "\n+ "), justify="right", no_wrap=True)
    for name, site in result.sites.items():
        cells = [_with_sd(site.estimates[method]["auc"]) for method in METHODS]
        table.add_row(f"{name} {site.positives}/{site.n}", *cells)
    table.add_section()
    for measure in MEASURES:
        cells = [_with_sd(result.macro.estimates[method][measure]) for method in METHODS]
        table.add_row(_macro_label(result, measure), *cells, style="bold")
    return table


def _differences_table(result: StudyResult) -> Table:
    table = _table("Differences: AUC at each site, and means over sites", gap=1)
    table.add_column("site", overflow="fold")
    for one, other in DIFFERENCES.values():
        table.add_column(f"{one.replace('_', ' + ')}\n- {other}", justify="right", no_wrap=True)
    for name, site in result.sites.items():
        table.add_row(name, *(_with_interval(site.differences[difference]["auc"]) for difference in DIFFERENCES))
    table.add_section()
    for measure in MEASURES:
        cells = [_with_interval(result.macro.differences[difference][measure]) for difference in DIFFERENCES]
        table.add_row(_macro_label(result, measure), *cells, style="bold")
    return table


def _table(title: str, *, gap: int) -> Table:
    padding = (0, gap - 1, 0, 0)  # the box's own column divider is the rest of the gap
    return Table(title=title, title_justify="left", box=box.SIMPLE, show_edge=False, pad_edge=False, padding=padding)


def _macro_label(result: StudyResult, measure: str) -> str:
    counted = len(result.macro.sites[measure])
    label = f"{_MACRO} {_SHORT_NAMES[measure]}"
    return label if counted == len(result.sites) else f"{label}\nof {counted} sites"


_SHORT_NAMES: Final = {"auc": "AUC", "accuracy": "accuracy", "brier": "Brier"}


def _caption(result: StudyResult) -> Text:
    caption = (
        "AUC: pairs of patients within a held-out fold; ±: sd over repeats; [ ]: 95 % interval, paired bootstrap of "
        "patients. constant, for reference, always answers the site's own prevalence."
    )
    if len(result.macro.sites["auc"]) < len(result.sites):
        caption += " -: no AUC, no fold has both labels."
    return Text(caption, style="dim")


def _with_sd(estimate: Estimate) -> Text:
    if estimate.value is None:
        return Text("-")
    value = _short(f"{estimate.value:.3f}")
    return Text(value if estimate.sd is None else f"{value} ±{_short(f'{estimate.sd:.3f}')}")


def _with_interval(estimate: Estimate) -> Text:
    # Text, because a string's brackets would be markup
    if estimate.value is None or estimate.interval is None:
        return Text("-")
    value, low, high = (_short(f"{number:+.3f}") for number in (estimate.value, *estimate.interval))
    return Text(f"{value} [{low}, {high}]")


def _short(number: str) -> str:
    """Return a number below 1 without its leading zero: 79 columns are few."""
    return number.replace("0.", ".", 1)


def write_plots(result: StudyResult, directory: Path) -> None:
    """Draw `auc.png`, `brier.png`, `roc.png` and `calibration.png`.

    Args:
        result: The study.
        directory: Existing directory; pictures of these names are replaced.
    """
    # Imported here, because matplotlib takes long to load and most commands draw nothing.
    from scripts.study import plots  # noqa: PLC0415

    figures = {
        "auc.png": plots.estimates_figure(result, "auc"),
        "brier.png": plots.estimates_figure(result, "brier"),
        "roc.png": plots.roc_figure(result),
        "calibration.png": plots.calibration_figure(result),
    }
    for name, figure in figures.items():
        figure.savefig(directory / name, dpi=150)
