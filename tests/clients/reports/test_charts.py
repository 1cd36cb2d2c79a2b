"""The charts of a site's report: no patient is lost in a group, and odd sites still have a drawing."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from clients.learning.score_cells import ScoreCells
from clients.reports.charts import (
    LARGEST_GROUPS,
    ScoreGroup,
    calibration_chart,
    groups_of_cells,
    groups_of_scores,
    learning_chart,
    loss_chart,
    roc_chart,
)

PATIENTS = st.lists(st.tuples(st.integers(0, 1), st.floats(0, 1)), min_size=1, max_size=200)


def texts_of(svg):
    return [element.text for element in ET.fromstring(svg).iter() if element.tag.endswith("text")]


@given(PATIENTS)
def test_every_patient_is_in_one_group_and_groups_rise(patients):
    labels, scores = (
        np.array([label for label, _ in patients], dtype=np.int8),
        np.array([score for _, score in patients]),
    )

    groups = groups_of_scores(labels, scores)

    assert 1 <= len(groups) <= LARGEST_GROUPS
    assert sum(group.count for group in groups) == len(patients)
    assert sum(group.positives for group in groups) == labels.sum()
    assert sorted(groups, key=lambda group: group.score) == groups


def test_few_patients_make_few_groups():
    rng = np.random.default_rng(0)
    counts = [len(groups_of_scores(np.zeros(n, dtype=np.int8), rng.random(n))) for n in (1, 9, 25, 1000)]

    assert counts == [1, 1, 2, 10]


def cells(positives, negatives, *, confusion=None, records=None):
    """Return score cells with patients in some of the bins; by default nobody is hidden."""
    bins = [[of_label.get(place, 0) for place in range(16)] for of_label in (positives, negatives)]
    known = (sum(bins[0][8:]), sum(bins[1][8:]), sum(bins[1][:8]), sum(bins[0][:8]))
    confusion = confusion or known
    return ScoreCells.of(
        records=records or sum(confusion), confusion=confusion, positive_scores=bins[0], negative_scores=bins[1]
    )


def test_groups_of_cells_stand_at_the_middle_of_their_bins():
    groups = groups_of_cells(cells({10: 1, 15: 3}, {0: 5, 10: 1}), most_hidden=20)

    assert groups == [
        ScoreGroup(score=0.03125, positives=0, count=5),
        ScoreGroup(score=0.65625, positives=1, count=2),
        ScoreGroup(score=0.96875, positives=3, count=3),
    ]


def test_patients_of_small_cells_could_be_in_every_bin_of_their_half():
    # two positive patients are known to be above the border, one negative one below; one is not known at all
    hidden = cells({15: 30}, {0: 30}, confusion=(32, 0, 31, 0), records=64)

    low, high = groups_of_cells(hidden, most_hidden=20)

    assert (low.hidden_positives, low.hidden_negatives) == (1, 2)
    assert (high.hidden_positives, high.hidden_negatives) == (3, 1)
    assert high.possible == (30 / 31, 1)
    assert high.share == (30 / 31 + 1) / 2
    assert high.interval[0] == ScoreGroup(score=0.5, positives=30, count=31).interval[0]


def test_no_more_patients_are_hidden_than_small_cells_hold():
    (group,) = groups_of_cells(cells({15: 30}, {}, records=100), most_hidden=4)

    assert (group.hidden_positives, group.hidden_negatives) == (4, 4)


def test_a_group_whose_share_is_hardly_known_is_no_group():
    some = cells({15: 5}, {0: 30}, records=60)

    assert [group.score for group in groups_of_cells(some, most_hidden=2)] == [0.03125, 0.96875]
    assert [group.score for group in groups_of_cells(some, most_hidden=8)] == [0.03125]
    assert groups_of_cells(cells({}, {}, records=9), most_hidden=4) == []


@pytest.mark.parametrize(("positives", "count"), [(0, 1), (1, 1), (0, 12), (3, 10), (250, 500)])
def test_the_interval_is_wilson_s(positives, count):
    expected = binomtest(positives, count).proportion_ci(method="wilson")

    low, high = ScoreGroup(score=0.5, positives=positives, count=count).interval

    assert low == pytest.approx(expected.low, abs=1e-6)
    assert high == pytest.approx(expected.high, abs=1e-6)


def test_the_roc_chart_names_both_models_with_their_areas():
    labels = np.array([0, 0, 1, 1], dtype=np.int8)

    texts = texts_of(roc_chart(labels, np.array([0.1, 0.2, 0.8, 0.9]), np.array([0.1, 0.6, 0.4, 0.9])))

    assert {"shared model, AUC 1.000", "own model, AUC 0.750"} <= set(texts)


def test_the_calibration_chart_writes_the_first_model_s_counts():
    groups = [ScoreGroup(score=0.2, positives=1, count=17), ScoreGroup(score=0.8, positives=20, count=23)]

    texts = texts_of(calibration_chart({"shared model": groups, "own model": groups[:1]}, "Calibration here"))

    assert {"17", "23", "shared model", "own model", "Calibration here"} <= set(texts)


def test_one_group_is_drawn_too():
    assert "1" in texts_of(calibration_chart({"shared model": [ScoreGroup(score=1.0, positives=1, count=1)]}, "one"))


@pytest.mark.parametrize(
    ("here", "all_sites", "names"),
    [
        ({0: 0.5, 1: 0.8}, {0: 0.5, 1: 0.9}, {"shared model, here", "shared model, all sites"}),
        ({}, {0: 0.5, 1: 0.9}, {"shared model, all sites"}),
        ({3: 0.7}, {}, {"shared model, here"}),
    ],
)
def test_a_learning_chart_names_the_curves_that_there_are(here, all_sites, names):
    texts = set(texts_of(learning_chart("AUC", here, all_sites, reach=dict.fromkeys(all_sites, 0.1))))

    assert names == {text for text in texts if text.startswith("shared model")}
    assert "AUC" in texts


def test_the_loss_chart_tells_held_out_from_training_patients():
    assert {"held-out patients", "training patients"} <= set(texts_of(loss_chart({0: 0.7, 1: 0.4}, {0: 0.7, 1: 0.3})))
