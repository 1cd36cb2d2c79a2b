"""Publish a hospital's model so that the service cannot read it: encrypted under the hospital's own prediction key.

Trust: site only. The last bias stays here; the service gets ciphertexts, and the description, which is public.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from clients.prediction.encrypted_model import encrypt_weights, reader_bias
from clients.prediction.key_store import KeyStore
from clients.prediction.keys import PredictionKey
from clients.prediction.published import Published
from clients.prediction.service import PredictionService
from clients.secrets.vault import Vault
from protocol.errors import ConfigurationError
from protocol.prediction.description import ENCRYPTED, ModelDescription
from protocol.prediction.messages import key_id
from protocol.prediction.model_file import TrainedModel


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class PreparedModel:
    """A model that is encrypted and not yet published, with what trying it takes.

    Attributes:
        model: In plaintext.
        description: What will be public of it.
        weights: Its encrypted weights, as a message.
        key: What they are encrypted under.
        public_key: The key's public half, as a message.
    """

    model: TrainedModel
    description: ModelDescription
    weights: bytes
    key: PredictionKey
    public_key: bytes


def prepare_model(model: TrainedModel, name: str, *, owner: str, vault: Vault) -> PreparedModel:
    """Encrypt a model under the vault's current prediction key.

    Args:
        model: With all its tensors, personal ones too.
        name: At the service.
        owner: The hospital's name, as on its card.
        vault: The hospital's.

    Raises:
        ConfigurationError: It cannot be evaluated under encryption, a tensor is missing, or there is no key.
    """
    if any(tensor not in model.tensors for tensor in model.model.tensor_shapes(len(model.mean))):
        raise ConfigurationError(
            "the model's file lacks tensors that are personal: publish the one in the site's vault"
        )
    plain = model.describe(name)
    stored, parameters = KeyStore(vault).current(), plain.parameter_set
    public_key = stored.public_key(parameters)
    key, identifier = stored.secret_key(parameters), key_id(public_key)
    weights = encrypt_weights(plain, model.tensors, key, identifier)
    description = model.describe(
        name, form=ENCRYPTED, owner=owner, key=identifier.hex(), weights=hashlib.sha256(weights).hexdigest()
    )
    return PreparedModel(model=model, description=description, weights=weights, key=key, public_key=public_key)


def publish_model(prepared: PreparedModel, service: PredictionService, vault: Vault, allowed: Iterable[str]) -> None:
    """Publish a prepared model, and register the key that it is under.

    Args:
        prepared: The model, tried.
        service: The service.
        vault: Keeps what reading its scores takes.
        allowed: Names of clients, such as devices, that may use it beside its owner.

    Raises:
        ServiceError: The service refused, or cannot be reached.
    """
    description = prepared.description
    bias = reader_bias(description, prepared.model.tensors)
    service.register_key(prepared.public_key)
    Published(description=description, bias=bias).write(vault)  # before anybody can ask
    service.publish(description, prepared.weights, allowed)
    vault.record("model published", model=description.name, key=description.key, digest=description.digest.hex())
