"""Encrypt a model's weights under its owner's key, for a service that is to see neither model nor records.

Trust: site only.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from clients.prediction.keys import PredictionKey
from protocol.prediction.backend import prediction_backend
from protocol.prediction.description import ModelDescription
from protocol.prediction.messages import EncryptedModel

Values = npt.NDArray[np.float64]


def encrypt_weights(
    description: ModelDescription, tensors: Mapping[str, Values], key: PredictionKey, key_id: bytes
) -> bytes:
    """Encrypt all weights but the last bias, each in a ciphertext of its own.

    Args:
        description: Architecture and parameters; the rest is not looked at.
        tensors: All tensors of the model.
        key: The owner's.
        key_id: Id of the public key.
    """
    parameters = description.parameter_set
    backend, primes = prediction_backend(parameters), len(parameters.primes)
    plaintexts = [backend.encode_scalar(value, primes) for value in _scaled(description, tensors)]
    first, seeds = zip(*map(key.encrypt, plaintexts), strict=True)
    return EncryptedModel(polynomials=np.stack(first)[:, np.newaxis], seeds=seeds).to_bytes(parameters, key_id)


def reader_bias(description: ModelDescription, tensors: Mapping[str, Values]) -> float:
    """Return what the reader of an encrypted model's answers adds to each score."""
    bias = float(tensors["output.bias"][0])
    if description.parameter_set.is_linear:
        return bias
    return bias - float(tensors["output.weight"].sum()) / 4


def _scaled(description: ModelDescription, tensors: Mapping[str, Values]) -> Values:
    parameters = description.parameter_set
    scale = 2.0**parameters.weight_bits
    outputs: Values = tensors["output.weight"][0]
    if parameters.is_linear:
        return outputs * scale
    return np.concatenate(
        [
            tensors["hidden.0.weight"].reshape(-1) * scale,
            (tensors["hidden.0.bias"] + 2) * scale,
            outputs / 8 * 2.0**parameters.output_bits,
        ]
    )
