"""The model that a run goes on from: the shared values of an earlier run's model, and what they were learnt for.

Every hospital that ended the earlier run makes the same bytes of it, so none has to be believed.

Trust: runs at a site; every site of the run knows the model, the provider does not. Of what it is, the agreement says
no more than an HMAC under the consortium secret, with which nobody outside can even check a guess.
"""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, dataclass, field
from math import prod
from typing import Final, Self

import numpy as np

from clients.data.table import Values
from clients.learning.models import tensor_slices
from clients.learning.statistics import Standardisation
from clients.secrets.secret import SecretBytes
from protocol.errors import ConfigurationError, LengthError, MalformedError, ValueRefusedError
from protocol.schedule import authenticate
from protocol.terms import ModelTerms, Terms

_HEAD: Final = struct.Struct("<4sI")
_MAGIC: Final = b"CWM1"
_VALUE: Final = np.dtype("<f8")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPurpose:
    """What a model is given, what it tells, and how it is built; two models that agree in it can follow each other.

    Attributes:
        inputs: Names of the inputs, in order.
        label: Name of the outcome.
        kind: As in the terms; so are the others.
        hidden: Widths of the hidden layers.
        activation: What hidden units make of their sum.
        personal: Tensors that are no part of the shared model.
    """

    inputs: tuple[str, ...]
    label: str
    kind: str
    hidden: tuple[int, ...]
    activation: str
    personal: tuple[str, ...]

    @classmethod
    def of(cls, terms: Terms) -> Self:
        """Return what a model under these terms is for."""
        model = terms.model
        return cls(
            inputs=tuple(given.name for given in terms.data.inputs),
            label=terms.data.label.name,
            kind=model.kind,
            hidden=model.hidden,
            activation=model.activation,
            personal=model.personal,
        )

    def to_bytes(self) -> bytes:
        """Encode as canonical JSON."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()

    @property
    def first_layer(self) -> str:
        """Name of the layer that is given the inputs."""
        return "hidden.0" if self.hidden else "output"

    @property
    def shared_values(self) -> int:
        """Number of values of the shared model."""
        model = ModelTerms(kind=self.kind, hidden=self.hidden, personal=self.personal)
        return sum(prod(shape) for shape in model.shared_shapes(len(self.inputs)).values())

    def check_same(self, other: ModelPurpose) -> None:
        """Check that a model for this purpose serves another.

        Raises:
            ConfigurationError: It does not; says what differs.
        """
        if self.inputs != other.inputs:
            missing, more = (
                ", ".join(sorted(set(a) - set(b)))
                for a, b in ((other.inputs, self.inputs), (self.inputs, other.inputs))
            )
            raise ConfigurationError(
                "the starting model has other inputs than the agreement, or in another order: "
                f"it lacks {missing or 'none'}, and has besides {more or 'none'}"
            )
        for name in ("label", "kind", "hidden", "activation", "personal"):
            mine, its = getattr(self, name), getattr(other, name)
            if mine != its:
                raise ConfigurationError(f"the starting model has {name} = {mine!r}, the agreement {its!r}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StartingModel:
    """Shared values, and the standardisation under which they were learnt.

    Attributes:
        purpose: What the model is for.
        mean: float64 (d,), in the column's unit.
        deviation: float64 (d,), in the column's unit; > 0, infinite for an input that was not used.
        values: float64 (P,), the shared values.
    """

    purpose: ModelPurpose
    mean: Values = field(repr=False)
    deviation: Values = field(repr=False)
    values: Values = field(repr=False)

    def __post_init__(self) -> None:
        if f"{self.purpose.first_layer}.weight" in self.purpose.personal:
            # each site's shared bias would follow from weights of its own
            raise ConfigurationError("a model whose weights of the inputs are personal is no starting model")
        shapes = (self.mean.shape, self.deviation.shape, self.values.shape)
        inputs = len(self.purpose.inputs)
        if shapes != ((inputs,), (inputs,), (self.purpose.shared_values,)):
            raise MalformedError("shapes of the starting model", expected="those of its purpose", got=shapes)
        if not (np.isfinite(self.mean).all() and np.isfinite(self.values).all() and (self.deviation > 0).all()):
            raise MalformedError("starting model", expected="finite values and deviations above 0", got="others")

    def to_bytes(self) -> bytes:
        """Encode: purpose, mean, deviation, values; equal models are equal bytes."""
        arrays = [array.astype(_VALUE).tobytes() for array in (self.mean, self.deviation, self.values)]
        return b"".join((_prefix(self.purpose), *arrays))

    @classmethod
    def from_bytes(cls, data: bytes, terms: Terms) -> Self:
        """Parse a starting model for a run under these terms.

        Raises:
            LengthError: It is longer or shorter than the terms' model.
            MalformedError: It is for another purpose, or holds values that no model has.
            ConfigurationError: The terms' model cannot be started from another.
        """
        purpose, size = ModelPurpose.of(terms), starting_model_bytes(terms)
        if len(data) != size:
            raise LengthError("starting model bytes", expected=size, got=len(data))
        prefix = _prefix(purpose)
        if not data.startswith(prefix):
            raise MalformedError("purpose of the starting model", expected="that of the agreement", got="another")
        inputs = len(purpose.inputs)
        flat = np.frombuffer(data, dtype=_VALUE, offset=len(prefix)).astype(np.float64)
        mean, deviation, values = np.split(flat, [inputs, 2 * inputs])
        return cls(purpose=purpose, mean=mean, deviation=deviation, values=values)

    def digest(self, consortium_secret: SecretBytes) -> str:
        """Return what an agreement says of this model: an HMAC under the secret that goes with it, hex."""
        return authenticate(consortium_secret.reveal(), "starting-model", self.to_bytes()).hex()

    def under(self, common: Standardisation, values: Values) -> Values:
        """Return the model that says of every patient under a new standardisation what it says under its own.

        It is the same for patients who have all inputs, within the range that values are clipped to: a missing value
        stands for the new mean. An input that one of the two does not use gets weight 0, as one that all are missing.

        Args:
            common: The new standardisation.
            values: float64 (P,), all values of a site's model, with its personal ones.

        Returns:
            float64 (P,). Shared values have the same bits at every site, on every machine.

        Raises:
            ValueRefusedError: A value becomes NaN or infinite.
        """
        purpose, layer = self.purpose, self.purpose.first_layer
        shapes = ModelTerms(kind=purpose.kind, hidden=purpose.hidden).tensor_shapes(len(purpose.inputs))
        places = tensor_slices(shapes)
        weight_place, bias_place = places[f"{layer}.weight"], places[f"{layer}.bias"]
        weight = values[weight_place].reshape(shapes[f"{layer}.weight"])
        is_used = np.isfinite(self.deviation) & np.isfinite(common.deviation)
        with np.errstate(over="ignore", invalid="ignore"):  # refused below, or not used
            scaled = np.where(is_used, weight * (common.deviation / self.deviation), 0.0)
            shifts = np.where(is_used, weight * ((common.mean - self.mean) / self.deviation), 0.0)
            # one after the other: a plain sum adds in an order that depends on the processor
            shift = np.add.accumulate(shifts, axis=1)[:, -1]
            moved = values.copy()
            moved[weight_place] = scaled.reshape(-1)
            moved[bias_place] += shift
        if not np.isfinite(moved).all():
            raise ValueRefusedError("starting model: NaN or infinite under this run's standardisation")
        return moved


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Start:
    """Where one site begins.

    Attributes:
        model: The shared starting model.
        personal: float64, this site's personal values of the earlier run; None if it was not in it.
    """

    model: StartingModel
    personal: Values | None = field(default=None, repr=False)


def starting_model_bytes(terms: Terms) -> int:
    """Return the length of a starting model for a run under these terms."""
    purpose = ModelPurpose.of(terms)
    return len(_prefix(purpose)) + _VALUE.itemsize * (2 * len(purpose.inputs) + purpose.shared_values)


def _prefix(purpose: ModelPurpose) -> bytes:
    encoded = purpose.to_bytes()
    return _HEAD.pack(_MAGIC, len(encoded)) + encoded
