"""Score patients with a model at a prediction service that sees neither them nor their scores.

    with EncryptedPredictor.from_vault(vault, "scores.example.org:8443", ca, "heart") as predictor:
        probabilities = predictor.predict_proba(records)[:, 1]

Trust: runs at the client, on patients' records and its own prediction key. Scores go to the caller, and nowhere else.
"""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn, Self

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from clients.prediction.asking import Exchange, Told, ask, patients_per_query
from clients.prediction.canaries import Canaries, Mixture
from clients.prediction.features import checked_features, feature_names
from clients.prediction.intercepts import reader_intercept
from clients.prediction.key_store import KeyStore, StoredKey
from clients.prediction.records import Values, read_logits
from clients.prediction.service import PredictionService
from clients.secrets.identity_file import passphrase_from_file, read_identity
from clients.secrets.vault import Vault
from protocol.errors import ConfigurationError, SecretMaterialError
from protocol.prediction.description import ModelDescription
from protocol.prediction.messages import Answer, key_id


class EncryptedPredictor:
    """A published model, used like one of scikit-learn's.

    Args:
        service: The service.
        model: The model's name there.
        vault: The client's vault, with its prediction key.
        intercept: Added to each score of a model whose intercept is personal; the one of the site's own model in the
            vault if not given.
        canaries: Known patients; each query takes all of them along, and a wrong score of one refuses its answer.

    Attributes:
        description: What the service says of the model.
        classes_: The outcomes, 0 and 1, in the order of `predict_proba`'s columns.
        n_features_in_: Number of the model's inputs.
        feature_names_in_: Their names, in order.

    Raises:
        ConfigurationError: A key or an intercept is missing, or the canaries do not fit; says what to do.
        ServiceError: The service does not know the model, or cannot be reached.
    """

    def __init__(
        self,
        service: PredictionService,
        model: str,
        *,
        vault: Vault,
        intercept: float | None = None,
        canaries: Canaries | None = None,
    ) -> None:
        self._service = service
        self.description = description = service.describe(model)
        self.classes_ = np.array([0, 1], dtype=np.int8)
        self.n_features_in_ = description.inputs
        self.feature_names_in_ = feature_names(description)
        self._stored, self._public_key = _key_for(description, KeyStore(vault))
        self._intercept = reader_intercept(description, vault, intercept)
        self._canaries = canaries
        self._room = patients_per_query(description, is_seeded=True)
        if canaries is not None:
            checked_features(canaries.features, description)
            self._room -= len(canaries.logits)
            if self._room < 1:
                raise ConfigurationError(
                    f"{len(canaries.logits)} canaries leave no room for patients in a query of {self._room}"
                )

    @classmethod
    def from_vault(
        cls,
        vault: Vault,
        service_url: str,
        ca: Path | None,
        model: str,
        *,
        intercept: float | None = None,
        canaries: Canaries | None = None,
    ) -> Self:
        """Connect as the client that is enrolled in a vault.

        Args:
            vault: The client's vault. The passphrase of an encrypted identity is in CIPHERWARD_PASSPHRASE_FILE's file.
            service_url: HOST:PORT.
            ca: PEM file of the authority of the service's certificate; None for the machine's own ones.
            model: The model's name at the service.
            intercept: As of the class.
            canaries: As of the class.

        Raises:
            ConfigurationError: As of the class; or the vault has no identity that can be read.
            ServiceError: As of the class.
        """
        identity = read_identity(vault, passphrase_from_file())
        service = PredictionService.from_vault(vault, identity, service_url, ca)
        try:
            return cls(service, model, vault=vault, intercept=intercept, canaries=canaries)
        except BaseException:
            service.close()
            raise

    def decision_function(self, records: object, *, told: Told | None = None) -> Values:
        """Return patients' logits.

        Args:
            records: Array, list or data frame of shape (n, d), in the columns' units, in the order of
                `feature_names_in_`; NaN where missing. Values far outside are clipped, as in training.
            told: Called as answers come, with the number of patients they are for, canaries included, and with all.

        Returns:
            float64 (n,), as exact as the parameters' tolerance says.

        Raises:
            ConfigurationError: The records have another shape or other columns, or values that are no numbers.
            ServiceError: The service refused, or cannot be reached.
            ProtocolError: What came is no answer to what was asked; AnswerRefusedError if a canary shows it.
        """
        features = checked_features(records, self.description)
        if not len(features):
            return np.empty(0)
        standard = self.description.standardised(features)
        mixtures = [
            Mixture.of(standard[start : start + self._room], self.description, self._canaries)
            for start in range(0, len(standard), self._room)
        ]
        parameters = self.description.parameter_set
        key = self._stored.secret_key(parameters)
        identifier = key_id(self._public_key)
        if identifier.hex() not in self._service.registered_keys():
            self._service.register_key(self._public_key)
        batches = [mixture.records for mixture in mixtures]
        exchanges = ask(self._service, self.description, batches, key, identifier, told=told)
        # from here on nothing is sent
        return np.concatenate(
            [
                mixture.patients_scores(
                    read_logits(_answer(exchange, self.description), self.description, key) + self._intercept,
                    parameters.tolerance,
                )
                for mixture, exchange in zip(mixtures, exchanges, strict=True)
            ]
        )

    def predict_proba(self, records: object) -> Values:
        """Return probabilities of both outcomes, float64 (n, 2), of records as `decision_function` takes them."""
        positive = expit(self.decision_function(records))
        return np.column_stack([1 - positive, positive])

    def predict(self, records: object) -> npt.NDArray[np.int8]:
        """Return the likelier outcome, int8 (n,) of 0 and 1, of records as `decision_function` takes them."""
        return (self.decision_function(records) > 0).astype(np.int8)

    def close(self) -> None:
        """Close the connections to the service."""
        self._service.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"EncryptedPredictor({self.description.name}, {self._service!r})"

    def __reduce__(self) -> NoReturn:
        raise SecretMaterialError("a predictor holds a prediction key's place and an identity, which must not leave")


def _key_for(description: ModelDescription, keys: KeyStore) -> tuple[StoredKey, bytes]:
    """Return the key to encrypt under, and its public key."""
    parameters = description.parameter_set
    stored = keys.find(bytes.fromhex(description.key))[0] if description.is_encrypted else keys.current()
    return stored, stored.public_key(parameters)


def _answer(exchange: Exchange, description: ModelDescription) -> Answer:
    return Answer.from_bytes(exchange.answer, description, exchange.query)
