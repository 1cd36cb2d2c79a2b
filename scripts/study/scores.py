"""What a study came to: each method's scores measured at each site and over all sites, with intervals.

Trust: a study, run by one person who holds all sites' patients; no provider and no site of a federation sees this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self, TypeAlias

import numpy as np
from sklearn.metrics import roc_curve

from clients.data.generator import public_generator
from clients.data.table import Labels, Values
from clients.learning.intervals import MEASURES, Positions, Resampled, macro_mean, resample

METHODS: Final = ("local", "pooled", "federated", "federated_personal", "constant")
"""Trained by the site alone; on all sites' patients in one place; together under encryption; so, with personal
parameters; and for reference, the prevalence among the site's training patients as everybody's score."""

DIFFERENCES: Final = {
    "federated_minus_local": ("federated", "local"),
    "federated_minus_pooled": ("federated", "pooled"),
    "federated_personal_minus_local": ("federated_personal", "local"),
}

MAX_CALIBRATION_BINS: Final = 10
_PATIENTS_PER_BIN: Final = 10
_ROC_GRID: Final = np.linspace(0, 1, 101)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SiteScores:
    """One site's patients, each scored by models that had not seen that patient.

    Attributes:
        labels: int8 (n,), 0 or 1.
        folds: int64 (repeats, n), the held-out fold a patient was in.
        scores: For each of METHODS float64 (repeats, n), probabilities.
    """

    labels: Labels
    folds: Positions
    scores: Mapping[str, Values]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A measure, or a difference of two methods in it.

    Attributes:
        value: Mean over repeats; None where it is undefined.
        sd: Standard deviation over repeats; None with fewer than two.
        interval: 95 % paired bootstrap over patients, given the models.
    """

    value: float | None
    sd: float | None
    interval: tuple[float, float] | None

    @classmethod
    def of(cls, resampled: Resampled) -> Self:
        """Summarise resamples."""
        repeats = resampled.by_repeat[~np.isnan(resampled.by_repeat)]
        return cls(
            value=resampled.value,
            sd=float(repeats.std(ddof=1)) if len(repeats) > 1 else None,
            interval=resampled.interval(),
        )


Estimates: TypeAlias = Mapping[str, Mapping[str, Estimate]]
"""Method or difference -> measure -> estimate."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RocCurve:
    """A ROC curve, mean over held-out folds, on a grid that is fine enough for the eye; its area is about the AUC.

    Attributes:
        false_positive_rate: float64 (p,), rising from 0 to 1.
        true_positive_rate: float64 (p,), at that false positive rate.
    """

    false_positive_rate: Values
    true_positive_rate: Values


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Calibration:
    """The scores of all repeats in bins of about equal size.

    Attributes:
        mean_score: float64 (bins,), rising; at most MAX_CALIBRATION_BINS.
        share_positive: float64 (bins,), share of label 1 among the bin's patients.
        count: int64 (bins,), scores in the bin.
    """

    mean_score: Values
    share_positive: Values
    count: Positions


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SiteStudy:
    """One site's part of a study.

    Attributes:
        n: Patients.
        positives: Patients with label 1.
        estimates: For each of METHODS.
        differences: For each of DIFFERENCES.
        roc: For each of METHODS; empty if its AUC is undefined.
        calibration: For each of METHODS.
    """

    n: int
    positives: int
    estimates: Estimates
    differences: Estimates
    roc: Mapping[str, RocCurve]
    calibration: Mapping[str, Calibration]


@dataclass(frozen=True, slots=True, kw_only=True)
class MacroResult:
    """Unweighted means over sites.

    Attributes:
        sites: For each measure the sites it is the mean of: those where it is defined.
        estimates: For each of METHODS.
        differences: For each of DIFFERENCES.
    """

    sites: Mapping[str, tuple[str, ...]]
    estimates: Estimates
    differences: Estimates


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyResult:
    """A study's result.

    Attributes:
        sites: By name.
        macro: Over all of them.
    """

    sites: Mapping[str, SiteStudy]
    macro: MacroResult


def study_result(sites: Mapping[str, SiteScores], *, samples: int = 2000, seed: int) -> StudyResult:
    """Measure a study's scores.

    Args:
        sites: By name, one or more, all with the same number of repeats.
        samples: Resamples for the intervals.
        seed: Public; sites are resampled independently, each site the same in every study.

    Raises:
        ValueRefusedError: Shapes that do not fit, or a score outside 0..1.
    """
    methods: dict[str, dict[str, dict[str, Resampled]]] = {}
    for name, site in sites.items():
        site_seed = int(public_generator("bootstrap", seed=seed, site=name).integers(2**63))
        scores = {method: site.scores[method] for method in METHODS}
        methods[name] = resample(site.labels, scores, folds=site.folds, samples=samples, seed=site_seed)
    differences = {name: _differences(resampled) for name, resampled in methods.items()}
    return StudyResult(
        sites={
            name: SiteStudy(
                n=len(site.labels),
                positives=int(site.labels.sum()),
                estimates=_estimates(methods[name]),
                differences=_estimates(differences[name]),
                roc=_roc_curves(site) if methods[name]["constant"]["auc"].value is not None else {},
                calibration={method: _calibration(site.labels, site.scores[method]) for method in METHODS},
            )
            for name, site in sites.items()
        },
        macro=MacroResult(
            sites={
                measure: tuple(name for name in sites if methods[name]["constant"][measure].value is not None)
                for measure in MEASURES
            },
            estimates=_estimates(_macro(methods)),
            differences=_estimates(_macro(differences)),
        ),
    )


def _differences(methods: Mapping[str, Mapping[str, Resampled]]) -> dict[str, dict[str, Resampled]]:
    return {
        difference: {measure: methods[one][measure].minus(methods[other][measure]) for measure in MEASURES}
        for difference, (one, other) in DIFFERENCES.items()
    }


def _macro(sites: Mapping[str, Mapping[str, Mapping[str, Resampled]]]) -> dict[str, dict[str, Resampled]]:
    """Return the mean over sites of everything that each of them has."""
    return {
        name: {measure: macro_mean([site[name][measure] for site in sites.values()]) for measure in MEASURES}
        for name in next(iter(sites.values()))
    }


def _estimates(resampled: Mapping[str, Mapping[str, Resampled]]) -> Estimates:
    return {
        name: {measure: Estimate.of(item) for measure, item in measures.items()} for name, measures in resampled.items()
    }


def _roc_curves(site: SiteScores) -> dict[str, RocCurve]:
    return {method: _roc_curve(site.labels, site.folds, site.scores[method]) for method in METHODS}


def _roc_curve(labels: Labels, folds: Positions, scores: Values) -> RocCurve:
    """Return the mean of the folds' curves, each weighted by its pairs, as the AUC weighs them."""
    total, pairs = np.zeros(len(_ROC_GRID)), 0
    for fold_of, score_of in zip(folds, scores, strict=True):
        for fold in np.unique(fold_of):
            held_out = fold_of == fold
            positives = int(labels[held_out].sum())
            weight = positives * (int(held_out.sum()) - positives)
            if weight:
                false, true, _ = roc_curve(labels[held_out], score_of[held_out], drop_intermediate=False)
                total += weight * np.interp(_ROC_GRID, false, true)
                pairs += weight
    # A curve begins with nobody called positive, even where it then rises at once.
    return RocCurve(
        false_positive_rate=np.concatenate(([0.0], _ROC_GRID)),
        true_positive_rate=np.concatenate(([0.0], total / pairs)),
    )


def _calibration(labels: Labels, scores: Values) -> Calibration:
    flat = scores.reshape(-1)
    wanted = min(MAX_CALIBRATION_BINS, max(1, len(labels) // _PATIENTS_PER_BIN))
    edges = np.unique(np.quantile(flat, np.linspace(0, 1, wanted + 1)[1:-1]))
    bins = np.searchsorted(edges, flat, side="right")
    count = np.bincount(bins)
    filled = count > 0
    return Calibration(
        mean_score=np.bincount(bins, weights=flat)[filled] / count[filled],
        share_positive=np.bincount(bins, weights=np.tile(labels, len(scores)))[filled] / count[filled],
        count=count[filled],
    )
