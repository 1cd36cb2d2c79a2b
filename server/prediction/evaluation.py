"""Answer queries: evaluate a model, plain or encrypted, on encrypted records.

Trust: runs at the provider, in worker processes. It has no secret key: what it computes only the key's owner can read.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from protocol.errors import ConfigurationError, MalformedError, ParametersMismatchError
from protocol.prediction.backend import prediction_backend
from protocol.prediction.description import ModelDescription
from protocol.prediction.messages import Answer, EncryptedModel, PublicKey, Query, key_id, weight_count
from protocol.prediction.model_file import Tensors, TrainedModel
from protocol.prediction.parameters import PredictionParameters
from protocol.prediction.publication import Publication
from server.prediction.ciphertexts import WORD_BYTES
from server.prediction.encrypted_models import EncryptedLinearModel, EncryptedQuadraticModel
from server.prediction.kept import Kept
from server.prediction.plain_models import PlainLinearModel, PlainQuadraticModel
from server.prediction.treatment import treat

if TYPE_CHECKING:
    from protocol.prediction.backend import Ciphertext

DESCRIPTION_FILE: Final = "description.json"
PLAIN_FILE: Final = "model.safetensors"
ENCRYPTED_FILE: Final = "model.cwm"

_KEPT_BYTES: Final = 192 << 20
"""Of models in a worker: two encrypted networks of 20 inputs and 16 hidden units, or one of the largest."""

PlainModel = PlainLinearModel | PlainQuadraticModel
Model = PlainModel | EncryptedLinearModel | EncryptedQuadraticModel

_MODELS: Final = Kept[tuple[Path, bytes], Model](_KEPT_BYTES)


def answer_query(*, model: Path, key: Path, query: bytes) -> bytes:
    """Answer one query.

    Args:
        model: The model's directory in the store.
        key: File of the public key that the query names, checked when it was stored.
        query: From outside.

    Raises:
        ProtocolError: What was asked is no query for this model, or the model or the key is there no more.
    """
    try:
        description = ModelDescription.from_bytes((model / DESCRIPTION_FILE).read_bytes())
        return answer_with(_model(model, description), description, key.read_bytes(), query)
    except FileNotFoundError:
        raise ParametersMismatchError(
            "query", expected="one to a model and key that are there", got="another"
        ) from None


def answer_with(model: Model, description: ModelDescription, public_key: bytes, data: bytes) -> bytes:
    """Answer one query with a model.

    Args:
        model: The model.
        description: Its description.
        public_key: What answers are re-randomised with; also names the key that the query has to be under.
        data: The query, from outside.

    Raises:
        ProtocolError: It is no query for this model and key.
    """
    query = Query.from_bytes(data, description)
    if query.header.key != key_id(public_key) or (description.key and description.key != query.header.key.hex()):
        raise ParametersMismatchError("key of a query", expected="the registered one", got="another")
    parameters = description.parameter_set
    backend = prediction_backend(parameters)
    scores = _evaluated(model, query)
    if not description.is_encrypted:
        scores = treat(scores, description, _public_key(public_key, parameters), patients=query.header.patients)
    backend.drop(scores, len(parameters.sum_primes) - parameters.answer_primes)
    polynomials = backend.save(scores, polynomials=description.answer_polynomials, primes=parameters.answer_primes)
    return Answer(query=query.header, polynomials=polynomials[np.newaxis]).to_bytes(description)


def _evaluated(model: Model, query: Query) -> Ciphertext:
    try:
        return model.evaluate(query)
    except RuntimeError as error:
        if "transparent" not in str(error):
            raise
        # SEAL computes with no ciphertext whose second polynomial is zero; nobody encrypts to such a one
        raise MalformedError("query", expected="ciphertexts", got="plaintexts") from None


def check_public_key(data: bytes) -> None:
    """Raise unless a client may register this public key.

    Raises:
        ProtocolError: It is none.
    """
    PublicKey.from_bytes(data, PublicKey.parameters_of(data))


def read_publication(data: bytes) -> Publication:
    """Return a client's encrypted model, if its weights are those that its description tells of.

    Raises:
        ProtocolError: They are not, or it is no publication.
    """
    publication = Publication.from_bytes(data)
    EncryptedModel.from_bytes(publication.weights, publication.description)
    if hashlib.sha256(publication.weights).hexdigest() != publication.description.weights:
        raise ParametersMismatchError("encrypted model", expected="the described one", got="another")
    return publication


def plain_model(description: ModelDescription, data: bytes) -> PlainModel:
    """Return a plain model from its file.

    Args:
        description: Of the model.
        data: Its shared tensors, float64 safetensors.

    Raises:
        ConfigurationError: It is another file, or its scores do not fit the parameters.
    """
    model = TrainedModel.from_bytes(data)
    if model.digest != description.weights:
        raise ConfigurationError("the model's file is not the one that its description tells of")
    return plain_model_of(description, model.tensors)


def prepare_plain_model(name: str, data: bytes) -> ModelDescription:
    """Describe a plain model that is to be published, after trying whether it can be evaluated.

    Args:
        name: At the service.
        data: Its file, without personal tensors.

    Raises:
        ConfigurationError: It is no model's file, holds a personal tensor, or cannot be evaluated under encryption.
    """
    model = TrainedModel.from_bytes(data)
    if model.is_personal:
        raise ConfigurationError(
            "the file holds a tensor that is a site's own; publish the one that `site release-model` wrote"
        )
    description = model.describe(name)
    plain_model_of(description, model.tensors)
    return description


def plain_model_of(description: ModelDescription, tensors: Tensors) -> PlainModel:
    """Return a plain model of its shared tensors.

    Raises:
        ConfigurationError: A weight is not finite, or its scores do not fit the parameters.
    """
    if not all(np.isfinite(tensor).all() for tensor in tensors.values()):
        raise ConfigurationError("the model has a weight that is not a number")
    bias = float(tensors["output.bias"][0]) if "output.bias" not in description.model.personal else 0.0
    if description.parameter_set.is_linear:
        return PlainLinearModel(description.parameter_set, tensors["output.weight"][0], bias)
    return PlainQuadraticModel(
        description.parameter_set,
        hidden_weights=tensors["hidden.0.weight"],
        hidden_biases=tensors["hidden.0.bias"],
        output_weights=tensors["output.weight"][0],
        output_bias=bias,
    )


def encrypted_model(description: ModelDescription, data: bytes) -> EncryptedLinearModel | EncryptedQuadraticModel:
    """Return an encrypted model from its file.

    Raises:
        ProtocolError: It is not the one that its description tells of.
    """
    weights = EncryptedModel.from_bytes(data, description)
    parameters = description.parameter_set
    if parameters.is_linear:
        return EncryptedLinearModel(parameters, weights)
    return EncryptedQuadraticModel(parameters, weights, description.inputs, *description.model.hidden)


def _model(directory: Path, description: ModelDescription) -> Model:
    digest, parameters = description.digest, description.parameter_set
    size = weight_count(description) * len(parameters.primes) * parameters.ring_degree * WORD_BYTES
    return _MODELS.get((directory, digest), partial(_read_model, directory, digest), size)


def _read_model(directory: Path, digest: bytes) -> Model:
    description = ModelDescription.from_bytes((directory / DESCRIPTION_FILE).read_bytes())
    if description.digest != digest:  # replaced in this moment; it would be kept under the other one's digest
        raise ParametersMismatchError("model of a query", expected=digest.hex(), got=description.digest.hex())
    weights = (directory / (ENCRYPTED_FILE if description.is_encrypted else PLAIN_FILE)).read_bytes()
    if hashlib.sha256(weights).hexdigest() != description.weights:  # the same, a moment later
        raise ParametersMismatchError("weights of a model", expected="the described ones", got="others")
    return encrypted_model(description, weights) if description.is_encrypted else plain_model(description, weights)


@lru_cache(maxsize=16)
def _public_key(data: bytes, parameters: PredictionParameters) -> PublicKey:
    return PublicKey.from_bytes(data, parameters)
