"""A hospital's own table: another disease, described in YAML and read from CSV, goes through training unchanged."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from plain_sum import federation

import conf
from clients.data.table_file import encode_table, parse_table_file
from clients.learning.learner import Learner
from clients.simulation import site_tables
from protocol.agreement import SiteId
from protocol.errors import DataError
from protocol.parameters import advise
from protocol.privacy_terms import PrivacyTerms

HERE = Path(__file__).parent
PARAMETERS = advise(sites=3, value_bits=21, values=100).parameters


@pytest.fixture(scope="module")
def experiment():
    written = conf.from_yaml((HERE / "diabetes.yaml").read_text())
    return replace(written, data=replace(written.data, dir=str(HERE)))


@pytest.fixture(scope="module")
def tables(experiment):
    return {name: encode_table(file, experiment.data) for name, file in site_tables(experiment).items()}


def test_the_schema_fixes_the_model_s_inputs(experiment):
    assert [given.name for given in experiment.data.inputs] == [
        "age",
        "sex=m",
        "bmi",
        "activity=low",
        "activity=moderate",
        "activity=high",
        "smoker=yes",
        "glucose",
    ]


def test_every_patient_is_read_as_the_schema_says(experiment, tables):
    assert list(tables) == [SiteId(f"hospital-{number}") for number in (1, 2, 3)]
    assert [table.records for table in tables.values()] == [20, 20, 20]
    assert sum(int(table.labels.sum()) for table in tables.values()) == 26

    first, *_ = parse_table_file((HERE / "diabetes.csv").read_bytes(), "diabetes.csv", experiment.data).rows
    assert first == ["DM-1000", "52", "f", "25.4", "low", "no", "111", "6.3"]


def test_missing_codes_are_missing_in_the_inputs(experiment, tables):
    features = np.concatenate([table.features for table in tables.values()])
    text = (HERE / "diabetes.csv").read_text()

    rows = [line.split(",") for line in text.splitlines()[1:]]
    assert int(np.isnan(features[:, 7]).sum()) == sum(row[2] == "0" for row in rows) > 0
    assert int(np.isnan(features[:, 2]).sum()) == sum(row[7] == "" for row in rows) > 0
    assert int(np.isnan(features[:, 6]).sum()) == sum(row[6] == "n/a" for row in rows) > 0
    assert np.isnan(features[:, 3:6]).any(axis=1).tolist() == np.isnan(features[:, 3:6]).all(axis=1).tolist()


def test_three_clinics_learn_from_it(experiment, tables):
    terms = replace(experiment.terms, privacy=PrivacyTerms(smallest_cell=1))  # five held-out patients at each
    learners = [Learner(terms=terms, parameters=PARAMETERS, table=table, site=name) for name, table in tables.items()]

    states, _ = federation(learners, rounds=1)

    last = states[0][-1]
    assert last.federated.training_loss < math.log(2)
    assert last.federated.auc > 0.7
    assert len({history[-1].shared_digest() for history in states}) == 1


def test_a_table_of_another_schema_is_refused(experiment):
    with pytest.raises(DataError, match="line 1, column 1: not the name of an agreed column"):
        parse_table_file(b"patient_id,age\n7,50\n", "foreign.csv", experiment.data)
