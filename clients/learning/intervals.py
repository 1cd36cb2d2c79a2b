"""How sure a comparison of scores is: AUC, accuracy and Brier score with intervals from resampled patients.

Patients are drawn with replacement, separately within each label, and the same draws serve every model, so that the
difference of two models has an interval of its own. Scores of cross-validation come from several models; AUC then
counts the pairs within one held-out fold only, because scores of different models are not on one scale (Airola et al.,
"An experimental comparison of cross-validation techniques for estimating the area under the ROC curve", 2011).

Trust: runs where scores and labels are, at a site; what it returns says nothing of a single patient.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from clients.data.table import Labels, Values
from protocol.errors import ValueRefusedError

Positions: TypeAlias = npt.NDArray[np.int64]

MEASURES: Final = ("auc", "accuracy", "brier")

DECISION_THRESHOLD: Final = 0.5
_CHUNK_NUMBERS: Final = 1 << 21
"""Patients times samples that are in memory at once; 16 MB per array."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Resampled:
    """One measure of one model, or a difference or mean of such, and how it varies with the patients.

    Attributes:
        value: On the patients themselves, mean over repeats; None where it is undefined (AUC of one label).
        by_repeat: float64 (repeats,), NaN where undefined.
        samples: float64 (samples,), mean over repeats in each resample; NaN where undefined.
    """

    value: float | None
    by_repeat: Values
    samples: Values

    def minus(self, other: Self) -> Resampled:
        """Return the paired difference; `other` must come from the same patients and draws."""
        return Resampled(
            value=None if self.value is None or other.value is None else self.value - other.value,
            by_repeat=self.by_repeat - other.by_repeat,
            samples=self.samples - other.samples,
        )

    def interval(self, level: float = 0.95) -> tuple[float, float] | None:
        """Return the percentile interval over patients, None where no resample is defined.

        It takes the models and the share of each label as given, and is too narrow for a handful of patients.

        Args:
            level: Share of the resamples that lie inside, 0..1.
        """
        samples = self.samples[~np.isnan(self.samples)]
        if not len(samples):
            return None
        low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)


def macro_mean(items: Sequence[Resampled]) -> Resampled:
    """Return the unweighted mean over sites, which were resampled independently; an undefined one is left out.

    Args:
        items: One or more, of equal repeats and samples.
    """
    counted = [item for item in items if item.value is not None]
    # Without any, the mean of them all is as undefined as they are.
    return Resampled(
        value=sum(item.value for item in counted if item.value is not None) / len(counted) if counted else None,
        by_repeat=np.mean([item.by_repeat for item in counted or items], axis=0),
        samples=np.mean([item.samples for item in counted or items], axis=0),
    )


def resample(
    labels: Labels,
    scores: Mapping[str, Values],
    *,
    folds: Positions | None = None,
    samples: int = 2000,
    seed: int,
) -> dict[str, dict[str, Resampled]]:
    """Measure models on the same patients, and on resamples of them.

    Memory is bounded; time grows with patients x samples x models x repeats.

    Args:
        labels: int8 (n,), 0 or 1; n >= 1.
        scores: For each model float64 (repeats, n), or (n,) for one repeat; probabilities, 0..1.
        folds: int64 (repeats, n), the held-out fold a patient was in; None if one model scored all patients.
        samples: Number of resamples, at least 1.
        seed: Public; the same seed gives the same draws.

    Returns:
        For each model its MEASURES: area under the ROC curve (ties half), share of right decisions at 0.5, mean
        squared distance between score and label.

    Raises:
        ValueRefusedError: Shapes that do not fit, or a score outside 0..1; names the model.
    """
    by_model = {model: np.atleast_2d(values) for model, values in scores.items()}
    repeats = max((len(values) for values in by_model.values()), default=1)
    if folds is None:
        folds = np.zeros((repeats, len(labels)), dtype=np.int64)
    _check_inputs(labels, by_model, folds)
    models = {model: _Scored.of(labels, values, folds) for model, values in by_model.items()}
    chunks = [
        {model: scored.on_resamples(weights) for model, scored in models.items()}
        for weights in _draws(labels, samples, seed)
    ]
    result: dict[str, dict[str, Resampled]] = {}
    for model, scored in models.items():
        result[model] = {
            measure: Resampled(
                value=_number(_mean_over_repeats(by_repeat)),
                by_repeat=by_repeat,
                samples=np.concatenate([chunk[model][measure] for chunk in chunks]),
            )
            for measure, by_repeat in scored.by_repeat().items()
        }
    return result


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Scored:
    """One model's scores, prepared for resampling.

    Attributes:
        pairs: For each repeat, how positive and negative patients compare.
        right: Whether the decision was right, (repeats, n).
        distance: Squared distance between score and label, float64 (repeats, n).
    """

    pairs: Sequence[_Pairs]
    right: npt.NDArray[np.bool_]
    distance: Values

    @classmethod
    def of(cls, labels: Labels, scores: Values, folds: Positions) -> Self:
        return cls(
            pairs=[_Pairs.of(labels, *repeat) for repeat in zip(scores, folds, strict=True)],
            right=(scores >= DECISION_THRESHOLD) == labels,
            distance=(scores - labels) ** 2,
        )

    def by_repeat(self) -> dict[str, Values]:
        """Return each of MEASURES on the patients themselves, float64 (repeats,)."""
        once = np.ones((self.right.shape[1], 1))
        return {
            "auc": np.array([pairs.auc(once)[0] for pairs in self.pairs]),
            "accuracy": self.right.mean(axis=1),
            "brier": self.distance.mean(axis=1),
        }

    def on_resamples(self, weights: Values) -> dict[str, Values]:
        """Return the mean over repeats of each of MEASURES, (samples,); weights as for `_Pairs.auc`."""
        return {
            "auc": _mean_over_repeats(np.array([pairs.auc(weights) for pairs in self.pairs])),
            "accuracy": self.right.mean(axis=0) @ weights / len(weights),
            "brier": self.distance.mean(axis=0) @ weights / len(weights),
        }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Pairs:
    """Where each positive patient stands among the negative ones, in one order by fold and then score.

    Attributes:
        positives, negatives: Patients with that label, in that order.
        below, upto: For each positive, how many negatives stand before it, without and with those of its own score.
        start, end: For each positive, the range of its fold's negatives.
    """

    positives: Positions
    negatives: Positions
    below: Positions
    upto: Positions
    start: Positions
    end: Positions

    @classmethod
    def of(cls, labels: Labels, scores: Values, folds: Positions) -> Self:
        order = np.lexsort((scores, folds))
        is_new = (np.diff(scores[order]) != 0) | (np.diff(folds[order]) != 0)
        place = np.concatenate(([0], np.cumsum(is_new)))  # equal for equal score within a fold
        is_positive = labels[order] == 1
        places, of_negatives = place[is_positive], place[~is_positive]
        fold, fold_of_negatives = folds[order][is_positive], folds[order][~is_positive]
        return cls(
            positives=order[is_positive],
            negatives=order[~is_positive],
            below=np.searchsorted(of_negatives, places, side="left"),
            upto=np.searchsorted(of_negatives, places, side="right"),
            start=np.searchsorted(fold_of_negatives, fold, side="left"),
            end=np.searchsorted(fold_of_negatives, fold, side="right"),
        )

    def auc(self, weights: Values) -> Values:
        """Return the AUC of each resample; weights (n, samples), how often each patient was drawn."""
        before = np.zeros((len(self.negatives) + 1, weights.shape[1]))
        np.cumsum(weights[self.negatives], axis=0, out=before[1:])
        positive = weights[self.positives]

        def total(position: Positions) -> Values:
            counts: Values = np.einsum("ps,ps->s", positive, before[position])
            return counts

        start = total(self.start)
        pairs = total(self.end) - start
        concordant = (total(self.below) + total(self.upto)) / 2 - start
        return np.divide(concordant, pairs, out=np.full_like(pairs, np.nan), where=pairs > 0)


def _draws(labels: Labels, samples: int, seed: int) -> Iterator[Values]:
    """Yield how often each patient is drawn, as float64 (n, samples of this chunk)."""
    strata = [np.flatnonzero(labels == label) for label in (0, 1)]
    # A generator per label: the draws do not depend on how samples are cut into chunks.
    generators = [np.random.Generator(np.random.PCG64(child)) for child in np.random.SeedSequence(seed).spawn(2)]
    chunk = max(1, _CHUNK_NUMBERS // len(labels))
    for first in range(0, samples, chunk):
        width = min(chunk, samples - first)
        weights = np.zeros((len(labels), width))
        for patients, generator in zip(strata, generators, strict=True):
            if len(patients):
                drawn = generator.integers(len(patients), size=(width, len(patients)))
                cells = drawn * width + np.arange(width)[:, np.newaxis]
                counts = np.bincount(cells.reshape(-1), minlength=len(patients) * width)
                weights[patients] = counts.reshape(len(patients), width)
        yield weights


def _mean_over_repeats(values: Values) -> Values:
    """Return the mean over axis 0 without the NaNs; NaN where nothing else is."""
    is_defined = ~np.isnan(values)
    count = is_defined.sum(axis=0)
    mean: Values = np.where(is_defined, values, 0.0).sum(axis=0) / np.where(count, count, np.nan)
    return mean


def _number(value: Values) -> float | None:
    return None if np.isnan(value) else float(value)


def _check_inputs(labels: Labels, scores: Mapping[str, Values], folds: Positions) -> None:
    if labels.ndim != 1 or not len(labels):
        raise ValueRefusedError(f"labels: expected shape (n,) with n >= 1, got {labels.shape}")
    for model, values in scores.items():
        if values.shape != folds.shape or values.shape[1:] != labels.shape:
            raise ValueRefusedError(
                f"scores of {model}: shape {values.shape} does not fit labels {labels.shape} and folds {folds.shape}"
            )
        if not ((values >= 0) & (values <= 1)).all():
            raise ValueRefusedError(f"scores of {model}: a score is outside 0..1")
