"""Published models and clients' keys for tests of encrypted prediction."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from clients.prediction.encrypted_model import encrypt_weights, reader_bias
from clients.prediction.keys import PredictionKey, PublicEncryptor
from clients.prediction.records import encrypt_records, read_logits
from protocol.data_terms import ColumnTerms, DataTerms
from protocol.prediction.description import ENCRYPTED, PLAIN, ModelDescription
from protocol.prediction.messages import Answer, PublicKey, Query, key_id
from protocol.prediction.model_file import TrainedModel
from protocol.prediction.parameters import PredictionParameters
from protocol.terms import ModelTerms
from server.prediction.evaluation import Model, answer_with, encrypted_model, plain_model_of

LOGISTIC = ModelTerms()
NETWORK = ModelTerms(kind="mlp", hidden=(16,), activation="quadratic")


@dataclass(frozen=True, kw_only=True)
class Client:
    """A client's key for one parameter set."""

    key: PredictionKey
    public_key: bytes

    @property
    def key_id(self) -> bytes:
        return key_id(self.public_key)

    @property
    def device(self) -> PublicEncryptor:
        """Return what a device has of it."""
        parameters = self.key.parameters
        return PublicEncryptor(PublicKey.from_bytes(self.public_key, parameters), parameters)


@cache
def client(parameters: PredictionParameters, number: int = 0) -> Client:
    """Return the same client for the same number."""
    del number
    key = PredictionKey.draw(parameters)
    return Client(key=key, public_key=key.public_key().to_bytes(parameters))


@dataclass(frozen=True, kw_only=True)
class Published:
    """A model as the service holds it, and in plaintext."""

    description: ModelDescription
    trained: TrainedModel
    model: Model
    weights: bytes = b""

    @property
    def parameters(self) -> PredictionParameters:
        return self.description.parameter_set

    @property
    def bias(self) -> float:
        """Return what the reader adds."""
        return reader_bias(self.description, self.trained.tensors) if self.weights else 0.0

    def query(self, records: np.ndarray, asker: Client, *, by_device: bool = False) -> Query:
        return encrypt_records(records, self.description, asker.device if by_device else asker.key, asker.key_id)

    def answer(self, query: Query, asker: Client) -> bytes:
        return answer_with(self.model, self.description, asker.public_key, query.to_bytes(self.description))

    def read(self, data: bytes, query: Query, asker: Client) -> np.ndarray:
        return read_logits(Answer.from_bytes(data, self.description, query.header), self.description, asker.key)

    def score(self, records: np.ndarray, asker: Client, *, by_device: bool = False) -> np.ndarray:
        query = self.query(records, asker, by_device=by_device)
        return self.read(self.answer(query, asker), query, asker) + self.bias


def trained_model(inputs: int, terms: ModelTerms, *, seed: int = 7, spread: float = 0.5) -> TrainedModel:
    """Return a model with random weights, mean 0 and deviation 1."""
    generator = np.random.default_rng(seed)
    columns = tuple(ColumnTerms(name=f"c{number}", centre=0.0, scale=1.0) for number in range(inputs))
    return TrainedModel(
        data=DataTerms(name="made-up", columns=columns),
        model=terms,
        tensors={
            name: generator.normal(scale=spread, size=shape) for name, shape in terms.tensor_shapes(inputs).items()
        },
        mean=np.zeros(inputs),
        deviation=np.ones(inputs),
        digest="00" * 32,
    )


def plain(trained: TrainedModel) -> Published:
    """Return a model as it is published in plaintext, without its personal tensors."""
    shared = {name: tensor for name, tensor in trained.tensors.items() if name not in trained.model.personal}
    trained = replace(trained, tensors=shared)
    description = trained.describe("model", form=PLAIN)
    return Published(description=description, trained=trained, model=plain_model_of(description, shared))


def encrypted(trained: TrainedModel, owner: Client) -> Published:
    """Return a model as its owner publishes it encrypted."""
    weights = encrypt_weights(trained.describe("model"), trained.tensors, owner.key, owner.key_id)
    description = trained.describe(
        "model",
        form=ENCRYPTED,
        owner="hospital",
        key=owner.key_id.hex(),
        weights=hashlib.sha256(weights).hexdigest(),
    )
    model = encrypted_model(description, weights)
    return Published(description=description, trained=trained, model=model, weights=weights)


def patients(count: int, inputs: int, *, seed: int = 1) -> np.ndarray:
    """Return standardised records of random patients."""
    return np.clip(np.random.default_rng(seed).normal(scale=2.0, size=(count, inputs)), -16, 16)
