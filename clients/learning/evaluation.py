"""Score patients with a model and measure how good the scores are, at one site or over all of them.

Trust: runs at a site and sees patients' records, labels and scores. Sums leave only under encryption; metrics of one
site alone stay there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final, Self

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import roc_auc_score

from clients.data.small_numbers import without_small_cells
from clients.data.table import Labels, Values
from clients.learning.intervals import DECISION_THRESHOLD
from clients.learning.models import Network, load_values
from clients.learning.score_cells import ScoreCells
from protocol.errors import ValueRefusedError
from protocol.packing import FRACTION_BITS, HISTOGRAM_BINS, Integers
from protocol.terms import ModelTerms

MAX_LOSS: Final = 16.0
"""Largest loss of one patient, in nats: one confident mistake must not decide which model is best."""

COUNTS: Final = ("confusion", "positive_scores", "negative_scores")
"""Metric fields whose integers are cells: each counts some of the patients, and small ones are left out."""

_FRACTION: Final = float(1 << FRACTION_BITS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """How good scores are, computed from the scores themselves.

    Attributes:
        records: Number of patients.
        accuracy: Share of right decisions at DECISION_THRESHOLD.
        auc: Area under the ROC curve; None if there is only one label.
        brier: Mean squared distance between score and label.
    """

    records: int
    accuracy: float
    auc: float | None
    brier: float

    @classmethod
    def of(cls, labels: Labels, scores: Values) -> Self:
        """Measure the scores, probabilities of shape (n,), against labels of shape (n,); n >= 1."""
        return cls(
            records=len(labels),
            accuracy=float(np.mean((scores >= DECISION_THRESHOLD) == labels)),
            auc=float(roc_auc_score(labels, scores)) if len(np.unique(labels)) > 1 else None,
            brier=float(np.mean((scores - labels) ** 2)),
        )

    def as_json(self) -> dict[str, int | float | None]:
        """Return the attributes by name."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class FederatedMetrics:
    """How good the shared model is on all sites' patients together, from sums alone.

    Sites leave small cells out of the counts, so accuracy and area are each the middle of what is possible.

    Attributes:
        records: Held-out patients of all sites.
        loss: Their mean loss in nats, each patient's at most MAX_LOSS.
        brier: Their mean squared distance between score and label.
        accuracy: Their share of right decisions at DECISION_THRESHOLD.
        accuracy_bound: The exact share is within +- this of `accuracy`.
        auc: Area under the ROC curve; None if a label is absent.
        auc_bound: The exact area is within +- this of `auc`.
        training_loss: Mean loss over all sites' training patients, in nats.
        confusion: True positives, false positives, true negatives, false negatives, without small cells.
        positive_scores: How many held-out patients with label 1 have a score in each of HISTOGRAM_BINS equal bins,
            without small cells.
        negative_scores: The same of label 0.
    """

    records: int
    loss: float
    brier: float
    accuracy: float
    accuracy_bound: float
    auc: float | None
    auc_bound: float | None
    training_loss: float
    confusion: tuple[int, ...]
    positive_scores: tuple[int, ...]
    negative_scores: tuple[int, ...]

    @classmethod
    def from_sums(cls, content: Mapping[str, Integers]) -> Self:
        """Turn the summed fields of `metric_sums` into metrics.

        Raises:
            ValueRefusedError: The sum holds no patients, or counts that contradict each other.
        """
        records, training_records = int(content["records"][0]), int(content["training_records"][0])
        if records <= 0 or training_records <= 0:
            raise ValueRefusedError("field records: the sum of all sites' patients is not positive")
        counts = {name: tuple(content[name].tolist()) for name in COUNTS}
        cells = ScoreCells.of(records=records, **counts)
        accuracy, accuracy_bound = cells.accuracy()
        auc, auc_bound = cells.auc()
        return cls(
            records=records,
            loss=int(content["loss"][0]) / _FRACTION / records,
            brier=int(content["brier"][0]) / _FRACTION / records,
            accuracy=accuracy,
            accuracy_bound=accuracy_bound,
            auc=auc,
            auc_bound=auc_bound,
            training_loss=int(content["training_loss"][0]) / _FRACTION / training_records,
            **counts,
        )

    def as_json(self) -> dict[str, int | float | tuple[int, ...] | None]:
        """Return the attributes by name."""
        return asdict(self)


def score(model: ModelTerms, values: Values, features: npt.NDArray[np.float32]) -> Values:
    """Return each patient's probability of label 1.

    Args:
        model: The architecture.
        values: The model's parameters, float64 (P,).
        features: float32 (n, d), standardised.

    Returns:
        float64 (n,), 0..1, computed in float64.

    Raises:
        ValueRefusedError: A score is NaN: the model diverged.
    """
    torch.set_num_threads(1)  # several threads would add up in an order, and to bits, that change from run to run
    network = Network(model, features.shape[1]).double()
    load_values(network, values)
    with torch.no_grad():
        scores: Values = torch.sigmoid(network(torch.tensor(features, dtype=torch.float64))).numpy()
    if np.isnan(scores).any():
        raise ValueRefusedError("scores: NaN value; the model diverged")
    return scores


def metric_sums(
    labels: Labels, scores: Values, training_labels: Labels, training_scores: Values, *, smallest_cell: int
) -> dict[str, Integers]:
    """Return one site's exact metric fields, as METRIC_FIELDS names them.

    Args:
        labels: int8 (n,) of the held-out patients.
        scores: float64 (n,), 0..1.
        training_labels: int8 (m,) of the training patients.
        training_scores: float64 (m,), 0..1.
        smallest_cell: Fewest patients that a cell of `confusion`, `positive_scores` or `negative_scores` counts; one
            of fewer is 0.

    Returns:
        int64 arrays; `confusion` is (true positive, false positive, true negative, false negative), real sums are in
        units of 2^-FRACTION_BITS, rounded for each patient.
    """
    positive = labels == 1
    called = scores >= DECISION_THRESHOLD
    bins = np.minimum(scores * HISTOGRAM_BINS, HISTOGRAM_BINS - 1).astype(np.int64)
    confusion = [
        cell.sum() for cell in (called & positive, called & ~positive, ~called & ~positive, ~called & positive)
    ]
    return {
        "records": _integer(len(labels)),
        "loss": _integer(_fixed_point_sum(_losses(labels, scores))),
        "brier": _integer(_fixed_point_sum((scores - labels) ** 2)),
        "confusion": without_small_cells(np.array(confusion, dtype=np.int64), smallest_cell),
        "positive_scores": without_small_cells(np.bincount(bins[positive], minlength=HISTOGRAM_BINS), smallest_cell),
        "negative_scores": without_small_cells(np.bincount(bins[~positive], minlength=HISTOGRAM_BINS), smallest_cell),
        "training_records": _integer(len(training_labels)),
        "training_loss": _integer(_fixed_point_sum(_losses(training_labels, training_scores))),
    }


def _losses(labels: Labels, scores: Values) -> Values:
    right = np.where(labels == 1, scores, 1.0 - scores)
    losses: Values = -np.log(np.clip(right, math.exp(-MAX_LOSS), 1.0))
    return losses


def _fixed_point_sum(values: Values) -> int:
    return int(np.rint(values * _FRACTION).astype(np.int64).sum())


def _integer(number: int) -> Integers:
    return np.array([number], dtype=np.int64)
