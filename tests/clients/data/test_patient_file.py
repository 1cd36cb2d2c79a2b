"""Patients that are to be scored: rows that break the schema are told of, the others are used."""

from __future__ import annotations

import numpy as np
import pytest

from clients.data.patient_file import read_known_patients, read_patients
from protocol.data_terms import ColumnTerms, DataTerms, LabelTerms
from protocol.errors import DataError

COLUMNS = (
    ColumnTerms(name="age", centre=50, scale=20, minimum=0, maximum=120),
    ColumnTerms(name="dose", centre=0, scale=10),
    ColumnTerms(name="stage", kind="category", categories=("1", "2"), missing=("9",)),
    ColumnTerms(name="remark", kind="ignored"),
)
TERMS = DataTerms(name="ward", columns=COLUMNS, label=LabelTerms(name="outcome"), missing=("?",))
SECRET = "s3cret-98765"
NAN = np.nan


@pytest.fixture
def read(tmp_path):
    def read(*lines, terms=TERMS, reader=read_patients):
        path = tmp_path / "new.csv"
        path.write_bytes("".join(f"{line}\n" for line in lines).encode())
        return reader(path, terms)

    return read


def test_a_table_as_for_training_is_read_and_its_outcome_is_not_looked_at(read):
    patients = read("age,dose,stage,remark,outcome", "61,2,1,fell,1", "70,?,9,,nonsense")

    np.testing.assert_array_equal(patients.features, [[61, 2, 1, 0], [70, NAN, NAN, NAN]])
    assert patients.complaints == ("", "")
    assert patients.ids is None


def test_outcome_and_columns_that_the_model_does_not_use_may_be_missing_and_the_order_is_free(read):
    patients = read("stage,age,dose", "2,61,2")

    np.testing.assert_array_equal(patients.features, [[61, 2, 0, 1]])


def test_a_broken_row_is_told_of_and_the_others_are_used(read):
    patients = read(
        "age,dose,stage",
        "61,2,1",
        f"{SECRET},2,{SECRET}",
        "130,2,1",
        "61,2",
        f"61,{'7' * 300},1",
        "61,5000,1",
        "40,1,2",
    )

    assert patients.usable == [0, 6]
    assert patients.complaints == (
        "",
        "column 'age': not a number; column 'stage': a category that the schema does not know",
        "column 'age': outside 0..120",
        "expected 3 cells, got 2",
        "column 'dose': longer than 200 characters",
        "column 'dose': more than 16 scales from its centre; is it in the right unit?",
        "",
    )
    assert np.isnan(patients.features[1:6]).all()
    np.testing.assert_array_equal(patients.features[[0, 6]], [[61, 2, 1, 0], [40, 1, 0, 1]])
    assert SECRET not in repr(patients) + str(patients.complaints)


@pytest.mark.parametrize("line", [",,,,", "?,,9,fell,1", ",?,,,"])
def test_a_row_without_any_value_is_no_average_patient(read, line):
    patients = read("age,dose,stage,remark,id", "61,2,1,,A", line, ",2,,,B")

    assert patients.complaints == ("", "no value at all", "")
    assert patients.usable == [0, 2]


def test_lines_are_those_of_the_file_blank_ones_counted(read):
    patients = read("age,dose,stage", "61,2,1", "", "", "x,2,1", "40,1,2")

    assert patients.lines == (2, 5, 6)
    assert patients.usable == [0, 2]


@pytest.mark.parametrize("columns", [COLUMNS, (*COLUMNS, ColumnTerms(name="id", kind="ignored"))])
def test_an_id_that_the_model_does_not_use_is_carried(read, columns):
    terms = DataTerms(name="ward", columns=columns, label=LabelTerms(name="outcome"))

    patients = read("id,age,dose,stage", "A-1,61,2,1", "A-2,x,2,1", "A-3", terms=terms)

    assert patients.ids == ("A-1", "A-2", "")
    assert patients.usable == [0]


def test_an_id_that_is_an_input_is_no_id(read):
    terms = DataTerms(name="ward", columns=(ColumnTerms(name="id", centre=0, scale=1),))

    patients = read("id", "3", terms=terms)

    assert patients.ids is None
    np.testing.assert_array_equal(patients.features, [[3]])


@pytest.mark.parametrize("line", ["61,2,1,,0", "61,2,1,"])
def test_a_file_without_a_header_may_lack_the_outcome(read, line):
    terms = DataTerms(name="ward", columns=COLUMNS, header=False)

    np.testing.assert_array_equal(read(line, terms=terms).features, [[61, 2, 1, 0]])


def test_a_row_of_another_length_without_a_header(read):
    terms = DataTerms(name="ward", columns=COLUMNS, header=False)

    assert read("61", terms=terms).complaints == ("expected 4 or 5 cells, got 1",)


@pytest.mark.parametrize(
    ("lines", "what"),
    [
        ((), "no patient"),
        (("age,dose,stage",), "no patient"),
        (("age,stage", "61,1"), "column 'dose' is missing"),
        (("age,dose,stage,age", "61,1,1,61"), "twice"),
        ((f"age,dose,stage,{SECRET}", "61,1,1,61"), "column 4: neither"),
        (("age,dose,stage", '"61,1,1'), "not a row"),
        (("age,dose,stage", "61\0,1,1"), "NUL"),
    ],
)
def test_a_file_that_cannot_be_understood_is_refused_as_a_whole(read, lines, what):
    with pytest.raises(DataError, match=what) as refusal:
        read(*lines)
    assert SECRET not in str(refusal.value)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        read_patients(tmp_path / "none.csv", TERMS)


def test_known_patients_have_their_logit_in_place_of_the_outcome(read):
    features, logits = read("age,dose,stage,remark,logit", "61,2,1,,-1.25", "70,?,9,,0.5", reader=read_known_patients)

    np.testing.assert_array_equal(features, [[61, 2, 1, 0], [70, NAN, NAN, NAN]])
    np.testing.assert_array_equal(logits, [-1.25, 0.5])


@pytest.mark.parametrize("row", [f"61,2,1,,{SECRET}", f"61,{SECRET},1,,1", "61,2,1,,"])
def test_a_known_patient_that_is_not_whole_is_refused(read, row):
    with pytest.raises(DataError, match=r"line 2, column '(dose|logit)'") as refusal:
        read("age,dose,stage,remark,logit", row, reader=read_known_patients)
    assert SECRET not in str(refusal.value)
