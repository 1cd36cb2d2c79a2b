"""What sums without small cells guarantee: the exact measures of all patients lie inside the interval, always."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from clients.learning.evaluation import COUNTS, FederatedMetrics, Metrics, metric_sums
from clients.learning.score_cells import BORDER, LabelCells, ScoreCells
from protocol.errors import ValueRefusedError
from protocol.packing import HISTOGRAM_BINS, METRIC_FIELDS

scores = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.03, 0.49, 0.5, 0.51, 0.97, 1.0]))
sites = st.lists(st.lists(st.tuples(st.integers(0, 1), scores), min_size=1, max_size=40), min_size=1, max_size=4)


def summed(parts, smallest_cell):
    sums = []
    for part in parts:
        labels, values = np.array([row[0] for row in part], dtype=np.int8), np.array([row[1] for row in part])
        sums.append(metric_sums(labels, values, labels, values, smallest_cell=smallest_cell))
    return {name: np.sum([one[name] for one in sums], axis=0) for name in METRIC_FIELDS}


def exact(parts):
    rows = [row for part in parts for row in part]
    return Metrics.of(np.array([row[0] for row in rows], dtype=np.int8), np.array([row[1] for row in rows]))


@settings(max_examples=400)
@given(parts=sites, smallest_cell=st.integers(1, 8))
def test_the_exact_accuracy_and_area_of_all_patients_are_within_their_bounds(parts, smallest_cell):
    federated, truth = FederatedMetrics.from_sums(summed(parts, smallest_cell)), exact(parts)

    assert abs(federated.accuracy - truth.accuracy) <= federated.accuracy_bound + 1e-12
    if truth.auc is not None:
        assert abs(federated.auc - truth.auc) <= federated.auc_bound + 1e-12


@given(parts=sites)
def test_without_small_cells_the_accuracy_is_exact_and_the_area_as_exact_as_the_bins(parts):
    truth = exact(parts)
    assume(truth.auc is not None)
    federated = FederatedMetrics.from_sums(summed(parts, 1))

    tied = sum(a * b for a, b in zip(federated.positive_scores, federated.negative_scores, strict=True))
    pairs = sum(federated.positive_scores) * sum(federated.negative_scores)
    assert (federated.accuracy, federated.accuracy_bound) == (pytest.approx(truth.accuracy), 0)
    assert federated.auc_bound == pytest.approx(tied / 2 / pairs)


def cells(confusion, positives=(), negatives=(), *, records):
    bins = [np.bincount([*at], minlength=HISTOGRAM_BINS).tolist() for at in (positives, negatives)]
    return ScoreCells.of(records=records, confusion=confusion, positive_scores=bins[0], negative_scores=bins[1])


def test_a_model_whose_mistakes_are_hidden_does_not_look_perfect():
    some = cells((20, 0, 20, 0), [15] * 20, [0] * 20, records=44)  # 4 patients sit in small cells

    accuracy, accuracy_bound = some.accuracy()
    auc, auc_bound = some.auc()

    assert accuracy - accuracy_bound == pytest.approx(40 / 44)
    assert accuracy + accuracy_bound == 1
    assert auc - auc_bound == pytest.approx(400 / 22**2)
    assert auc + auc_bound == 1


def test_patients_whose_half_is_known_are_placed_in_it():
    # 10 positive patients above the border and 10 negative ones below it, none in a known bin
    assert cells((10, 0, 10, 0), records=20).auc() == (1, 0)
    # half of each label on the wrong side
    assert cells((10, 10, 10, 10), records=40).auc() == (0.5, 0.25)


@pytest.mark.parametrize("labels", [(0, 0, 9, 0), (9, 0, 0, 0)])
def test_one_label_has_no_area_and_hidden_patients_leave_it_open(labels):
    assert cells(labels, records=9).auc() == (None, None)
    assert cells(labels, records=12).auc() == (0.5, 0.5)


def test_the_hidden_are_those_of_the_coarser_cell_that_no_bin_holds():
    label = LabelCells(lower=7, upper=9, scores=tuple(6 if place in (0, BORDER) else 0 for place in range(16)))

    assert (label.count, label.hidden_lower, label.hidden_upper) == (16, 1, 3)
    assert [place for place, count in enumerate(label.highest) if count] == [1, 9, 11, 19]
    assert [place for place, count in enumerate(label.lowest) if count] == [0, 1, 10, 11]


@pytest.mark.parametrize(
    "change", [{"records": 19}, {"confusion": (10, 0, 9, 1)}, {"positive_scores": (1,) + (0,) * 15}, {"records": -1}]
)
def test_cells_that_contradict_each_other_are_refused(change):
    counts = {
        "records": 20,
        "confusion": (10, 0, 10, 0),
        "positive_scores": (0,) * 15 + (10,),
        "negative_scores": (10,) + (0,) * 15,
    }
    ScoreCells.of(**counts)
    with pytest.raises(ValueRefusedError, match="holds more patients"):
        ScoreCells.of(**counts | change)


@given(parts=sites, smallest_cell=st.integers(2, 8))
def test_no_site_sends_a_cell_of_few_patients(parts, smallest_cell):
    for part in parts:
        sent = summed([part], smallest_cell)
        for name in COUNTS:
            assert not ((sent[name] > 0) & (sent[name] < smallest_cell)).any()
