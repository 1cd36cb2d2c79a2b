from __future__ import annotations

import numpy as np
import pytest

from clients.data.table import Labels
from clients.learning.intervals import MEASURES
from protocol.errors import ValueRefusedError
from scripts.study.scores import (
    DIFFERENCES,
    METHODS,
    Calibration,
    MacroResult,
    SiteScores,
    SiteStudy,
    StudyResult,
    study_result,
)

FOLDS = 5


def site_scores(labels: Labels, *, seed: int, repeats: int = 3) -> SiteScores:
    """Return scores of a site: the federated ones clearly better than the local ones."""
    generator = np.random.default_rng(seed)
    folds = np.array([_stratified_folds(labels, generator) for _ in range(repeats)])
    noise = {"local": 0.4, "pooled": 0.15, "federated": 0.15, "federated_personal": 0.15}
    scores = {
        method: generator.normal(0.5 + 0.2 * (labels - 0.5), sd, size=folds.shape).clip(0, 1)
        for method, sd in noise.items()
    }
    return SiteScores(labels=labels, folds=folds, scores={**scores, "constant": 0.3 + 0.01 * folds})


def _stratified_folds(labels: Labels, generator: np.random.Generator) -> np.ndarray:
    folds = np.empty(len(labels), dtype=np.int64)
    for label in (0, 1):
        patients = generator.permutation(np.flatnonzero(labels == label))
        folds[patients] = np.arange(len(patients)) % FOLDS
    return folds


def labels_with(positives: int, negatives: int) -> Labels:
    return np.array([1] * positives + [0] * negatives, dtype=np.int8)


def parts(result: StudyResult) -> list[SiteStudy | MacroResult]:
    return [*result.sites.values(), result.macro]


@pytest.fixture(scope="module")
def sites() -> dict[str, SiteScores]:
    shapes = {"cleveland": (60, 90), "zurich": (57, 8), "ward": (12, 0)}
    return {name: site_scores(labels_with(*shape), seed=n) for n, (name, shape) in enumerate(shapes.items())}


@pytest.fixture(scope="module")
def result(sites: dict[str, SiteScores]) -> StudyResult:
    return study_result(sites, samples=200, seed=1)


def test_each_site_has_every_method_difference_and_measure(result: StudyResult) -> None:
    for part in parts(result):
        assert tuple(part.estimates) == METHODS
        assert tuple(part.differences) == tuple(DIFFERENCES)
        for measures in (*part.estimates.values(), *part.differences.values()):
            assert tuple(measures) == MEASURES


def test_patients_are_counted(result: StudyResult) -> None:
    assert [(site.n, site.positives) for site in result.sites.values()] == [(150, 60), (65, 57), (12, 12)]


def test_the_constant_has_no_discrimination(result: StudyResult) -> None:
    assert result.sites["cleveland"].estimates["constant"]["auc"].value == 0.5
    assert result.macro.estimates["constant"]["auc"].value == 0.5


def test_a_site_with_one_label_has_no_auc_and_is_left_out_of_its_macro_mean(result: StudyResult) -> None:
    auc = {name: site.estimates["local"]["auc"].value for name, site in result.sites.items()}
    assert auc["ward"] is None
    assert result.sites["ward"].differences["federated_minus_local"]["auc"].value is None
    assert result.sites["ward"].roc == {}
    assert result.macro.sites == {
        "auc": ("cleveland", "zurich"),
        "accuracy": ("cleveland", "zurich", "ward"),
        "brier": ("cleveland", "zurich", "ward"),
    }
    assert result.macro.estimates["local"]["auc"].value == pytest.approx(
        ((auc["cleveland"] or 0) + (auc["zurich"] or 0)) / 2
    )


def test_the_macro_mean_does_not_weigh_sites_by_patients(result: StudyResult) -> None:
    values = [site.estimates["federated"]["brier"].value or 0 for site in result.sites.values()]
    assert result.macro.estimates["federated"]["brier"].value == pytest.approx(sum(values) / 3)


def test_sd_is_that_of_the_repeats(sites: dict[str, SiteScores], result: StudyResult) -> None:
    scores = sites["cleveland"].scores["pooled"]
    by_repeat = ((scores - sites["cleveland"].labels) ** 2).mean(axis=1)
    assert result.sites["cleveland"].estimates["pooled"]["brier"].sd == pytest.approx(np.std(by_repeat, ddof=1))


def test_one_repeat_has_no_sd() -> None:
    site = site_scores(labels_with(10, 10), seed=0, repeats=1)
    estimate = study_result({"only": site}, samples=5, seed=0).macro.estimates["local"]["auc"]
    assert estimate.value is not None
    assert estimate.sd is None


def test_differences_are_of_the_methods_they_name(result: StudyResult) -> None:
    for part in parts(result):
        for name, (one, other) in DIFFERENCES.items():
            assert name == f"{one}_minus_{other}"
            difference = (part.estimates[one]["brier"].value or 0) - (part.estimates[other]["brier"].value or 0)
            assert part.differences[name]["brier"].value == pytest.approx(difference)


def test_a_clear_gain_has_an_interval_above_zero_at_the_site_and_over_all(result: StudyResult) -> None:
    for part in (result.sites["cleveland"], result.macro):
        low, high = part.differences["federated_minus_local"]["auc"].interval or (0, 0)
        assert 0 < low < (part.differences["federated_minus_local"]["auc"].value or 0) < high


def test_the_macro_interval_is_narrower_than_those_of_its_sites() -> None:
    sites = {name: site_scores(labels_with(40, 40), seed=seed) for seed, name in enumerate("abcd")}
    result = study_result(sites, samples=500, seed=0)

    intervals = [part.estimates["federated"]["auc"].interval or (0, 1) for part in parts(result)]
    *of_sites, of_macro = (high - low for low, high in intervals)
    assert 0 < of_macro < 0.7 * min(of_sites)


def test_equal_sites_are_resampled_independently() -> None:
    site = site_scores(labels_with(20, 20), seed=0)
    result = study_result({"a": site, "b": site}, samples=100, seed=0)
    assert result.sites["a"].estimates["local"]["auc"].value == result.sites["b"].estimates["local"]["auc"].value
    assert result.sites["a"].estimates["local"]["auc"].interval != result.sites["b"].estimates["local"]["auc"].interval


def test_a_seed_fixes_the_intervals(sites: dict[str, SiteScores], result: StudyResult) -> None:
    assert study_result(sites, samples=200, seed=1).macro == result.macro
    assert study_result(sites, samples=200, seed=2).macro != result.macro


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["cleveland", "zurich"])
def test_the_area_under_the_roc_curve_is_the_auc(result: StudyResult, name: str, method: str) -> None:
    site = result.sites[name]
    x, y = site.roc[method].false_positive_rate, site.roc[method].true_positive_rate
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, pytest.approx(1))
    assert (np.diff(x) >= 0).all()
    assert (np.diff(y) >= -1e-12).all()
    assert np.trapezoid(y, x) == pytest.approx(site.estimates[method]["auc"].value, abs=0.01)


def test_a_fold_without_a_pair_adds_nothing_to_the_roc_curve() -> None:
    labels = labels_with(3, 1)
    scores = np.array([[0.9, 0.1, 0.1, 0.5]])
    site = SiteScores(labels=labels, folds=np.array([[0, 1, 1, 0]]), scores=dict.fromkeys(METHODS, scores))
    curve = study_result({"tiny": site}, samples=2, seed=0).sites["tiny"].roc["local"]
    assert curve.true_positive_rate.tolist() == [0.0] + [1.0] * (len(curve.true_positive_rate) - 1)


def calibration(labels: Labels, scores: np.ndarray) -> Calibration:
    site = SiteScores(
        labels=labels, folds=np.zeros(scores.shape, dtype=np.int64), scores=dict.fromkeys(METHODS, scores)
    )
    return study_result({"site": site}, samples=1, seed=0).sites["site"].calibration["local"]


def test_calibration_bins_hold_equal_numbers_of_scores_of_all_repeats() -> None:
    labels = labels_with(100, 100)
    scores = np.random.default_rng(0).permutation(400).reshape(2, 200) / 400
    points = calibration(labels, scores)
    assert points.count.tolist() == [40] * 10
    np.testing.assert_allclose(points.mean_score, np.arange(10) / 10 + 39 / 2 / 400)
    assert points.share_positive @ points.count == pytest.approx(200)
    lowest = scores < 40 / 400
    assert points.share_positive[0] == pytest.approx(np.tile(labels, (2, 1))[lowest].mean())


def test_a_small_site_has_fewer_calibration_bins_of_ten_patients() -> None:
    points = calibration(labels_with(15, 10), np.linspace(0, 1, 75).reshape(3, 25))
    assert len(points.count) == 2
    assert points.count.sum() == 75


def test_equal_scores_share_a_calibration_bin() -> None:
    points = calibration(labels_with(30, 70), np.full((1, 100), 0.25))
    assert points.mean_score.tolist() == [0.25]
    assert points.share_positive.tolist() == [0.3]
    assert points.count.tolist() == [100]


def test_a_diverged_method_is_refused(sites: dict[str, SiteScores]) -> None:
    site = sites["cleveland"]
    scores = {**site.scores, "federated": np.full(site.folds.shape, np.nan)}
    with pytest.raises(ValueRefusedError, match="scores of federated"):
        study_result({"a": SiteScores(labels=site.labels, folds=site.folds, scores=scores)}, samples=1, seed=0)
