"""What a client sends to publish its encrypted model: the description, who else may use it, and the weights.

The body is `length | head | weights`: the length of the head as four little-endian bytes, the head as canonical JSON
with "allowed" and "description", and the weights as an encrypted model's message.

Trust: public but for the weights, which are encrypted.
"""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, dataclass
from typing import Final, Self

from pydantic import TypeAdapter, ValidationError

from protocol.errors import ConfigurationError, LengthError, MalformedError
from protocol.prediction.description import MAX_DESCRIPTION_BYTES, ModelDescription

MOST_ALLOWED: Final = 1024
_LENGTH: Final = struct.Struct("<I")
_LONGEST_NAME: Final = 64
MAX_HEAD_BYTES: Final = MAX_DESCRIPTION_BYTES + MOST_ALLOWED * (_LONGEST_NAME + 3) + 64


@dataclass(frozen=True, slots=True, kw_only=True)
class _Head:
    allowed: tuple[str, ...]
    description: ModelDescription


_PARSER: Final = TypeAdapter(_Head)


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """An encrypted model on its way to the service.

    Attributes:
        description: Of the model.
        allowed: Names of clients that may use it beside its owner.
        weights: The message with the encrypted weights.
    """

    description: ModelDescription
    allowed: tuple[str, ...]
    weights: bytes

    def __repr__(self) -> str:
        return f"Publication({self.description.name}, {len(self.weights)} bytes)"

    def to_bytes(self) -> bytes:
        """Encode."""
        head = self._head_bytes()
        return b"".join((_LENGTH.pack(len(head)), head, self.weights))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Parse a publication and check its head; the weights are only separated.

        Raises:
            LengthError: It is shorter than it says, or its head or description is longer than any.
            MalformedError: The head is not the canonical encoding of a valid one.
        """
        if len(data) < _LENGTH.size:
            raise LengthError("publication bytes", expected=f"at least {_LENGTH.size}", got=len(data))
        (length,) = _LENGTH.unpack_from(data)
        end = _LENGTH.size + length
        if length > MAX_HEAD_BYTES or end > len(data):
            raise LengthError("head of a publication", expected=f"at most {MAX_HEAD_BYTES}, and all there", got=length)
        try:
            head = _PARSER.validate_json(data[_LENGTH.size : end])
            # as it will be read back: one that is kept and cannot be read would be in everybody's way
            ModelDescription.from_bytes(head.description.to_bytes())
        except (ValidationError, ConfigurationError) as error:
            raise MalformedError(f"head of a publication ({type(error).__name__})") from None
        if len(head.allowed) > MOST_ALLOWED:
            raise LengthError("allowed clients", expected=f"at most {MOST_ALLOWED}", got=len(head.allowed))
        publication = cls(description=head.description, allowed=head.allowed, weights=data[end:])
        if publication._head_bytes() != data[_LENGTH.size : end]:
            raise MalformedError("head of a publication", expected="canonical JSON without unknown keys", got="another")
        return publication

    def _head_bytes(self) -> bytes:
        head = {"allowed": list(self.allowed), "description": asdict(self.description)}
        return json.dumps(head, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
