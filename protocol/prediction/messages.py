"""Messages between clinics and the prediction service, in a wire format of our own.

Each is a fixed header and residues, of which every length follows from the header and the model's description: what is
not exactly as long is refused before anything is read. Residues are checked in NumPy; SEAL never sees these bytes.

- query: `header | first polynomials | seeds` of the key's owner, or `header | both polynomials` under the public key
- answer: `header | polynomials`
- public key: `header | first polynomial | seed`: nobody can choose the second polynomial
- encrypted model: `header | first polynomials | seeds`

Residues lie prime by prime, each in as many whole bytes as its prime needs, little-endian.

Trust: both sides run it on bytes from outside.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import ClassVar, Self

from protocol.errors import MalformedError, ParametersMismatchError
from protocol.parameters import SEED_BYTES
from protocol.prediction.description import ModelDescription
from protocol.prediction.layout import QueryLayout
from protocol.prediction.parameters import PredictionParameters, parameters_numbered
from protocol.prediction.wire import (
    HEADER_BYTES,
    PAIR,
    Header,
    Polynomials,
    check_length,
    check_set,
    pack,
    residue_bytes,
    residues,
    unpack,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryHeader:
    """What can be told of a query before it is worked on.

    Attributes:
        model: Digest of the model's description.
        key: Id of the public key that the answer is to be read with.
        patients: How many.
        request: Ties the answer to it.
        is_seeded: Whether it was encrypted by the key's owner.
    """

    MAGIC: ClassVar = b"CWQ1"

    model: bytes
    key: bytes
    patients: int
    request: bytes
    is_seeded: bool

    @classmethod
    def of(cls, data: bytes) -> Self:
        """Read a query's header.

        Raises:
            LengthError: There is no room for one.
            MalformedError: It is no query.
        """
        header = Header.of(data, cls.MAGIC, "query")
        return cls(
            model=header.model,
            key=header.key,
            patients=header.count,
            request=header.request,
            is_seeded=header.is_seeded,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Query:
    """Encrypted records.

    Attributes:
        header: Whose, for which model, how many.
        polynomials: Shape (ciphertexts, 1 or 2, primes, N).
        seeds: 64 bytes for each ciphertext if only first polynomials are there, else none.
    """

    header: QueryHeader
    polynomials: Polynomials
    seeds: tuple[bytes, ...] = ()

    def to_bytes(self, description: ModelDescription) -> bytes:
        """Encode."""
        parameters = description.parameter_set
        header = Header(
            magic=QueryHeader.MAGIC,
            parameters=parameters.number,
            is_seeded=bool(self.seeds),
            count=self.header.patients,
            model=self.header.model,
            key=self.header.key,
            request=self.header.request,
        )
        return b"".join((header.to_bytes(), *pack(self.polynomials, parameters.primes), *self.seeds))

    @classmethod
    def from_bytes(cls, data: bytes, description: ModelDescription) -> Self:
        """Parse and check a query for a model.

        Raises:
            ParametersMismatchError: It is for another model or with other parameters.
            LengthError: It has not the one length that it can have.
            ResidueRangeError: A residue is not below its prime.
            MalformedError: It is no query.
        """
        parameters = description.parameter_set
        check_set(Header.of(data, QueryHeader.MAGIC, "query"), parameters)
        header = QueryHeader.of(data)
        if header.model != description.digest:
            raise ParametersMismatchError("model of a query", expected=description.digest.hex(), got=header.model.hex())
        layout = QueryLayout.of(parameters, inputs=description.inputs, patients=header.patients)
        polynomials, seeds = unpack(data, layout.ciphertexts, header.is_seeded, parameters, "query")
        return cls(header=header, polynomials=polynomials, seeds=seeds)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answer:
    """Encrypted scores.

    Attributes:
        query: The header of the query that it answers.
        polynomials: Shape (1, polynomials, primes of an answer, N).
    """

    MAGIC: ClassVar = b"CWS1"

    query: QueryHeader
    polynomials: Polynomials

    def to_bytes(self, description: ModelDescription) -> bytes:
        """Encode."""
        parameters = description.parameter_set
        primes = parameters.primes[: parameters.answer_primes]
        return b"".join((_answer_header(self.query, parameters).to_bytes(), *pack(self.polynomials, primes)))

    @classmethod
    def from_bytes(cls, data: bytes, description: ModelDescription, query: QueryHeader) -> Self:
        """Parse and check the answer to a query.

        Raises:
            ParametersMismatchError: It answers another query.
            LengthError: It has not the one length that it can have.
            ResidueRangeError: A residue is not below its prime.
            MalformedError: It is no answer.
        """
        parameters = description.parameter_set
        if Header.of(data, cls.MAGIC, "answer") != _answer_header(query, parameters):
            raise ParametersMismatchError("answer", expected="one to this query", got="another")
        primes = parameters.primes[: parameters.answer_primes]
        shape = (1, description.answer_polynomials, len(primes), parameters.ring_degree)
        check_length(data, HEADER_BYTES + residue_bytes(shape, primes), "answer")
        return cls(query=query, polynomials=residues(data[HEADER_BYTES:], shape, primes))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PublicKey:
    """A public prediction key, which encrypts and cannot decrypt.

    Attributes:
        polynomials: The first one, shape (1, 1, primes of keys, N).
        seed: 64 bytes, for the second one: whoever chose that, such as zero, would read answers' second polynomials.
    """

    MAGIC: ClassVar = b"CWK1"

    polynomials: Polynomials
    seed: bytes

    def to_bytes(self, parameters: PredictionParameters) -> bytes:
        """Encode."""
        header = Header(magic=self.MAGIC, parameters=parameters.number, is_seeded=True)
        return b"".join((header.to_bytes(), *pack(self.polynomials, parameters.key_primes), self.seed))

    @classmethod
    def parameters_of(cls, data: bytes) -> PredictionParameters:
        """Return the parameters that a public key says it is of.

        Raises:
            MalformedError: There are no such parameters, or it is no public key.
        """
        return parameters_numbered(Header.of(data, cls.MAGIC, "public key").parameters)

    @classmethod
    def from_bytes(cls, data: bytes, parameters: PredictionParameters) -> Self:
        """Parse and check a public key.

        Raises:
            ParametersMismatchError: It is one of other parameters.
            LengthError: It has not the one length that it can have.
            ResidueRangeError: A residue is not below its prime.
            MalformedError: It is no public key.
        """
        header = Header.of(data, cls.MAGIC, "public key")
        check_set(header, parameters)
        if not header.is_seeded:
            raise MalformedError("public key", expected="a seed for its second polynomial", got="none")
        shape = (1, 1, len(parameters.key_primes), parameters.ring_degree)
        end = HEADER_BYTES + residue_bytes(shape, parameters.key_primes)
        check_length(data, end + SEED_BYTES, "public key")
        return cls(polynomials=residues(data[HEADER_BYTES:end], shape, parameters.key_primes), seed=data[end:])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EncryptedModel:
    """A model's weights, each in a ciphertext of its own, under its owner's key.

    Attributes:
        polynomials: First ones, shape (weights, 1, primes, N).
        seeds: 64 bytes for each.
    """

    MAGIC: ClassVar = b"CWM1"

    polynomials: Polynomials
    seeds: tuple[bytes, ...]

    def to_bytes(self, parameters: PredictionParameters, key: bytes) -> bytes:
        """Encode.

        Args:
            parameters: Of the model.
            key: Id of the public key that belongs to the owner's.
        """
        header = Header(magic=self.MAGIC, parameters=parameters.number, is_seeded=True, count=len(self.seeds), key=key)
        return b"".join((header.to_bytes(), *pack(self.polynomials, parameters.primes), *self.seeds))

    @classmethod
    def from_bytes(cls, data: bytes, description: ModelDescription) -> Self:
        """Parse and check the weights of a described model.

        Raises:
            ParametersMismatchError: They are another model's, or under another key.
            LengthError: It has not the one length that it can have.
            ResidueRangeError: A residue is not below its prime.
            MalformedError: It is no encrypted model.
        """
        parameters, weights = description.parameter_set, weight_count(description)
        header = Header.of(data, cls.MAGIC, "encrypted model")
        check_set(header, parameters)
        if not header.is_seeded or header.count != weights or header.key.hex() != description.key:
            raise ParametersMismatchError("encrypted model", expected="the described one", got="another")
        polynomials, seeds = unpack(data, weights, True, parameters, "encrypted model")
        return cls(polynomials=polynomials, seeds=seeds)


def query_bytes(description: ModelDescription, *, patients: int, is_seeded: bool) -> int:
    """Return the length of a query.

    Args:
        description: Of the model.
        patients: How many, at most what the parameters hold.
        is_seeded: Whether the key's owner encrypts it.
    """
    parameters = description.parameter_set
    layout = QueryLayout.of(parameters, inputs=description.inputs, patients=patients)
    shape = (layout.ciphertexts, 1 if is_seeded else PAIR, len(parameters.primes), parameters.ring_degree)
    seeds = layout.ciphertexts * SEED_BYTES if is_seeded else 0
    return HEADER_BYTES + residue_bytes(shape, parameters.primes) + seeds


def weight_count(description: ModelDescription) -> int:
    """Return how many values of a model are encrypted: all but the last bias, which the reader adds."""
    return sum(map(math.prod, description.model.tensor_shapes(description.inputs).values())) - 1


def key_id(public_key: bytes) -> bytes:
    """Return the id of a public key's message: its SHA-256."""
    return hashlib.sha256(public_key).digest()


def largest_query_bytes(description: ModelDescription) -> int:
    """Return the length of the largest query for a model: as many patients as fit, under the public key."""
    return query_bytes(description, patients=description.parameter_set.patients, is_seeded=False)


def _answer_header(query: QueryHeader, parameters: PredictionParameters) -> Header:
    return Header(
        magic=Answer.MAGIC,
        parameters=parameters.number,
        count=query.patients,
        model=query.model,
        key=query.key,
        request=query.request,
    )
