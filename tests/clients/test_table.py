from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clients.table import Table, read_table, split_table, write_table
from protocol.errors import DataError
from protocol.terms import DataTerms, FeatureTerms

TERMS = DataTerms(name="ward", features=(FeatureTerms(name="age"), FeatureTerms(name="dose, mg")), label="died")
HEADER = 'age,"dose, mg",died\n'
SECRET = "98765"

in_one_directory = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
cells = st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.just(math.nan))
rows = st.lists(st.tuples(cells, cells, st.integers(0, 1)), min_size=1, max_size=8)


def labelled(labels):
    labels = np.array(labels, dtype=np.int8)
    return Table(features=np.arange(2.0 * len(labels)).reshape(-1, 2), labels=labels)


def written(tmp_path, content):
    path = tmp_path / "patients.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@given(rows=rows)
@in_one_directory
def test_a_written_table_is_read_back_bit_for_bit(tmp_path, rows):
    table = Table(
        features=np.array([row[:2] for row in rows]), labels=np.array([row[2] for row in rows], dtype=np.int8)
    )
    path = tmp_path / "table.csv"

    write_table(path, table, TERMS)
    read = read_table(path, TERMS)

    assert read.features.tobytes() == table.features.tobytes()
    assert read.labels.tobytes() == table.labels.tobytes()


def test_columns_may_stand_in_any_order_and_blank_lines_do_not_count(tmp_path):
    table = read_table(written(tmp_path, 'died,"dose, mg",age\n\n1,2.5,61\n\n0,,70\n\n'), TERMS)

    np.testing.assert_array_equal(table.features, [[61, 2.5], [70, math.nan]])
    assert table.features.dtype == np.float64
    assert table.labels.tolist() == [1, 0]
    assert table.labels.dtype == np.int8


def test_a_byte_order_mark_and_foreign_line_ends_are_read(tmp_path):
    table = read_table(written(tmp_path, b"\xef\xbb\xbf" + HEADER.replace("\n", "\r\n").encode() + b"1,2,1\r\n"), TERMS)

    assert table.records == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        (HEADER, "there is a header but no row"),
        ('age,"dose, mg"\n1,2\n', "line 1: column 'died' is missing"),
        (f'age,"dose, mg",died,{SECRET}\n', "line 1, column 4: not the name of an agreed column"),
        ('age,"dose, mg",died,age\n', "line 1: column 'age' stands there twice"),
        (f"{HEADER}1,2,0\n{SECRET},2\n", "line 3: expected 3 cells, got 2"),
        (f"{HEADER}1,2,0\n\n1,{SECRET}x,0\n", "line 4, column 'dose, mg': not a number"),
        (f"{HEADER}{SECRET}_000,2,0\n", "line 2, column 'age': not a number"),
        (f"{HEADER}nan,{SECRET},0\n", "line 2, column 'age': not a number"),
        (f"{HEADER}-inf,{SECRET},0\n", "line 2, column 'age': infinite"),
        (f"{HEADER}1e999,{SECRET},0\n", "line 2, column 'age': infinite"),
        (f"{HEADER}1,2,{SECRET}\n", "line 2, column 'died': the label is not 0 or 1"),
        (f"{HEADER}1,2,yes\n", "line 2, column 'died': the label is not 0 or 1"),
        (f"{HEADER}1,2, \n", "line 2, column 'died': the label is missing"),
        (f'{HEADER}1,"{SECRET}\n', "line 2: not a row of a CSV file"),
        (HEADER.encode() + b"1,2,0\n1,\xff,0\n", "line 3: not UTF-8 text"),
    ],
)
def test_a_wrong_file_is_refused_by_place_and_never_by_value(tmp_path, content, message):
    with pytest.raises(DataError) as refusal:
        read_table(written(tmp_path, content), TERMS)

    assert str(refusal.value).startswith("patients.csv")
    assert str(refusal.value).endswith(message)
    assert SECRET not in str(refusal.value)
    assert str(tmp_path) not in str(refusal.value)


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.csv: No such file"):
        read_table(tmp_path / "nowhere.csv", TERMS)


def test_a_directory_is_not_a_table(tmp_path):
    with pytest.raises(DataError, match="Is a directory"):
        read_table(tmp_path, TERMS)


def test_repr_shows_sizes_and_no_patient():
    assert repr(labelled([0, 1, 1])) == "Table(3 records, 2 features)"


def test_features_and_labels_must_have_the_same_rows():
    with pytest.raises(DataError, match="shape"):
        Table(features=np.zeros((3, 2)), labels=np.zeros(2, dtype=np.int8))


@given(
    labels=st.lists(st.integers(0, 1), min_size=2, max_size=60),
    test_fraction=st.floats(0.05, 0.5),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_split_puts_each_row_on_one_side_and_leaves_neither_empty(labels, test_fraction, seed):
    table = labelled(labels)

    training, held_out = split_table(table, test_fraction=test_fraction, seed=seed, site="north")

    assert min(training.records, held_out.records) >= 1
    assert sorted([*training.features[:, 0], *held_out.features[:, 0]]) == table.features[:, 0].tolist()


def test_each_label_is_held_out_by_its_share():
    training, held_out = split_table(labelled([0] * 80 + [1] * 20), test_fraction=0.25, seed=1, site="north")

    assert (held_out.records, int(held_out.labels.sum())) == (25, 5)
    assert (training.records, int(training.labels.sum())) == (75, 15)


def test_a_split_repeats_at_a_site_and_differs_between_sites():
    table = labelled([0, 1] * 30)
    _, held_out = split_table(table, test_fraction=0.25, seed=1, site="north")
    _, again = split_table(table, test_fraction=0.25, seed=1, site="north")
    _, elsewhere = split_table(table, test_fraction=0.25, seed=1, site="south")

    np.testing.assert_array_equal(held_out.features, again.features)
    assert not np.array_equal(held_out.features, elsewhere.features)


def test_one_row_cannot_be_split():
    with pytest.raises(DataError, match="1 rows"):
        split_table(labelled([1]), test_fraction=0.25, seed=1, site="north")
