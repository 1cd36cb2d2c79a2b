"""The four hospitals' published files, read through their schema: the facts that every result rests on."""

from __future__ import annotations

import numpy as np
import pytest

import conf
from clients.data.public_data import find_files, load_hospitals
from clients.data.table_file import encode_table

EXPERIMENT = conf.compose(["experiment=heart_disease"])
INPUTS = [given.name for given in EXPERIMENT.data.inputs]


@pytest.fixture(scope="module")
def files():
    """The published files, wherever the product finds them; without them these tests fail."""
    return {path.name: path for path in find_files(EXPERIMENT.data)}


@pytest.fixture(scope="module")
def tables(files):
    return {name: encode_table(file, EXPERIMENT.data) for name, file in load_hospitals(EXPERIMENT.data).items()}


def column(table, name):
    """Return a column's first input, which is missing where the column is."""
    return table.features[:, next(at for at, given in enumerate(EXPERIMENT.data.inputs) if given.column == name)]


def test_the_inputs_are_the_recipe_s_twenty():
    numbers = ["age", "trestbps", "chol", "thalach", "oldpeak", "ca"]
    codes = {"sex": (1,), "fbs": (1,), "exang": (1,), "cp": (1, 2, 3), "restecg": (1, 2), "slope": (1, 2, 3)}
    codes["thal"] = (3, 6, 7)

    assert set(INPUTS) == {*numbers, *(f"{name}={code}" for name, chosen in codes.items() for code in chosen)}
    assert len(INPUTS) == 20


@pytest.mark.parametrize(
    ("hospital", "rows", "positive"),
    [("cleveland", 303, 45.9), ("hungarian", 294, 36.1), ("switzerland", 123, 93.5), ("va", 200, 74.5)],
)
def test_each_hospital_has_its_known_patients(tables, hospital, rows, positive):
    assert tables[hospital].records == rows
    assert round(100 * tables[hospital].labels.mean(), 1) == positive


@pytest.mark.parametrize(
    ("hospital", "missing"),
    [
        ("cleveland", {"trestbps": 0, "chol": 0, "fbs": 0, "thalach": 0, "exang": 0, "oldpeak": 0, "slope": 0}),
        ("cleveland", {"ca": 1.3, "thal": 0.7}),
        ("hungarian", {"trestbps": 0.3, "chol": 7.8, "fbs": 2.7, "thalach": 0.3, "exang": 0.3, "oldpeak": 0}),
        ("hungarian", {"slope": 65, "ca": 99, "thal": 90}),
        ("switzerland", {"trestbps": 1.6, "chol": 100, "fbs": 61, "thalach": 0.8, "exang": 0.8, "oldpeak": 4.9}),
        ("switzerland", {"slope": 14, "ca": 96, "thal": 42}),
        # trestbps and chol: with the zeros, 1 and 49, which are no measurements
        ("va", {"trestbps": 28.5, "chol": 28, "fbs": 3.5, "thalach": 26.5, "exang": 26.5, "oldpeak": 28}),
        ("va", {"slope": 51, "ca": 99, "thal": 83}),
    ],
)
def test_each_hospital_lacks_what_it_is_known_to_lack(tables, hospital, missing):
    found = {name: 100 * np.isnan(column(tables[hospital], name)).mean() for name in missing}

    assert found == {name: pytest.approx(share, abs=0.5 if share > 10 else 0.05) for name, share in missing.items()}


def test_age_sex_and_chest_pain_are_known_of_everybody(tables):
    for name in ("age", "sex", "cp"):
        assert not any(np.isnan(column(table, name)).any() for table in tables.values())


@pytest.mark.parametrize(("name", "at"), [("chol", 4), ("trestbps", 3)])
def test_zeros_that_no_living_patient_has_are_missing(files, tables, name, at):
    zeros = [
        float(line.split(",")[at]) == 0
        for path in files.values()
        for line in path.read_text().splitlines()
        if line.split(",")[at] != "?"
    ]

    assert sum(zeros) == {"chol": 172, "trestbps": 1}[name]
    assert all(np.nanmin(column(table, name), initial=999) > 40 for table in tables.values())


def test_a_negative_st_depression_is_a_value(tables):
    depression = np.concatenate([column(table, "oldpeak") for table in tables.values()])

    assert np.nanmin(depression) == -2.6
    assert int((depression < 0).sum()) == 12


def test_ca_was_measured_in_so_few_patients_outside_cleveland_that_only_totals_may_be_known(tables):
    measured = {name: int((~np.isnan(column(table, "ca"))).sum()) for name, table in tables.items()}

    assert measured == {"cleveland": 299, "hungarian": 3, "switzerland": 5, "va": 2}


def test_categories_are_one_input_each_and_exclude_each_other(tables):
    for table in tables.values():
        for name, has_reference in (("cp", True), ("restecg", True), ("slope", False), ("thal", False)):
            places = [at for at, given in enumerate(EXPERIMENT.data.inputs) if given.column == name]
            sums = table.features[:, places].sum(axis=1)
            assert set(sums[~np.isnan(sums)]) <= ({0.0, 1.0} if has_reference else {1.0})


def test_hardly_a_patient_stands_there_twice(tables):
    assert {name: table.repeated for name, table in tables.items()} == {
        "cleveland": 0,
        "hungarian": 1,
        "switzerland": 0,
        "va": 1,
    }
