"""A trained model's file: float64 safetensors, and what the model was made for. Equal models are equal files.

Trust: both sides run it: hospitals on their own models, the provider on those that it was given in plaintext.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from protocol.data_terms import DataTerms
from protocol.errors import ConfigurationError
from protocol.prediction.description import PLAIN, ModelDescription, parameters_for
from protocol.terms import ModelTerms, Terms

MODEL_FORMAT: Final = "cipherward.model/1"
"""The metadata entry of a model's file; its value says in JSON what the model was made for."""

_LENGTH = struct.Struct("<Q")
_STANDARDISATION: Final = ("standardisation.mean", "standardisation.deviation")

Tensors = Mapping[str, npt.NDArray[np.float64]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class TrainedModel:
    """A model in plaintext.

    Attributes:
        data: The table that its records are made of.
        model: Its architecture.
        tensors: Name -> float64 tensor; a released file has no personal ones.
        mean: Of each input, float64 (d,).
        deviation: Of each input, float64 (d,); infinite for one that is not used.
        digest: SHA-256 of the file, hex.
    """

    data: DataTerms
    model: ModelTerms
    tensors: Tensors
    mean: npt.NDArray[np.float64]
    deviation: npt.NDArray[np.float64]
    digest: str

    @classmethod
    def from_bytes(cls, data: bytes) -> TrainedModel:
        """Parse and check a model's file.

        Raises:
            ConfigurationError: It is no such file, or does not hold the tensors that it tells of.
        """
        try:
            tensors = load(data)
            (length,) = _LENGTH.unpack_from(data)
            metadata = json.loads(data[_LENGTH.size : _LENGTH.size + length])["__metadata__"]
            purpose = _PURPOSE.validate_json(metadata[MODEL_FORMAT])
        except (SafetensorError, ValidationError, ValueError, KeyError, struct.error):
            raise ConfigurationError(f"this is no model's file: expected safetensors with {MODEL_FORMAT!r}") from None
        if purpose.inputs != tuple(given.name for given in purpose.data.inputs):
            raise ConfigurationError("the model's file names other inputs than its table has")
        d = len(purpose.inputs)
        shapes = dict.fromkeys(_STANDARDISATION, (d,)) | purpose.model.shared_shapes(d)
        known = shapes | purpose.model.tensor_shapes(d)
        if not set(tensors) <= set(known):
            raise ConfigurationError("the model's file holds a tensor that its architecture does not have")
        for name, shape in known.items():
            if name not in tensors and name not in shapes:
                continue  # a personal tensor may be there or not
            if name not in tensors or tensors[name].shape != shape or tensors[name].dtype != np.float64:
                raise ConfigurationError(f"the model's file has no float64 tensor {name} of shape {shape}")
        mean, deviation = (tensors.pop(name) for name in _STANDARDISATION)
        return cls(
            data=purpose.data,
            model=purpose.model,
            tensors=tensors,
            mean=mean,
            deviation=deviation,
            digest=hashlib.sha256(data).hexdigest(),
        )

    @property
    def is_personal(self) -> bool:
        """Whether it holds what never leaves its site."""
        return any(name in self.tensors for name in self.model.personal)

    def describe(
        self, name: str, *, form: str = PLAIN, owner: str = "", key: str = "", weights: str = ""
    ) -> ModelDescription:
        """Describe it for publication.

        Args:
            name: At the service.
            form: "plain" or "encrypted".
            owner: Of an encrypted one.
            key: Of an encrypted one: id of the public key.
            weights: SHA-256 of the file that the service holds; the model's own file for a plain one.

        Raises:
            ConfigurationError: Such a model cannot be evaluated under encryption, or not be named so.
        """
        return ModelDescription(
            name=name,
            data=self.data,
            model=self.model,
            mean=tuple(self.mean.tolist()),
            deviation=tuple(None if spread == np.inf else spread for spread in self.deviation.tolist()),
            form=form,
            parameters=parameters_for(self.model).name,
            owner=owner,
            key=key,
            weights=weights or self.digest,
        )

    def logits(self, records: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return plaintext scores of standardised records, shape (n, d), without personal tensors that are not there.

        Raises:
            ConfigurationError: The model's activation is not one that can be evaluated under encryption.
        """
        parameters_for(self.model)
        bias = self.tensors.get("output.bias", np.zeros(1))
        signal = records
        if self.model.hidden:
            hidden = records @ self.tensors["hidden.0.weight"].T + self.tensors["hidden.0.bias"]
            signal = hidden**2 / 8 + hidden / 2 + 1 / 4
        scores: npt.NDArray[np.float64] = signal @ self.tensors["output.weight"][0] + bias[0]
        return scores


def model_file(
    terms: Terms, tensors: Tensors, *, mean: npt.NDArray[np.float64], deviation: npt.NDArray[np.float64]
) -> bytes:
    """Return a trained model's file.

    Args:
        terms: What the model was trained under.
        tensors: Name -> float64 tensor: those that go into the file, all or the shared ones.
        mean: Of each input, float64 (d,).
        deviation: Of each input, float64 (d,); infinite for one that is not used.
    """
    model = terms.model
    description = {
        "data": asdict(terms.data),
        "inputs": [given.name for given in terms.data.inputs],
        "model": {
            "kind": model.kind,
            "hidden": list(model.hidden),
            "activation": model.activation,
            "personal": list(model.personal),
        },
    }
    # one entry: safetensors writes several in no fixed order, and equal models are to be equal files
    metadata = {MODEL_FORMAT: json.dumps(description)}
    content = {**tensors, **dict(zip(_STANDARDISATION, (mean, deviation), strict=True))}
    return save({name: np.ascontiguousarray(array) for name, array in content.items()}, metadata)


class _Purpose(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    data: DataTerms
    inputs: tuple[str, ...]
    model: ModelTerms


_PURPOSE = TypeAdapter(_Purpose)
