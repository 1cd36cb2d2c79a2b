"""A trained model's file: what was written comes back, and nothing else is a model."""

from __future__ import annotations

import json

import numpy as np
import pytest
from published import LOGISTIC, NETWORK, trained_model
from safetensors.numpy import load, save

from protocol.errors import ConfigurationError
from protocol.prediction.model_file import MODEL_FORMAT, TrainedModel, model_file
from protocol.terms import Terms


def file_of(terms=LOGISTIC, **extra):
    trained = trained_model(3, terms)
    return model_file(
        Terms(data=trained.data, model=terms),
        {**trained.tensors, **extra},
        mean=trained.mean,
        deviation=np.array([1.0, np.inf, 2.0]),
    )


@pytest.mark.parametrize("terms", [LOGISTIC, NETWORK])
def test_a_model_comes_back_as_it_was(terms):
    model, trained = TrainedModel.from_bytes(file_of(terms)), trained_model(3, terms)

    assert model.model == terms
    assert model.data == trained.data
    assert {name: tensor.tolist() for name, tensor in model.tensors.items()} == {
        name: tensor.tolist() for name, tensor in trained.tensors.items()
    }
    assert model.describe("heart").deviation == (1.0, None, 2.0)


def test_a_tensor_that_the_architecture_does_not_have_is_refused():
    with pytest.raises(ConfigurationError, match="does not have"):
        TrainedModel.from_bytes(file_of(patients=np.zeros(9)))


def test_tensors_of_another_shape_or_type_are_refused():
    for wrong in (np.zeros((1, 4)), np.zeros((1, 3), dtype=np.float32)):
        with pytest.raises(ConfigurationError, match=r"no float64 tensor output\.weight"):
            TrainedModel.from_bytes(file_of(**{"output.weight": wrong}))


def test_what_is_no_model_s_file_is_refused():
    data = file_of()
    for wrong in (b"", b"\xff" * 40, data[:-8], save(load(data)), save(load(data), {MODEL_FORMAT: "{}"})):
        with pytest.raises(ConfigurationError, match="no model's file"):
            TrainedModel.from_bytes(wrong)


def test_inputs_that_are_not_the_table_s_are_refused():
    data = file_of()
    length = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + length])["__metadata__"]
    purpose = json.loads(metadata[MODEL_FORMAT])
    purpose["inputs"][0] = "another"

    with pytest.raises(ConfigurationError, match="other inputs"):
        TrainedModel.from_bytes(save(load(data), {MODEL_FORMAT: json.dumps(purpose)}))
