"""How messages of predictions are laid out: the header of all of them, and residues prime by prime.

Trust: both sides run it on bytes from outside.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from protocol.errors import LengthError, MalformedError, ParametersMismatchError
from protocol.parameters import SEED_BYTES
from protocol.prediction.parameters import PredictionParameters
from protocol.residues import pack_residues, unpack_residues

Polynomials: TypeAlias = npt.NDArray[np.uint64]
"""Residues, shape (ciphertexts, polynomials, primes, N)."""

ID_BYTES: Final = 32
REQUEST_BYTES: Final = 16
PAIR: Final = 2
"""Polynomials of a fresh ciphertext."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """How every message begins.

    Attributes:
        parameters: Number of the parameter set.
        is_seeded: Whether seeds stand for second polynomials.
        count: Patients of a query or answer; ciphertexts of a model; 0 for a key.
        model: Digest of the model's description, 32 bytes; zeros for a key.
        key: Id of the public key, 32 bytes; zeros for a key itself.
        request: 16 bytes that tie an answer to its query; zeros where there is none.
    """

    STRUCT: ClassVar = struct.Struct("<4sBBxxI32s32s16s")

    magic: bytes
    parameters: int
    is_seeded: bool = False
    count: int = 0
    model: bytes = bytes(ID_BYTES)
    key: bytes = bytes(ID_BYTES)
    request: bytes = bytes(REQUEST_BYTES)

    def to_bytes(self) -> bytes:
        """Encode."""
        return self.STRUCT.pack(
            self.magic, self.parameters, self.is_seeded, self.count, self.model, self.key, self.request
        )

    @classmethod
    def of(cls, data: bytes, magic: bytes, what: str) -> Self:
        """Read a message's header.

        Raises:
            LengthError: There is no room for one.
            MalformedError: It is another kind of message, or not canonical.
        """
        if len(data) < cls.STRUCT.size:
            raise LengthError(f"{what} bytes", expected=f"at least {cls.STRUCT.size}", got=len(data))
        found, parameters, is_seeded, count, model, key, request = cls.STRUCT.unpack_from(data)
        if found != magic:
            raise MalformedError(what, expected="its magic number", got="another")
        header = cls(
            magic=magic,
            parameters=parameters,
            is_seeded=bool(is_seeded),
            count=count,
            model=model,
            key=key,
            request=request,
        )
        if header.to_bytes() != data[: cls.STRUCT.size]:
            raise MalformedError(f"{what} header", expected="a canonical one", got="another")
        return header


HEADER_BYTES: Final = Header.STRUCT.size


def check_set(header: Header, parameters: PredictionParameters) -> None:
    """Raise unless a message is of these parameters.

    Raises:
        ParametersMismatchError: It is of others.
    """
    if header.parameters != parameters.number:
        raise ParametersMismatchError("parameter set", expected=parameters.number, got=header.parameters)


def check_length(data: bytes, expected: int, what: str) -> None:
    """Raise unless a message has the one length that it can have.

    Raises:
        LengthError: It has another.
    """
    if len(data) != expected:
        raise LengthError(f"{what} bytes", expected=expected, got=len(data))


def unpack(
    data: bytes, ciphertexts: int, is_seeded: bool, parameters: PredictionParameters, what: str
) -> tuple[Polynomials, tuple[bytes, ...]]:
    """Read ciphertexts of records or weights, which are all that follows the header.

    Returns:
        Polynomials, shape (ciphertexts, 1 or 2, primes, N), and a seed for each ciphertext that has one polynomial.

    Raises:
        LengthError: It has not the one length that it can have.
        ResidueRangeError: A residue is not below its prime.
    """
    shape = (ciphertexts, 1 if is_seeded else PAIR, len(parameters.primes), parameters.ring_degree)
    end = HEADER_BYTES + residue_bytes(shape, parameters.primes)
    check_length(data, end + (ciphertexts * SEED_BYTES if is_seeded else 0), what)
    seeds = tuple(data[start : start + SEED_BYTES] for start in range(end, len(data), SEED_BYTES))
    return residues(data[HEADER_BYTES:end], shape, parameters.primes), seeds


def _width(prime: int) -> int:
    return -(-prime.bit_length() // 8)


def residue_bytes(shape: tuple[int, int, int, int], primes: Sequence[int]) -> int:
    """Return the length of residues of shape (ciphertexts, polynomials, primes, N)."""
    ciphertexts, polynomials, _, degree = shape
    return ciphertexts * polynomials * degree * sum(map(_width, primes))


def pack(polynomials: Polynomials, primes: Sequence[int]) -> list[bytes | memoryview]:
    """Write residues, prime by prime."""
    return [pack_residues(polynomials[:, :, row, :], _width(prime)) for row, prime in enumerate(primes)]


def residues(data: bytes, shape: tuple[int, int, int, int], primes: Sequence[int]) -> Polynomials:
    """Read residues of a shape and check each of them.

    Raises:
        ResidueRangeError: One is not below its prime.
    """
    ciphertexts, size, _, degree = shape
    polynomials: Polynomials = np.empty(shape, dtype=np.uint64)
    start = 0
    for row, prime in enumerate(primes):
        end = start + ciphertexts * size * degree * _width(prime)
        words = unpack_residues(data[start:end], _width(prime), prime, (ciphertexts * size, degree))
        polynomials[:, :, row, :] = words.reshape(ciphertexts, size, degree)
        start = end
    return polynomials
