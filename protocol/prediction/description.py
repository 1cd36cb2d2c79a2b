"""What a prediction service says of a model: everything that a clinic needs to ask it, and no weight.

Trust: public to the service's clients. Means and deviations are those of the training patients of all sites together;
whoever publishes a model decides that clients may see them.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter, ValidationError

from protocol.agreement import is_site_name
from protocol.checks import check_choice
from protocol.data_terms import DataTerms
from protocol.errors import ConfigurationError, LengthError, MalformedError
from protocol.prediction.parameters import LINEAR, QUADRATIC, RECORD_RANGE, PredictionParameters, parameters_named
from protocol.schedule import digest
from protocol.terms import ModelTerms

MAX_DESCRIPTION_BYTES: Final = 1 << 20
PLAIN, ENCRYPTED = "plain", "encrypted"
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_ID: Final = re.compile(r"[0-9a-f]{64}")
_LAST_BIAS: Final = "output.bias"


def check_model_name(name: str) -> None:
    """Raise unless a published model may have this name, which is also a directory's and part of an address.

    Raises:
        ConfigurationError: It may not.
    """
    if not _NAME.fullmatch(name):
        raise ConfigurationError("a model's name needs 1..63 lower-case letters, digits, hyphens or underscores")


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """A published model, but for its weights.

    Attributes:
        name: Its name at the service.
        data: The table that its records are made of.
        model: Its architecture. Personal tensors are not at the service: a reader adds them.
        mean: Of each input over the training patients, in the column's unit.
        deviation: Of each input, in the column's unit; None for one that the model does not use.
        form: "plain", or "encrypted" under its owner's key.
        parameters: Name of the parameters of its queries.
        owner: The client who published it, or empty for the provider.
        key: Id of the public key that it is encrypted under, hex; empty for a plain one.
        weights: SHA-256 of the file that holds the weights, hex.
    """

    name: str
    data: DataTerms
    model: ModelTerms
    mean: tuple[float, ...]
    deviation: tuple[float | None, ...]
    form: str
    parameters: str
    owner: str
    key: str
    weights: str

    def __post_init__(self) -> None:
        check_model_name(self.name)
        check_choice("form", self.form, (PLAIN, ENCRYPTED))
        if len(self.mean) != self.inputs or len(self.deviation) != self.inputs:
            raise ConfigurationError(f"a model of {self.inputs} inputs has {len(self.mean)} means")
        if not all(map(math.isfinite, self.mean)) or not all(
            spread is None or (math.isfinite(spread) and spread > 0) for spread in self.deviation
        ):
            raise ConfigurationError("a mean or deviation is not a number that it can be")
        if self.parameters != parameters_for(self.model).name:
            raise ConfigurationError(f"parameters {self.parameters!r} do not fit the model")
        if not _ID.fullmatch(self.weights) or (self.key and not _ID.fullmatch(self.key)):
            raise ConfigurationError("a model's weights or key are not named by 64 lower-case hex digits")
        if self.owner and not is_site_name(self.owner):
            raise ConfigurationError("a model's owner is no client's name")
        if bool(self.key) != (self.form == ENCRYPTED) or bool(self.owner) < bool(self.key):
            raise ConfigurationError("an encrypted model has a key and an owner, a plain one has no key")
        if not set(self.model.personal) <= {_LAST_BIAS}:
            raise ConfigurationError(f"personal tensors of a published model can only be {_LAST_BIAS}")

    @property
    def inputs(self) -> int:
        """Number of the model's inputs, d."""
        return len(self.data.inputs)

    @cached_property
    def parameter_set(self) -> PredictionParameters:
        """The parameters of its queries."""
        return parameters_named(self.parameters)

    @property
    def is_encrypted(self) -> bool:
        """Whether the service holds the weights under its owner's key."""
        return self.form == ENCRYPTED

    @property
    def answer_polynomials(self) -> int:
        """Polynomials of an answer: one more than factors under encryption."""
        factors = 1 if self.parameter_set.is_linear else 2
        return 1 + (factors if not self.is_encrypted else 2 * factors + (not self.parameter_set.is_linear))

    @cached_property
    def digest(self) -> bytes:
        """The 32 bytes that queries and answers are bound to."""
        return digest("published-model", self.to_bytes())

    def standardised(self, features: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return records as the model is given them.

        Args:
            features: float64 (n, d), in the columns' units; NaN where missing.

        Returns:
            float64 (n, d) within +-RECORD_RANGE, to the precision of training; 0, the mean, where missing.
        """
        deviation = np.array([np.inf if spread is None else spread for spread in self.deviation])
        with np.errstate(over="ignore"):  # what overflows is clipped
            standard = np.clip((features - np.array(self.mean)) / deviation, -RECORD_RANGE, RECORD_RANGE)
        return np.where(np.isnan(standard), 0.0, standard).astype(np.float32).astype(np.float64)

    def to_bytes(self) -> bytes:
        """Encode as canonical JSON."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> ModelDescription:
        """Parse and check a description.

        Raises:
            LengthError: It is larger than any description.
            MalformedError: It is not the canonical encoding of a valid description.
        """
        if len(data) > MAX_DESCRIPTION_BYTES:
            raise LengthError("description bytes", expected=f"at most {MAX_DESCRIPTION_BYTES}", got=len(data))
        try:
            description = _PARSER.validate_json(data)
        except (ValidationError, ConfigurationError) as error:
            raise MalformedError(f"model description ({type(error).__name__})") from None
        if description.to_bytes() != data:
            raise MalformedError("model description", expected="canonical JSON without unknown keys", got="another")
        return description


_PARSER = TypeAdapter(ModelDescription)


def parameters_for(model: ModelTerms) -> PredictionParameters:
    """Pick the parameters for a model's depth.

    Raises:
        ConfigurationError: No parameters are carried for such a model.
    """
    if not model.hidden:
        return LINEAR
    if len(model.hidden) > 1 or model.activation != "quadratic":
        raise ConfigurationError(
            "encrypted prediction takes logistic regression, or one hidden layer with model.activation=quadratic: "
            "a ciphertext can be added and multiplied, nothing else"
        )
    return QUADRATIC
