from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.learning.evaluation import MAX_LOSS, FederatedMetrics, Metrics, metric_sums, score
from protocol.errors import ValueRefusedError
from protocol.packing import METRIC_FIELDS
from protocol.terms import ModelTerms

LABELS = np.array([1, 1, 0, 0, 1, 0], dtype=np.int8)
SCORES = np.array([0.9, 0.2, 0.6, 0.1, 1.0, 0.0])

scored = st.lists(st.tuples(st.integers(0, 1), st.floats(0, 1)), min_size=1, max_size=60).map(
    lambda rows: (np.array([row[0] for row in rows], dtype=np.int8), np.array([row[1] for row in rows]))
)


def sums_of(labels, scores, *, training=slice(None), smallest_cell=1):
    return metric_sums(labels, scores, labels[training], scores[training], smallest_cell=smallest_cell)


def test_scores_are_the_probabilities_of_the_model_in_float64():
    features = np.array([[1, 2], [-3, 0.5]], dtype=np.float32)
    scores = score(ModelTerms(), np.array([0.5, -1.0, 0.25]), features)

    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(-(features @ [0.5, -1.0] + 0.25))), rtol=1e-12)


def test_a_diverged_model_has_no_scores():
    with pytest.raises(ValueRefusedError, match="diverged"):
        score(ModelTerms(), np.array([np.inf, -np.inf, 0]), np.ones((1, 2), dtype=np.float32))


def test_the_sums_have_the_agreed_fields():
    sums = sums_of(LABELS, SCORES)

    assert {name: field.shape for name, field in sums.items()} == {
        name: (size,) for name, size in METRIC_FIELDS.items()
    }
    assert {field.dtype for field in sums.values()} == {np.dtype(np.int64)}


def test_the_counts_are_those_of_the_patients():
    sums = sums_of(LABELS, SCORES, training=slice(2))

    assert sums["confusion"].tolist() == [2, 1, 2, 1]
    assert sums["positive_scores"].tolist() == [0, 0, 0, 1] + [0] * 10 + [1, 1]
    assert sums["negative_scores"].tolist() == [1, 1] + [0] * 7 + [1] + [0] * 6
    assert (sums["records"][0], sums["training_records"][0]) == (6, 2)


def test_small_cells_are_left_out_and_totals_are_not():
    labels, scores = np.repeat(LABELS, 2), np.repeat(SCORES, 2)

    exact, sums = sums_of(labels, scores), sums_of(labels, scores, smallest_cell=3)

    assert sums["confusion"].tolist() == [4, 0, 4, 0]
    assert not sums["positive_scores"].any()
    assert not sums["negative_scores"].any()
    for name in ("records", "loss", "brier", "training_records", "training_loss"):
        assert sums[name] == exact[name]


def test_a_confident_mistake_costs_at_most_the_largest_loss():
    sums = metric_sums(LABELS[:1], np.array([0.0]), LABELS[:1], np.array([1.0]), smallest_cell=1)

    assert sums["loss"][0] == MAX_LOSS * 2**20
    assert sums["training_loss"][0] == 0


@given(parts=st.lists(scored, min_size=1, max_size=4))
def test_summed_metrics_equal_those_of_all_patients_together(parts):
    labels, scores = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    sums = [sums_of(*part) for part in parts]

    federated = FederatedMetrics.from_sums({name: sum(one[name] for one in sums) for name in METRIC_FIELDS})
    exact = Metrics.of(labels, scores)
    right = np.clip(np.where(labels == 1, scores, 1 - scores), math.exp(-MAX_LOSS), 1)

    assert federated.records == exact.records == len(labels)
    assert federated.accuracy == pytest.approx(exact.accuracy)
    assert federated.brier == pytest.approx(exact.brier, abs=2.0**-20)
    assert federated.loss == pytest.approx(-np.log(right).mean(), abs=2.0**-20)
    assert federated.training_loss == federated.loss


def test_one_label_has_no_auc():
    labels, scores = np.ones(3, dtype=np.int8), np.array([0.2, 0.6, 0.9])

    assert Metrics.of(labels, scores).auc is None
    federated = FederatedMetrics.from_sums(sums_of(labels, scores))
    assert (federated.auc, federated.auc_bound) == (None, None)


@pytest.mark.parametrize("name", ["records", "training_records"])
def test_a_sum_without_patients_is_refused(name):
    sums = sums_of(LABELS, SCORES)
    sums[name] = np.array([0])

    with pytest.raises(ValueRefusedError, match="records"):
        FederatedMetrics.from_sums(sums)


def test_json_has_plain_numbers_under_the_field_names():
    exact = Metrics.of(LABELS, SCORES).as_json()

    assert exact["records"] == 6
    assert {type(value) for value in exact.values()} == {int, float}
    assert list(FederatedMetrics.from_sums(sums_of(LABELS, SCORES)).as_json()) == [
        "records",
        "loss",
        "brier",
        "accuracy",
        "accuracy_bound",
        "auc",
        "auc_bound",
        "training_loss",
        "confusion",
        "positive_scores",
        "negative_scores",
    ]
