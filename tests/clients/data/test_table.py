from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.data.table import Table, fold_of_rows, split_table
from protocol.errors import DataError

labels_of_a_site = st.lists(st.integers(0, 1), min_size=1, max_size=80).map(lambda labels: np.array(labels, np.int8))


def labelled(labels):
    labels = np.array(labels, dtype=np.int8)
    return Table(features=np.arange(2.0 * len(labels)).reshape(-1, 2), labels=labels)


def test_repr_shows_sizes_and_no_patient():
    assert repr(labelled([0, 1, 1])) == "Table(3 records, 2 features)"


def test_features_and_labels_must_have_the_same_rows():
    with pytest.raises(DataError, match="shape"):
        Table(features=np.zeros((3, 2)), labels=np.zeros(2, dtype=np.int8))


def test_chosen_rows_come_in_the_order_that_was_asked_for():
    chosen = labelled([0, 1, 1]).rows(np.array([2, 0]))

    np.testing.assert_array_equal(chosen.features, [[4, 5], [0, 1]])
    assert chosen.labels.tolist() == [1, 0]


def test_rows_that_stand_there_twice_are_counted_also_where_values_are_missing():
    features = np.array([[1, math.nan], [1, 2], [1, math.nan], [1, math.nan], [math.nan, 1]])
    labels = np.array([0, 0, 0, 1, 0], dtype=np.int8)

    assert Table(features=features, labels=labels).repeated == 1
    assert Table(features=features, labels=np.zeros(5, dtype=np.int8)).repeated == 2
    assert labelled([0, 1, 1]).repeated == 0


@given(labels=labels_of_a_site, folds=st.integers(2, 20), seed=st.integers(0, 2**32 - 1))
def test_folds_are_as_even_as_each_label_allows(labels, folds, seed):
    fold = fold_of_rows(labels, folds=folds, seed=seed, site="north")

    for rows in (fold, fold[labels == 0], fold[labels == 1]):
        sizes = np.bincount(rows, minlength=folds)
        assert len(sizes) == folds
        assert sizes.max() - sizes.min() <= 1


@given(labels=labels_of_a_site.filter(lambda labels: len(labels) >= 2), folds=st.integers(2, 20))
def test_every_row_is_held_out_exactly_once_over_all_folds(labels, folds):
    table = labelled(labels)
    held_out = []
    for fold in range(min(folds, table.records)):
        known, hidden = split_table(table, folds=folds, fold=fold, seed=3, site="north")
        assert sorted([*known.features[:, 0], *hidden.features[:, 0]]) == table.features[:, 0].tolist()
        assert known.records >= 1
        assert (np.diff(hidden.features[:, 0]) > 0).all()
        held_out += hidden.features[:, 0].tolist()

    assert sorted(held_out) == table.features[:, 0].tolist()


def test_a_fold_repeats_at_a_site_and_differs_between_sites_and_seeds():
    labels = np.array([0, 1] * 30, dtype=np.int8)
    fold, again = (fold_of_rows(labels, folds=4, seed=1, site="north") for _ in range(2))

    assert fold.tolist() == again.tolist()
    assert fold.tolist() != fold_of_rows(labels, folds=4, seed=1, site="south").tolist()
    assert fold.tolist() != fold_of_rows(labels, folds=4, seed=2, site="north").tolist()


def test_a_row_s_fold_depends_on_positions_and_labels_and_on_no_other_value():
    table = labelled([0, 1, 1, 0] * 5)
    other = Table(features=-table.features, labels=table.labels)

    _, held_out = split_table(table, folds=4, fold=1, seed=1, site="north")
    _, of_other = split_table(other, folds=4, fold=1, seed=1, site="north")

    np.testing.assert_array_equal(held_out.features, -of_other.features)


def test_each_label_is_held_out_by_its_share():
    known, held_out = split_table(labelled([0] * 80 + [1] * 20), folds=4, fold=0, seed=1, site="north")

    assert (held_out.records, int(held_out.labels.sum())) == (25, 5)
    assert (known.records, int(known.labels.sum())) == (75, 15)


@pytest.mark.parametrize(("rows", "fold"), [(3, 3), (3, 4), (1, 0), (0, 0)])
def test_a_site_with_nothing_to_hold_out_or_nothing_to_train_on_is_refused(rows, fold):
    with pytest.raises(DataError, match=f"a table of {rows} rows leaves nothing .* fold {fold}"):
        split_table(labelled([1] * rows), folds=5, fold=fold, seed=1, site="north")


def test_a_site_with_fewer_rows_than_folds_still_has_its_first_folds():
    known, held_out = split_table(labelled([1, 0, 1]), folds=5, fold=2, seed=1, site="north")

    assert (known.records, held_out.records) == (2, 1)
