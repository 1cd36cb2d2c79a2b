"""The charts of a site's report, as drawings inside its page.

Trust: site only. A chart shows this site's held-out patients as steps and groups, or sums over all sites.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import roc_curve

from clients.data.table import Labels, Values
from clients.learning.score_cells import BORDER, LARGEST_BOUND, ScoreCells
from conf.page import FIRST, INK, QUIET, SECOND, figure_svg

Curve: TypeAlias = Mapping[int, float]
"""Training rounds behind a model -> one of its measures."""

LARGEST_GROUPS: Final = 10
"""Most groups that held-out patients are put into by score."""

_PATIENTS_PER_GROUP: Final = 10
_NORMAL_95: Final = 1.959964
_ALL_SITES: Final = "shared model, all sites"
_HERE: Final = "shared model, here"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreGroup:
    """Patients whose scores are alike.

    Attributes:
        score: What the model says of them, 0..1: their mean score, or the middle of their range.
        positives: How many of them are positive.
        count: How many they are; >= 1.
        hidden_positives: Most positive patients that small cells hide from the group.
        hidden_negatives: Most negative patients that small cells hide from it.
    """

    score: float
    positives: int
    count: int
    hidden_positives: int = 0
    hidden_negatives: int = 0

    @property
    def possible(self) -> tuple[float, float]:
        """Least and largest share of the positive, 0..1, wherever the hidden patients are."""
        most = self.positives + self.hidden_positives
        return self.positives / (self.count + self.hidden_negatives), most / (self.count + self.hidden_positives)

    @property
    def share(self) -> float:
        """Share of the positive, 0..1: the middle of what is possible."""
        return sum(self.possible) / 2

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the share, wherever the hidden patients are.

        Source: Wilson, Probable inference, the law of succession, and statistical inference (1927).
        """
        least, largest = self.possible
        return (
            _wilson(least, self.count + self.hidden_negatives)[0],
            _wilson(largest, self.count + self.hidden_positives)[1],
        )


def _wilson(share: float, count: int) -> tuple[float, float]:
    square = _NORMAL_95**2 / count
    middle = (share + square / 2) / (1 + square)
    reach = math.sqrt(share * (1 - share) * square + square**2 / 4) / (1 + square)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def groups_of_scores(labels: Labels, scores: Values) -> list[ScoreGroup]:
    """Put patients into groups of equal score range, at most LARGEST_GROUPS and fewer for few patients.

    Args:
        labels: int8 (n,), 0 or 1.
        scores: float64 (n,), 0..1.

    Returns:
        The groups that hold a patient, by rising score.
    """
    groups = min(LARGEST_GROUPS, max(1, len(labels) // _PATIENTS_PER_GROUP))
    group_of = np.minimum(scores * groups, groups - 1).astype(np.int64)
    return [
        ScoreGroup(
            score=float(scores[group_of == group].mean()),
            positives=int(labels[group_of == group].sum()),
            count=int((group_of == group).sum()),
        )
        for group in np.unique(group_of)
    ]


def groups_of_cells(cells: ScoreCells, *, most_hidden: int) -> list[ScoreGroup]:
    """Turn the bins of score histograms into groups; a group's score is the middle of its bin.

    Args:
        cells: Patients by label and score.
        most_hidden: Most patients of one label that the small cells of one bin can hold, over all sites.

    Returns:
        The groups that hold a patient and whose share of the positive is known to LARGEST_BOUND, by rising score.
    """
    groups = []
    bins = zip(cells.positives.scores, cells.negatives.scores, strict=True)
    for position, (positives, negatives) in enumerate(bins):
        hidden_positives, hidden_negatives = (
            min(most_hidden, cells.unknown + (label.hidden_lower if position < BORDER else label.hidden_upper))
            for label in (cells.positives, cells.negatives)
        )
        if positives + negatives:
            group = ScoreGroup(
                score=(position + 0.5) / len(cells.positives.scores),
                positives=positives,
                count=positives + negatives,
                hidden_positives=hidden_positives,
                hidden_negatives=hidden_negatives,
            )
            least, largest = group.possible
            groups += [group] if (largest - least) / 2 <= LARGEST_BOUND else []
    return groups


def roc_chart(labels: Labels, federated: Values, local: Values) -> Markup:
    """Draw both models' ROC curves on the held-out patients.

    Args:
        labels: int8 (n,), with both labels among them.
        federated: float64 (n,), scores of the shared model.
        local: float64 (n,), scores of the site's own model.
    """

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot(title="ROC curve")
        axes.plot([0, 1], [0, 1], color=QUIET, linewidth=1, linestyle=":", label="chance")
        for scores, name, colour, dashes in (
            (local, "own model", SECOND, "--"),
            (federated, "shared model", FIRST, "-"),
        ):
            false_share, true_share, _ = roc_curve(labels, scores, drop_intermediate=False)
            area = float(np.trapezoid(true_share, false_share))
            axes.plot(false_share, true_share, color=colour, linestyle=dashes, label=f"{name}, AUC {area:.3f}")
        axes.set(xlabel="negative patients called positive", ylabel="positive patients found", aspect="equal")
        _limit_to_unit(axes)
        handles, names = axes.get_legend_handles_labels()
        axes.legend(handles[::-1], names[::-1], loc="lower right")

    return figure_svg(
        draw, width=4.4, height=4.4, description="ROC curves of the shared and the own model on the held-out patients"
    )


def calibration_chart(groups: Mapping[str, Sequence[ScoreGroup]], title: str) -> Markup:
    """Draw how often patients with like scores are positive, above the number of patients in each group.

    Args:
        groups: One or two models' groups, by the model's name; the first model gets intervals and counts.
        title: What stands above the chart.
    """

    def draw(figure: Figure) -> None:
        axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
        axes.set_title(title)
        axes.plot([0, 1], [0, 1], color=QUIET, linewidth=1, linestyle=":", label="perfect")
        for (name, of_model), colour, mark, dashes in zip(
            groups.items(), (FIRST, SECOND), "os", ("-", "--"), strict=False
        ):
            scores, shares = [group.score for group in of_model], [group.share for group in of_model]
            axes.plot(scores, shares, color=colour, marker=mark, linestyle=dashes, linewidth=1.2, label=name)
        first = next(iter(groups.values()))
        scores = [group.score for group in first]
        lows, highs = zip(*(group.interval for group in first), strict=True)
        axes.vlines(scores, lows, highs, color=FIRST, linewidth=1.2, alpha=0.5)
        axes.set(ylabel="share that is positive")
        _limit_to_unit(axes)
        axes.legend(loc="lower right")
        bars = counts.bar(scores, [group.count for group in first], width=0.035, color=FIRST, alpha=0.55)
        counts.bar_label(bars, fontsize=7.5, color=QUIET, padding=1)
        counts.set(xlabel="what the model says", ylabel="patients", ymargin=0.35)
        counts.yaxis.set_major_locator(MaxNLocator(2, integer=True))

    return figure_svg(
        draw, width=4.4, height=4.4, description=f"{title}: share of positive patients against the model's score"
    )


def learning_chart(title: str, here: Curve, all_sites: Curve, *, reach: Curve | None = None) -> Markup:
    """Draw how a measure of the shared model changed with the training rounds, here and over all sites.

    Args:
        title: The measure's name.
        here: On this site's held-out patients; may be empty.
        all_sites: On all sites' held-out patients, from encrypted sums; may be empty.
        reach: How far the exact value may be from `all_sites`, for the same rounds.
    """

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot(title=title)
        if all_sites:
            rounds, values = list(all_sites), np.array([*all_sites.values()])
            if reach is not None:  # the first model knows nothing, and its band would dwarf all others
                axes.set_ylim(max(0.0, min([*all_sites.values(), *here.values()]) - 0.05), 1.02)
                bound = np.array([reach[number] for number in rounds])
                axes.fill_between(
                    rounds, np.maximum(values - bound, 0), np.minimum(values + bound, 1), color=FIRST, alpha=0.15, lw=0
                )
            _draw_curve(axes, all_sites, FIRST, "o", _ALL_SITES)
        if here:
            _draw_curve(axes, here, INK, "s", _HERE)
        _label_rounds(axes)

    return figure_svg(draw, width=4.4, height=3.5, description=f"{title} of the shared model after each training round")


def loss_chart(held_out: Curve, training: Curve) -> Markup:
    """Draw the shared model's mean loss over all sites' held-out and training patients.

    Args:
        held_out: On held-out patients, in nats.
        training: On training patients, in nats.
    """

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot(title="Loss, all sites")
        _draw_curve(axes, held_out, FIRST, "o", "held-out patients")
        _draw_curve(axes, training, SECOND, "s", "training patients")
        _label_rounds(axes)

    return figure_svg(draw, width=4.4, height=3.5, description="Mean loss over all sites after each training round")


def _draw_curve(axes: Axes, curve: Curve, colour: str, mark: str, name: str) -> None:
    spacing = max(1, len(curve) // 20)
    dashes = "--" if mark == "s" else "-"
    axes.plot(
        list(curve), list(curve.values()), color=colour, marker=mark, markevery=spacing, linestyle=dashes, label=name
    )


def _label_rounds(axes: Axes) -> None:
    axes.set_xlabel("training rounds")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18))


def _limit_to_unit(axes: Axes) -> None:
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
