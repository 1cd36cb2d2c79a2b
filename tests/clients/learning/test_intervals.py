from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from clients.data.table import Labels, Values
from clients.learning import intervals
from clients.learning.intervals import MEASURES, Positions, Resampled, macro_mean, resample
from protocol.errors import ValueRefusedError


def labels_of(*values: int) -> Labels:
    return np.array(values, dtype=np.int8)


def patients(n: int, *, seed: int, repeats: int = 1) -> tuple[Labels, Values]:
    """Both labels, and scores that are often tied."""
    generator = np.random.default_rng(seed)
    labels = np.concatenate(([0, 1], generator.integers(2, size=n - 2))).astype(np.int8)
    scores = generator.normal(0.4 + 0.2 * labels, 0.2, size=(repeats, n)).clip(0, 1).round(1)
    return labels, scores


def brute_force_auc(labels: Labels, scores: Values, folds: Positions, weights: Values) -> float:
    concordant = pairs = 0.0
    for i in np.flatnonzero(labels == 1):
        for j in np.flatnonzero(labels == 0):
            if folds[i] == folds[j]:
                weight = weights[i] * weights[j]
                pairs += weight
                concordant += weight * (1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0)
    return concordant / pairs if pairs else np.nan


def item(value: float | None, samples: list[float]) -> Resampled:
    return Resampled(
        value=value, by_repeat=np.array([np.nan if value is None else value]), samples=np.array(samples, dtype=float)
    )


@given(n=st.integers(2, 60), seed=st.integers(0, 2**32))
def test_without_folds_the_measures_are_the_textbook_ones(n: int, seed: int) -> None:
    labels, scores = patients(n, seed=seed)
    measured = resample(labels, {"model": scores[0]}, samples=1, seed=0)["model"]
    assert measured["auc"].value == pytest.approx(roc_auc_score(labels, scores[0]), abs=1e-12)
    assert measured["accuracy"].value == pytest.approx(np.mean((scores[0] >= 0.5) == (labels == 1)))
    assert measured["brier"].value == pytest.approx(np.mean((scores[0] - labels) ** 2))


@given(n=st.integers(2, 25), seed=st.integers(0, 2**32))
def test_each_resample_is_what_counting_the_drawn_pairs_within_folds_gives(n: int, seed: int) -> None:
    labels, scores = patients(n, seed=seed, repeats=2)
    folds = np.random.default_rng(seed).integers(3, size=(2, n))
    auc = resample(labels, {"model": scores}, folds=folds, samples=4, seed=seed)["model"]["auc"]
    weights = np.concatenate(list(intervals._draws(labels, 4, seed)), axis=1)
    for sample in range(4):
        by_repeat = [brute_force_auc(labels, scores[r], folds[r], weights[:, sample]) for r in range(2)]
        defined = [value for value in by_repeat if not np.isnan(value)]
        expected = np.mean(defined) if defined else np.nan
        assert auc.samples[sample] == pytest.approx(expected, nan_ok=True)


def test_accuracy_and_brier_of_a_resample_count_patients_as_often_as_drawn() -> None:
    labels, scores = patients(30, seed=5, repeats=3)
    measured = resample(labels, {"model": scores}, samples=6, seed=9)["model"]
    weights = np.concatenate(list(intervals._draws(labels, 6, 9)), axis=1)
    for sample in range(6):
        drawn = np.repeat(np.arange(30), weights[:, sample].astype(int))
        assert measured["accuracy"].samples[sample] == pytest.approx(
            np.mean((scores[:, drawn] >= 0.5) == (labels[drawn] == 1))
        )
        assert measured["brier"].samples[sample] == pytest.approx(np.mean((scores[:, drawn] - labels[drawn]) ** 2))


def test_a_constant_per_fold_has_an_auc_of_exactly_one_half_in_every_resample() -> None:
    labels, _ = patients(40, seed=1)
    folds = np.arange(40)[np.newaxis] % 4
    auc = resample(labels, {"constant": (0.1 + 0.2 * folds).astype(np.float64)}, folds=folds, samples=50, seed=0)[
        "constant"
    ]["auc"]
    assert auc.value == 0.5
    assert set(auc.samples) == {0.5}


def test_models_of_different_folds_are_not_compared() -> None:
    labels = labels_of(0, 1, 0, 1)
    scores = np.array([0.6, 0.7, 0.1, 0.2])  # right in each fold, although a negative of one beats the other's positive
    folded = resample(labels, {"model": scores}, folds=np.array([[0, 0, 1, 1]]), samples=1, seed=0)["model"]["auc"]
    assert folded.value == 1.0
    assert resample(labels, {"model": scores}, samples=1, seed=0)["model"]["auc"].value == 0.75


def test_a_score_of_one_half_is_a_positive_decision() -> None:
    assert resample(labels_of(1, 0), {"model": np.array([0.5, 0.5])}, samples=1, seed=0)["model"]["accuracy"].value == (
        0.5
    )


@pytest.mark.parametrize("label", [0, 1])
def test_one_label_leaves_only_the_auc_undefined(label: int) -> None:
    measured = resample(labels_of(label, label), {"model": np.array([0.25, 0.75])}, samples=8, seed=0)["model"]
    assert measured["auc"].value is None
    assert measured["auc"].interval() is None
    assert np.isnan(measured["auc"].by_repeat).all()
    assert measured["accuracy"].value == 0.5
    assert measured["brier"].interval() is not None


def test_a_single_patient_can_be_measured() -> None:
    measured = resample(labels_of(1), {"model": np.array([0.75])}, samples=5, seed=0)["model"]
    assert measured["auc"].value is None
    assert measured["brier"].value == 0.0625
    assert measured["brier"].interval() == (0.0625, 0.0625)


def test_a_repeat_whose_folds_hold_no_pair_is_left_out() -> None:
    labels = labels_of(0, 1)
    scores = np.array([[0.2, 0.8], [0.8, 0.2]])
    auc = resample(labels, {"model": scores}, folds=np.array([[0, 0], [0, 1]]), samples=3, seed=0)["model"]["auc"]
    assert auc.value == 1.0
    assert np.isnan(auc.by_repeat).tolist() == [False, True]
    assert auc.samples.tolist() == [1.0, 1.0, 1.0]


def test_no_resample_loses_a_label() -> None:
    labels = labels_of(*[1] * 200, 0)
    weights = np.concatenate(list(intervals._draws(labels, 300, 3)), axis=1)
    assert set(weights[labels == 0].sum(axis=0)) == {1}
    assert set(weights[labels == 1].sum(axis=0)) == {200}


def test_each_patient_is_drawn_once_on_average() -> None:
    labels, _ = patients(20, seed=0)
    weights = np.concatenate(list(intervals._draws(labels, 20_000, 0)), axis=1)
    np.testing.assert_allclose(weights.mean(axis=1), 1, atol=0.04)


def test_a_seed_fixes_the_samples() -> None:
    labels, scores = patients(50, seed=2)
    first, same, other = (resample(labels, {"model": scores}, samples=20, seed=seed)["model"] for seed in (7, 7, 8))
    for measure in MEASURES:
        assert first[measure].samples.tolist() == same[measure].samples.tolist()
        assert first[measure].samples.tolist() != other[measure].samples.tolist()


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, scores = patients(37, seed=4, repeats=2)
    folds = np.arange(37)[np.newaxis].repeat(2, axis=0) % 5
    whole = resample(labels, {"model": scores}, folds=folds, samples=25, seed=1)["model"]
    for numbers in (1, 37 * 2, 37 * 7):
        monkeypatch.setattr(intervals, "_CHUNK_NUMBERS", numbers)
        cut = resample(labels, {"model": scores}, folds=folds, samples=25, seed=1)["model"]
        for measure in MEASURES:
            np.testing.assert_allclose(cut[measure].samples, whole[measure].samples, rtol=1e-13)


def test_all_models_meet_the_same_draws() -> None:
    labels, scores = patients(50, seed=6, repeats=2)
    _, others = patients(50, seed=7, repeats=2)
    measured = resample(labels, {"a": scores, "noise": others, "b": scores}, samples=30, seed=0)
    for measure in MEASURES:
        difference = measured["a"][measure].minus(measured["b"][measure])
        assert difference.value == 0.0
        assert set(difference.samples) == {0.0}
        assert difference.interval() == (0.0, 0.0)


def test_a_paired_difference_is_surer_than_the_models_themselves() -> None:
    labels, scores = patients(100, seed=8)
    better = np.where(np.arange(100) % 20 == 0, labels, scores)
    measured = resample(labels, {"a": scores, "b": better}, samples=500, seed=0)
    low, high = measured["a"]["brier"].interval() or (0, 0)
    gain_low, gain_high = measured["a"]["brier"].minus(measured["b"]["brier"]).interval() or (0, 0)
    assert 0 < gain_high - gain_low < (high - low) / 2


def test_intervals_cover_the_true_auc_about_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    large = generator.normal(0.4 + 0.2 * np.arange(2)[:, np.newaxis], 0.15, size=(2, 200_000)).clip(0, 1)
    truth = roc_auc_score([0] * 200_000 + [1] * 200_000, large.reshape(-1))
    covered = 0
    for trial in range(300):
        labels = (np.arange(120) % 3 == 0).astype(np.int8)
        scores = generator.normal(0.4 + 0.2 * labels, 0.15).clip(0, 1)
        low, high = resample(labels, {"model": scores}, samples=300, seed=trial)["model"]["auc"].interval() or (0, 0)
        covered += low <= truth <= high
    assert 0.90 <= covered / 300 <= 0.98


def test_an_interval_holds_the_wanted_share_of_defined_samples() -> None:
    resampled = item(0.5, [*np.linspace(0, 1, 101), np.nan])
    assert resampled.interval(0.9) == pytest.approx((0.05, 0.95))
    assert resampled.interval() == pytest.approx((0.025, 0.975))


def test_a_difference_from_something_undefined_is_undefined() -> None:
    assert item(0.5, [0.5]).minus(item(None, [np.nan])).value is None
    assert item(None, [np.nan]).minus(item(0.5, [0.5])).interval() is None


def test_the_macro_mean_weighs_sites_equally_and_leaves_out_undefined_ones() -> None:
    mean = macro_mean([item(0.5, [0.4, 0.6]), item(None, [np.nan, np.nan]), item(1.0, [1.0, 0.8])])
    assert mean.value == 0.75
    assert mean.by_repeat.tolist() == [0.75]
    assert mean.samples.tolist() == pytest.approx([0.7, 0.7])


def test_the_macro_mean_of_nothing_defined_is_undefined() -> None:
    mean = macro_mean([item(None, [np.nan]), item(None, [np.nan])])
    assert mean.value is None
    assert mean.interval() is None


@pytest.mark.parametrize(
    ("labels", "scores", "folds"),
    [
        (labels_of(), np.empty((1, 0)), None),
        (labels_of(0, 1), np.array([0.5]), None),
        (labels_of(0, 1), np.array([0.5, np.nan]), None),
        (labels_of(0, 1), np.array([0.5, 1.5]), None),
        (labels_of(0, 1), np.array([[0.5, 0.5]]), np.array([[0, 1], [1, 0]])),
    ],
)
def test_what_does_not_fit_is_refused(labels: Labels, scores: Values, folds: Positions | None) -> None:
    with pytest.raises(ValueRefusedError):
        resample(labels, {"model": scores}, folds=folds, samples=1, seed=0)


def test_models_with_different_repeats_are_refused() -> None:
    scores = {"a": np.full((2, 3), 0.5), "b": np.full((1, 3), 0.5)}
    with pytest.raises(ValueRefusedError, match="scores of b"):
        resample(labels_of(0, 1, 1), scores, samples=1, seed=0)
