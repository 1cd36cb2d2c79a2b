from __future__ import annotations

import math
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.data import table_file
from clients.data.table_file import (
    MAX_CELL_CHARACTERS,
    MAX_REPORTED,
    TableFile,
    encode_table,
    parse_table_file,
    read_table,
    read_table_file,
)
from protocol.data_terms import ColumnTerms, DataTerms, LabelTerms
from protocol.errors import DataError

TERMS = DataTerms(
    name="ward",
    columns=(
        ColumnTerms(name="age", centre=50, scale=20, minimum=0, maximum=120),
        ColumnTerms(name="dose, mg", centre=0, scale=100, missing=("0",)),
        ColumnTerms(name="smoker", kind="category", categories=("no", "yes"), reference="no"),
        ColumnTerms(name="stage", kind="category", categories=("1", "2", "3"), missing=("unknown", "9")),
        ColumnTerms(name="remark", kind="ignored"),
    ),
    label=LabelTerms(name="outcome", negative=("0", "well"), positive=("1", "2", "ill")),
    missing=("?", "-9"),
)
HEADER = 'age,"dose, mg",smoker,stage,remark,outcome\n'
INPUTS = ["age", "dose, mg", "smoker=yes", "stage=1", "stage=2", "stage=3"]
NAN = math.nan
SECRET = "s3cret-98765"


def read(*rows, header=HEADER, terms=TERMS):
    content = header + "".join(f"{row}\n" for row in rows)
    return encode_table(parse_table_file(content.encode(), "ward.csv", terms), terms)


def complaint(content, terms=TERMS):
    with pytest.raises(DataError) as refusal:
        encode_table(parse_table_file(content, "ward.csv", terms), terms)
    return str(refusal.value)


# --- What a table means -------------------------------------------------------------------------------------------


def test_a_row_becomes_the_inputs_that_the_schema_names():
    table = read("61,2.5,yes,2,fell ill on holiday,1", "70,1e-1,no,3,,0")

    assert [given.name for given in TERMS.inputs] == INPUTS
    np.testing.assert_array_equal(table.features, [[61, 2.5, 1, 0, 1, 0], [70, 0.1, 0, 0, 0, 1]])
    assert (table.features.dtype, table.labels.dtype) == (np.float64, np.int8)
    assert table.labels.tolist() == [1, 0]


def test_columns_may_stand_in_any_order_if_a_header_names_them():
    table = read("well,,2.0,yes,2.5,61", header='outcome,remark,stage,smoker,"dose, mg",age\n')

    np.testing.assert_array_equal(table.features, [[61, 2.5, 1, 0, 1, 0]])
    assert table.labels.tolist() == [0]


def test_without_a_header_columns_stand_as_in_the_schema_and_the_label_last():
    bare = DataTerms(
        name="ward",
        columns=(ColumnTerms(name="age", centre=50, scale=20), ColumnTerms(name="id", kind="ignored")),
        header=False,
    )
    table = read("61,x,1", "70,y,0", header="", terms=bare)

    np.testing.assert_array_equal(table.features, [[61], [70]])
    assert table.labels.tolist() == [1, 0]


@pytest.mark.parametrize("stage", ["2", "2.0", "2.00", "02", " 2 ", "2e0", "+2"])
def test_a_category_that_is_a_number_is_matched_by_value(stage):
    np.testing.assert_array_equal(read(f"61,1,no,{stage},,0").features[0, 3:], [0, 1, 0])


@pytest.mark.parametrize("missing", ["", " ", "?", "-9", "-9.0", "unknown", "9", "9.0"])
def test_a_missing_category_is_missing_in_each_of_its_inputs(missing):
    np.testing.assert_array_equal(read(f"61,1,no,{missing},,0").features[0], [61, 1, 0, NAN, NAN, NAN])


@pytest.mark.parametrize("missing", ["", "  ", "?", "-9", "-9.0", "0", "0.0", "-0", "0e5"])
def test_a_missing_number_is_recognised_by_text_or_value_and_outside_every_range(missing):
    np.testing.assert_array_equal(read(f"61,{missing},no,1,,0").features[0, :2], [61, NAN])


def test_a_column_s_own_missing_codes_are_values_in_other_columns():
    table = read("0,?,yes,9,,0", "9,1,?,1,?,0")

    np.testing.assert_array_equal(table.features, [[0, NAN, 1, NAN, NAN, NAN], [9, 1, NAN, 1, 0, 0]])


@pytest.mark.parametrize("code", ["1", "2", "1.0", "ill", " ill "])
def test_every_positive_code_is_the_outcome(code):
    assert read(f"61,1,no,1,,{code}", "61,1,no,1,,well", "61,1,no,1,,0").labels.tolist() == [1, 0, 0]


@pytest.mark.parametrize(("value", "label"), [("6.5", 0), ("6.50001", 1), ("-3", 0), ("100", 1)])
def test_an_outcome_can_be_a_number_above_a_limit(value, label):
    terms = DataTerms(
        name="lab",
        columns=(ColumnTerms(name="age", centre=50, scale=20),),
        label=LabelTerms(name="hba1c", positive_above=6.5),
    )

    assert read(f"50,{value}", header="age,hba1c\n", terms=terms).labels.tolist() == [label]


@pytest.mark.parametrize("edge", ["0", "120", "120.0"])
def test_the_limits_of_a_range_are_within_it(edge):
    assert read(f"{edge},1,no,1,,0").features[0, 0] == float(edge)


# --- What a CSV file may look like --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        "age,label\n61,1\n70,0\n",
        "age,label\n61,1\n70,0",
        "age,label\r\n61,1\r\n70,0\r\n",
        "\ufeffage,label\n61,1\n70,0\n",
        '"age","label"\n"61","1"\n"70","0"\n',
        "age,label\n\n61,1\n\n\n70,0\n\n",
        "age,label\n 61 ,1\t\n70, 0\n",
    ],
)
def test_a_file_is_read_however_a_program_may_have_written_it(content):
    terms = DataTerms(name="ward", columns=(ColumnTerms(name="age", centre=50, scale=20),))
    table = encode_table(parse_table_file(content.encode(), "ward.csv", terms), terms)

    np.testing.assert_array_equal(table.features, [[61], [70]])
    assert table.labels.tolist() == [1, 0]


def test_a_quoted_cell_may_hold_commas_and_quotes():
    file = parse_table_file((HEADER + '61,1,no,1,"said ""no"", left",0\n').encode(), "ward.csv", TERMS)

    assert file.rows[0][4] == 'said "no", left'


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_a_quote_that_swallows_the_rows_after_it_is_refused(ending):
    rows = ['61,1,no,1,"from,0', '70,1,yes,2,to",1', "80,1,no,3,,0"]
    content = HEADER + "".join(row + ending for row in rows)

    with pytest.raises(DataError, match=r"^ward\.csv, line \d: a quoted cell goes over several lines$"):
        parse_table_file(content.encode(), "ward.csv", TERMS)


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\n"), max_size=12)


@given(rows=st.lists(st.lists(texts, min_size=6, max_size=6), min_size=1, max_size=6))
def test_written_rows_are_read_back(rows):
    file = TableFile(name="ward.csv", rows=rows, lines=list(range(len(rows))))

    again = parse_table_file(file.to_bytes(TERMS), "ward.csv", TERMS)

    assert again.rows == rows
    assert parse_table_file(again.to_bytes(TERMS), "ward.csv", TERMS).rows == rows


def test_chosen_rows_keep_their_lines():
    file = parse_table_file((HEADER + "1,1,no,1,a,0\n\n2,1,no,1,b,0\n3,1,no,1,c,0\n").encode(), "ward.csv", TERMS)

    chosen = file.chosen([2, 1])

    assert [row[4] for row in chosen.rows] == ["c", "b"]
    assert chosen.lines == [5, 4]


# --- What is refused, by place and never by value -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("cells", "where"),
    [
        (f"{SECRET},1,no,1,,0", "column 'age': not a number"),
        ("1_000,1,no,1,,0", "column 'age': not a number"),
        ("inf,1,no,1,,0", "column 'age': not a number"),
        ("-Infinity,1,no,1,,0", "column 'age': not a number"),
        ("1e999,1,no,1,,0", "column 'age': not a number"),
        ("nan,1,no,1,,0", "column 'age': not a number"),
        ('"6,1",1,no,1,,0', "column 'age': not a number"),
        ("0x10,1,no,1,,0", "column 'age': not a number"),
        ("121,1,no,1,,0", "column 'age': outside 0..120"),
        ("-0.001,1,no,1,,0", "column 'age': outside 0..120"),
        ("61,unknown,no,1,,0", "column 'dose, mg': not a number"),
        (f"61,1,{SECRET},1,,0", "column 'smoker': a category that the schema does not know"),
        ("61,1,Yes,1,,0", "column 'smoker': a category that the schema does not know"),
        ("61,1,1,1,,0", "column 'smoker': a category that the schema does not know"),
        ("61,1,no,1.5,,0", "column 'stage': a category that the schema does not know"),
        (f"61,1,no,1,,{SECRET}", "column 'outcome': an outcome that the schema does not know"),
        ("61,1,no,1,,3", "column 'outcome': an outcome that the schema does not know"),
        ("61,1,no,1,,?", "column 'outcome': the label is missing"),
        ("61,1,no,1,,", "column 'outcome': the label is missing"),
        ("61,1,no,1,, ", "column 'outcome': the label is missing"),
        (f"61,1,{SECRET}{'x' * MAX_CELL_CHARACTERS},1,,0", "column 'smoker': longer than 200 characters"),
    ],
)
def test_a_cell_that_breaks_the_schema_is_named_by_line_and_column(cells, where):
    content = f"{HEADER}50,1,no,1,,0\n\n{cells}\n51,1,no,1,,0\n"

    assert complaint(content.encode()) == f"ward.csv, line 4, {where}"


@pytest.mark.parametrize("value", ["", "?", "nan", "high", "inf"])
def test_an_outcome_that_is_no_number_is_no_outcome_above_a_limit(value):
    terms = DataTerms(
        name="lab", columns=(ColumnTerms(name="age", centre=50, scale=20),), label=LabelTerms(positive_above=6.5)
    )

    assert "ward.csv, line 2, column 'label'" in complaint(f"age,label\n50,{value}\n".encode(), terms)


def test_the_first_broken_cells_are_named_in_the_file_s_order_and_the_rest_counted():
    rows = [f"61,{SECRET},no,1,,0", f"{SECRET},1,no,{SECRET},,0", *["61,1,no,1,,maybe"] * 5]

    assert complaint((HEADER + "\n".join(rows)).encode()) == (
        "ward.csv, line 2, column 'dose, mg': not a number; "
        "line 3, column 'age': not a number; "
        "line 3, column 'stage': a category that the schema does not know; "
        "line 4, column 'outcome': an outcome that the schema does not know; "
        "line 5, column 'outcome': an outcome that the schema does not know; "
        f"and {8 - MAX_REPORTED} more"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "ward.csv: the file is empty"),
        (b"\xef\xbb\xbf\n\r\n\n", "ward.csv: the file is empty"),
        (HEADER.encode(), "ward.csv: there is a header but no row"),
        (HEADER.encode() + b"1,2,no,1,,0\n1,2\n", "ward.csv, line 3: expected 6 cells, got 2"),
        (HEADER.encode() + b"1,2,no,1,,0,7\n", "ward.csv, line 2: expected 6 cells, got 7"),
        (HEADER.encode() + b"1;2;no;1;;0\n", "ward.csv, line 2: expected 6 cells, got 1"),
        (HEADER.encode() + b"   \n", "ward.csv, line 2: expected 6 cells, got 1"),
        (b'age,"dose, mg",smoker,stage,remark\n', "ward.csv, line 1: column 'outcome' is missing"),
        (b'age,"dose, mg",smoker,stage,outcome\n', "ward.csv, line 1: column 'remark' is missing"),
        (b"age,s3cret-98765\n", "ward.csv, line 1, column 2: not the name of an agreed column"),
        (b"61,1,no,1,,0\n", "ward.csv, line 1, column 1: not the name of an agreed column"),
        (b"age,age\n", "ward.csv, line 1: column 'age' stands there twice"),
        (b"\n\nage,age\n", "ward.csv, line 3: column 'age' stands there twice"),
        (HEADER.encode() + b'1,"s3cret-98765\n', "ward.csv, line 2: not a row of a CSV file"),
        (HEADER.encode() + b'1,"s3cret"-98765,no,1,,0\n', "ward.csv, line 2: not a row of a CSV file"),
        (HEADER.encode() + b"1,2,no,1,\xff,0\n", "ward.csv, line 2: not UTF-8 text"),
        (HEADER.encode() + "1,2,no,1,Zürich,0\n".encode("latin-1"), "ward.csv, line 2: not UTF-8 text"),
        (HEADER.encode("utf-16"), "ward.csv, line 1: not UTF-8 text"),
        (HEADER.encode() + b"1,2,no,1,,0\n1\0,2,no,1,,0\n", "ward.csv, line 3: holds a NUL byte"),
        (HEADER.encode() + b"1,2,no,1,\0,0\n", "ward.csv, line 2: holds a NUL byte"),
        (HEADER.encode() + b"1,2,no,1," + b"x" * 200_000 + b",0\n", "ward.csv, line 2: not a row of a CSV file"),
    ],
)
def test_a_file_that_is_no_such_table_is_refused_by_line(content, message):
    assert complaint(content) == message


headers = st.permutations(["age", "dose, mg", "smoker", "stage", "remark", "outcome"])


@given(
    rows=st.integers(1, 6),
    broken=st.integers(0, 5),
    column=st.sampled_from(["age", "dose, mg", "smoker", "stage", "outcome"]),
    cell=st.sampled_from(
        [SECRET, f"{SECRET},{SECRET}", f'"{SECRET}', f"{SECRET}\n{SECRET}", SECRET * 50, f"{SECRET}\0"]
    ),
    quoted=st.booleans(),
    order=headers,
)
@settings(max_examples=200)
def test_no_complaint_ever_holds_a_patient_s_value(rows, broken, column, cell, quoted, order):
    good = {"age": "61", "dose, mg": "1", "smoker": "no", "stage": "1", "remark": SECRET, "outcome": "0"}
    bad = good | {column: '"' + cell.replace('"', '""') + '"' if quoted else cell}
    lines = [",".join((bad if row == min(broken, rows - 1) else good)[name] for name in order) for row in range(rows)]
    header = ",".join(f'"{name}"' for name in order)

    message = complaint("\n".join([header, *lines]).encode())

    assert message.startswith("ward.csv, line ")
    assert not any(part in message for part in ("s3cret", "98765"))


@given(content=st.binary(max_size=200))
@settings(max_examples=200)
def test_no_bytes_whatever_raise_anything_else(content):
    with suppress(DataError):
        encode_table(parse_table_file(HEADER.encode() + content, "ward.csv", TERMS), TERMS)


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(DataError) as refusal:
        read_table(tmp_path / "nowhere.csv", TERMS)

    assert str(refusal.value) == "nowhere.csv: No such file or directory"


def test_a_directory_is_no_table(tmp_path):
    with pytest.raises(DataError, match="Is a directory"):
        read_table_file(tmp_path, TERMS)


def test_a_file_too_large_for_memory_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(table_file, "MAX_TABLE_BYTES", 10)
    path = tmp_path / "ward.csv"
    path.write_text(HEADER)

    with pytest.raises(DataError, match=r"ward\.csv: larger than 10 bytes"):
        read_table_file(path, TERMS)


def test_the_file_is_named_without_the_directory_it_lies_in(tmp_path):
    path = tmp_path / "patients.csv"
    path.write_text(HEADER + "61,1,no,1,,maybe\n")

    with pytest.raises(DataError, match=r"^patients\.csv, line 2, column 'outcome'"):
        read_table(path, TERMS)


def test_repr_shows_no_patient():
    file = TableFile(name="ward.csv", rows=[["61", SECRET]], lines=[2])

    assert SECRET not in repr(file)
