"""Try a model under encryption before it is published: known records, whose scores in plaintext are known.

Trust: runs where the model is in plaintext: at the provider for a plain one, with a key that is thrown away; at the
hospital for an encrypted one, with its own.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from clients.prediction.encrypted_model import reader_bias
from clients.prediction.keys import PredictionKey
from clients.prediction.records import encrypt_records, read_logits
from protocol.errors import ConfigurationError
from protocol.prediction.description import ModelDescription
from protocol.prediction.messages import Answer, key_id
from protocol.prediction.model_file import TrainedModel
from protocol.prediction.parameters import RECORD_RANGE
from server.prediction.evaluation import Model, answer_with, encrypted_model, plain_model_of

Records = npt.NDArray[np.float64]
"""Standardised, shape (n, d); or values of theirs."""

_RANDOM_PATIENTS = 200
_SEED = 16


def check_plain_model(description: ModelDescription, model: TrainedModel) -> float:
    """Try a plain model under a key that nobody keeps.

    Returns:
        The largest error of a logit, at most the parameters' tolerance.

    Raises:
        ConfigurationError: An error is larger.
    """
    key = PredictionKey.draw(description.parameter_set)
    public_key = key.public_key().to_bytes(description.parameter_set)
    published = plain_model_of(description, model.tensors)
    return _check(description, model, published, key, public_key=public_key, bias=0.0)


def check_encrypted_model(
    description: ModelDescription, model: TrainedModel, weights: bytes, key: PredictionKey, public_key: bytes
) -> float:
    """Try an encrypted model under its owner's key.

    Args:
        description: Of the encrypted model.
        model: The same model in plaintext, with all its tensors.
        weights: Its file for the service.
        key: The owner's.
        public_key: Its public half, as the service knows it.

    Returns:
        The largest error of a logit, at most the parameters' tolerance.

    Raises:
        ConfigurationError: An error is larger.
    """
    if hashlib.sha256(weights).hexdigest() != description.weights:
        raise ConfigurationError("the encrypted model is not the one that its description tells of")
    bias = reader_bias(description, model.tensors)
    published = encrypted_model(description, weights)
    return _check(description, model, published, key, public_key=public_key, bias=bias)


def _check(
    description: ModelDescription,
    model: TrainedModel,
    published: Model,
    key: PredictionKey,
    *,
    public_key: bytes,
    bias: float,
) -> float:
    records = _known_records(model)
    query = encrypt_records(records, description, key, key_id(public_key))
    data = answer_with(published, description, public_key, query.to_bytes(description))
    answer = Answer.from_bytes(data, description, query.header)
    scores = read_logits(answer, description, key) + bias
    error = float(np.abs(scores - model.logits(records)).max())
    tolerance = description.parameter_set.tolerance
    if not error <= tolerance:
        raise ConfigurationError(
            f"encrypted scores are up to {error:.1e} off, where {tolerance:.0e} is promised: its weights are too large "
            "for standardised records; train it with weight decay"
        )
    return error


def _known_records(model: TrainedModel) -> Records:
    """Return random records, and the most extreme ones: every input at its limit, with the sign of its weight."""
    inputs = len(model.mean)
    layer = "hidden.0.weight" if model.model.hidden else "output.weight"
    corners = RECORD_RANGE * np.sign(model.tensors[layer])
    random = np.random.default_rng(_SEED).normal(scale=3.0, size=(_RANDOM_PATIENTS, inputs))
    records = np.concatenate([corners, -corners, np.zeros((1, inputs)), random])
    return np.asarray(np.clip(records, -RECORD_RANGE, RECORD_RANGE))
