"""What a service says of a model: one encoding, checked, and records standardised as in training."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from published import LOGISTIC, trained_model

from clients.learning.statistics import Standardisation
from protocol.errors import ConfigurationError, LengthError, MalformedError
from protocol.prediction.description import MAX_DESCRIPTION_BYTES, ModelDescription, check_model_name, parameters_for
from protocol.prediction.parameters import LINEAR
from protocol.terms import ModelTerms


@pytest.fixture
def description():
    return trained_model(3, LOGISTIC).describe("heart")


def test_a_description_comes_back_as_it_was(description):
    again = ModelDescription.from_bytes(description.to_bytes())

    assert again == description
    assert again.digest == description.digest


def test_any_other_encoding_is_refused(description):
    content = json.loads(description.to_bytes())
    for wrong in (
        b"",
        b"[]",
        b"\xff",
        json.dumps(content).encode(),
        json.dumps(content | {"more": 1}, sort_keys=True, separators=(",", ":")).encode(),
        json.dumps(content | {"name": "../x"}, sort_keys=True, separators=(",", ":")).encode(),
        description.to_bytes().replace(b'"mean":[0.0,', b'"mean":[NaN,'),
    ):
        with pytest.raises(MalformedError):
            ModelDescription.from_bytes(wrong)
    with pytest.raises(LengthError):
        ModelDescription.from_bytes(bytes(MAX_DESCRIPTION_BYTES + 1))


@pytest.mark.parametrize(
    "change",
    [
        {"mean": (0.0,)},
        {"deviation": (1.0, 0.0, 1.0)},
        {"deviation": (1.0, -1.0, 1.0)},
        {"form": "secret"},
        {"form": "encrypted"},
        {"key": "11" * 32},
        {"form": "encrypted", "owner": "hospital", "key": "zz" * 32},
        {"form": "encrypted", "owner": "hospital", "key": "11" * 31},
        {"form": "encrypted", "owner": "hospital\x1b[2J", "key": "11" * 32},
        {"weights": "\x1b[2J"},
        {"parameters": "quadratic-8192"},
    ],
)
def test_what_does_not_fit_together_is_refused(description, change):
    with pytest.raises(ConfigurationError):
        replace(description, **change)


@pytest.mark.parametrize("name", ["", "../heart", "Heart", "a/b", "-heart", "a" * 64, "heart.json", "heart\n"])
def test_names_are_safe_in_paths_and_addresses(name):
    with pytest.raises(ConfigurationError):
        check_model_name(name)


def test_records_are_standardised_as_in_training(description):
    mean, deviation = np.array([50.0, 1.0, -3.0]), np.array([9.0, np.inf, 0.25])
    description = replace(description, mean=tuple(mean), deviation=(9.0, None, 0.25))
    features = np.array([[np.nan, 1.0, 2.0], [1e9, -5.0, -3.0], [63.2, 0.0, 1e308]])

    ours = description.standardised(features)

    theirs = Standardisation(mean=mean, deviation=deviation, records=9).apply(features)
    assert np.array_equal(ours, theirs.astype(np.float64))


def test_models_that_no_ciphertext_can_be_put_through_are_refused():
    assert parameters_for(LOGISTIC) is LINEAR
    with pytest.raises(ConfigurationError, match=r"one hidden layer with model\.activation=quadratic"):
        parameters_for(ModelTerms(kind="mlp", hidden=(16,)))


@pytest.mark.parametrize("spread", [np.nan, -np.inf])
def test_a_deviation_that_is_none_is_not_taken_for_an_input_that_is_not_used(spread):
    trained = trained_model(3, LOGISTIC)

    assert replace(trained, deviation=np.array([1.0, np.inf, 1.0])).describe("heart").deviation == (1.0, None, 1.0)
    with pytest.raises(ConfigurationError):
        replace(trained, deviation=np.array([1.0, spread, 1.0])).describe("heart")
