"""Draw a study's result.

Only matplotlib's objects are used, never pyplot: nothing global changes. Loading this module loads matplotlib.

Trust: a study, run by one person who holds all sites' patients; every point drawn is about many patients.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scripts.study.scores import METHODS, Estimate, SiteStudy, StudyResult

_LABELS: Final = {
    "local": "local",
    "pooled": "pooled",
    "federated": "federated",
    "federated_personal": "federated + personal",
    "constant": "constant",
}
# Okabe and Ito's palette, which colour-blind people can tell apart; the markers are for print.
_COLOURS: Final = {
    "local": "#E69F00",
    "pooled": "#000000",
    "federated": "#0072B2",
    "federated_personal": "#009E73",
    "constant": "#8A8A8A",
}
_MARKERS: Final = {"local": "s", "pooled": "D", "federated": "o", "federated_personal": "^", "constant": "X"}
_TITLES: Final = {
    "auc": "AUC (more is better), 95 % bootstrap interval",
    "brier": "Brier score (less is better), 95 % bootstrap interval",
}

_NO_AUC: Final = "no AUC: no fold\nhas both labels"

_ROC_METHODS: Final = ("local", "pooled", "federated")
_CALIBRATION_METHODS: Final = ("local", "federated", "federated_personal")
_PANELS_IN_A_ROW: Final = 4
_PANEL_INCHES: Final = (2.7, 2.85)
_LINE_INCHES: Final = 0.17
_TITLE_INCHES: Final = 0.4
_LEGEND_INCHES: Final = 0.35
_SPREAD: Final = 0.72
"""Part of a site's height that its methods take."""


def estimates_figure(result: StudyResult, measure: str) -> Figure:
    """Return a figure with a row for each site and the macro mean, and a point with its interval for each method.

    Args:
        result: The study.
        measure: "auc" or "brier".
    """
    rows = [(f"{name}\n{site.positives}/{site.n} positive", site.estimates) for name, site in result.sites.items()]
    counted = len(result.macro.sites[measure])
    rows.append((f"macro\n{counted} sites", result.macro.estimates))
    inches = 1.2 + len(rows) * (len(METHODS) + 1) * _LINE_INCHES
    figure = Figure(figsize=(8, inches), layout="constrained")
    axes = figure.add_subplot()
    offsets = np.linspace(-_SPREAD / 2, _SPREAD / 2, len(METHODS))
    for method, offset in zip(METHODS, offsets, strict=True):
        points = [(row + offset, estimates[method][measure]) for row, (_, estimates) in enumerate(rows)]
        _draw_estimates(axes, points, method)
    for row, (_, estimates) in enumerate(rows):
        if estimates["constant"][measure].value is None:
            axes.text(0.5, row, _NO_AUC, ha="center", va="center", fontsize=8, transform=axes.get_yaxis_transform())
    axes.axhline(len(rows) - 1.5, color="black", linewidth=0.8)
    for row in range(len(rows) - 2):
        axes.axhline(row + 0.5, color="0.85", linewidth=0.6)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [label for label, _ in rows])
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_title(_TITLES[measure], fontsize=11)
    figure.legend(loc="outside lower center", ncols=len(METHODS), frameon=False, columnspacing=1.4, handletextpad=0.4)
    return figure


def _draw_estimates(axes: Axes, points: list[tuple[float, Estimate]], method: str) -> None:
    """Draw one method's values at their heights; an undefined one leaves a gap."""
    defined = [(height, estimate.value, estimate.interval) for height, estimate in points if estimate.value is not None]
    axes.hlines(
        [height for height, _, interval in defined if interval],
        [interval[0] for _, _, interval in defined if interval],
        [interval[1] for _, _, interval in defined if interval],
        color=_COLOURS[method],
        linewidth=1.6,
    )
    axes.plot(
        [value for _, value, _ in defined],
        [height for height, _, _ in defined],
        color=_COLOURS[method],
        marker=_MARKERS[method],
        markersize=5.5,
        linestyle="none",
        label=_LABELS[method],
    )


def roc_figure(result: StudyResult) -> Figure:
    """Return a figure with each site's ROC curves, the mean over its held-out folds."""
    figure, panels = _panels(result, x="false positive rate", y="true positive rate")
    for axes, site in panels:
        for method in _ROC_METHODS:
            if method in site.roc:
                curve = site.roc[method]
                label = f"{_LABELS[method]} {site.estimates[method]['auc'].value:.3f}"
                x, y = curve.false_positive_rate, curve.true_positive_rate
                axes.plot(x, y, color=_COLOURS[method], linewidth=1.4, label=label)
        if site.roc:
            axes.legend(loc="lower right", fontsize=8, title="AUC", title_fontsize=8, handlelength=1.2)
        else:
            axes.text(0.97, 0.05, _NO_AUC, ha="right", fontsize=8)
    figure.suptitle("ROC curves, mean over held-out folds", fontsize=11)
    return figure


def calibration_figure(result: StudyResult) -> Figure:
    """Return a figure with each site's share of positive patients against the mean score, in bins of patients."""
    figure, panels = _panels(result, x="mean score", y="share positive")
    for axes, site in panels:
        for method in _CALIBRATION_METHODS:
            points = site.calibration[method]
            axes.plot(
                points.mean_score,
                points.share_positive,
                color=_COLOURS[method],
                marker=_MARKERS[method],
                markersize=4.5,
                linewidth=1.0,
                label=_LABELS[method],
            )
    figure.suptitle("Calibration on held-out patients (on the diagonal is best)", fontsize=11)
    figure.set_figheight(figure.get_figheight() + _LEGEND_INCHES)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(handles), frameon=False)
    return figure


def _panels(result: StudyResult, *, x: str, y: str) -> tuple[Figure, list[tuple[Axes, SiteStudy]]]:
    """Return a figure with a square of sides 0..1, and its diagonal, for each site."""
    rows = -(-len(result.sites) // _PANELS_IN_A_ROW)
    columns = -(-len(result.sites) // rows)
    width, height = _PANEL_INCHES
    figure = Figure(figsize=(max(6.0, columns * width), rows * height + _TITLE_INCHES), layout="constrained")
    panels = []
    for place, (name, site) in enumerate(result.sites.items()):
        axes = figure.add_subplot(rows, columns, place + 1)
        axes.plot([0, 1], [0, 1], color="0.75", linewidth=0.8, linestyle="--")
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal", xlabel=x, ylabel=y)
        axes.set_title(f"{name}\n{site.positives}/{site.n} positive", fontsize=9)
        panels.append((axes, site))
    return figure, panels
