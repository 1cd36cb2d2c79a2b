"""Sealed updates and encrypted aggregates, in a wire format of our own.

An update is `header | residues | seeds | checksum | tag | signature`; its residues are first polynomials, its seeds
stand for the second ones. An aggregate has one of two forms, by the size of its cohort and the agreement's
`largest_seeded_cohort`:

- seeded, `head | first polynomials | proofs`, where a proof is an update without its residues;
- expanded, `head | first polynomials | second polynomials | proofs`, where a proof has the seeds' SHA-256 in place of
  the seeds.

All lengths follow from the round's terms, so they are checked before anything is read; residues are checked in NumPy.
SEAL never sees these bytes.

The signature covers the header, the seeds (SHA-256), the sealed tag and a 128-bit XXH3 checksum of the residues. The
checksum finds accidents early, at the provider, at memory speed. It need not resist forgery: whoever replaces residues
is caught by the tag, at every site, before decryption.

Trust: both sides run it on bytes from outside.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import xxhash

from protocol.agreement import Agreement, Cohort
from protocol.errors import ChecksumError, LengthError, MalformedError, SecretMaterialError
from protocol.packing import PackingPlan
from protocol.parameters import SEED_BYTES
from protocol.residues import Residues, pack_residues, unpack_residues
from protocol.rounds import HEADER_BYTES, RoundTerms, UpdateHeader
from protocol.schedule import DIGEST_BYTES, frame
from protocol.tags import tag_vector_count

CHECKSUM_BYTES: Final = 16
SIGNATURE_BYTES: Final = 64
_SEAL_OVERHEAD: Final = 16  # Poly1305
_AGGREGATE_HEAD = struct.Struct("<4sIHxx")
_AGGREGATE_MAGIC: Final = b"CWA1"
_SEAL_MAGIC: Final = b"\x5e\xa1\x10"  # how every object saved by SEAL begins, keys among them


def sealed_tag_bytes(tag_vectors: int) -> int:
    """Return the length of a sealed tag: L words and the seeds' digest, under an AEAD."""
    return 8 * tag_vectors + DIGEST_BYTES + _SEAL_OVERHEAD


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateProof:
    """What sites need of one update to check a sum that contains it: everything but its residues.

    Attributes:
        header: The update's header.
        seeds: Seeds of its second polynomials, ciphertexts * 64 bytes; empty where only their digest is known.
        seeds_digest: SHA-256 of the seeds, made of them wherever they are there.
        checksum: XXH3 of its residues.
        tag: Its sealed tag.
        signature: The site's.
    """

    header: UpdateHeader
    seeds: bytes = field(compare=False)  # their digest is compared, with seeds or without
    seeds_digest: bytes = b""
    checksum: bytes
    tag: bytes
    signature: bytes

    def __post_init__(self) -> None:
        if self.seeds:
            object.__setattr__(self, "seeds_digest", hashlib.sha256(self.seeds).digest())

    def without_seeds(self) -> UpdateProof:
        """Return the proof with the seeds' digest alone."""
        return replace(self, seeds=b"")

    def signed_bytes(self) -> bytes:
        """Return what the site signs."""
        return frame("update", self.header.to_bytes(), self.seeds_digest, self.checksum, self.tag)

    def to_bytes(self) -> bytes:
        """Encode as `header | seeds or their digest | checksum | tag | signature`."""
        seeds = self.seeds or self.seeds_digest
        return b"".join((self.header.to_bytes(), seeds, self.checksum, self.tag, self.signature))

    def check(self, terms: RoundTerms) -> None:
        """Check header and signature.

        Raises:
            ProtocolError: The subclass of the field that differs, or SignatureError.
        """
        terms.check_header(self.header)
        terms.agreement.roster[self.header.site].verify(self.signature, self.signed_bytes())


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedUpdate:
    """One site's masked ciphertexts.

    Attributes:
        proof: Header, seeds, checksum, sealed tag, signature.
        residues: First polynomials of the ciphertexts, masked, shape (ciphertexts, N).
    """

    proof: UpdateProof
    residues: Residues

    def to_bytes(self) -> bytes:
        """Encode for the wire."""
        proof = self.proof
        width = proof.header.modulus_bits // 8
        body = pack_residues(self.residues, width)
        return b"".join((proof.header.to_bytes(), body, proof.seeds, proof.checksum, proof.tag, proof.signature))

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview, terms: RoundTerms) -> SealedUpdate:
        """Parse and check an update that must belong to these terms.

        Args:
            data: Bytes from outside.
            terms: What the round fixed; the sizes come from here, not from the data.

        Raises:
            SecretMaterialError: The data is an object of SEAL's, which may be a key.
            LengthError: Another length than the terms fix.
            ProtocolError: Otherwise the subclass of the first check that failed.
        """
        view = memoryview(data)
        check_no_secret(view)
        plan = terms.plan
        seeds_bytes = plan.ciphertexts * SEED_BYTES
        sizes = [HEADER_BYTES, _body_bytes(plan.shape, plan), *_proof_tail(seeds_bytes, terms.agreement)]
        if len(view) != sum(sizes):
            raise LengthError("update bytes", expected=sum(sizes), got=len(view))
        header, body, seeds, signed_checksum, tag, signature = _split(view, sizes)
        proof = UpdateProof(
            header=UpdateHeader.from_bytes(bytes(header)),
            seeds=bytes(seeds),
            checksum=bytes(signed_checksum),
            tag=bytes(tag),
            signature=bytes(signature),
        )
        proof.check(terms)
        checksum = body_checksum(body)
        if checksum != proof.checksum:
            raise ChecksumError("checksum of residues", expected=proof.checksum.hex(), got=checksum.hex())
        residues = unpack_residues(body, plan.parameters.residue_bytes, plan.parameters.modulus, plan.shape)
        return cls(proof=proof, residues=residues)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncryptedAggregate:
    """The sum of a cohort's residues, with the proof of each update in it.

    Attributes:
        round: Round number.
        residues: Sum of the masked first polynomials, whose masks have cancelled, shape (ciphertexts, N); of an
            expanded aggregate with the sum of the second ones below, shape (2 ciphertexts, N).
        proofs: One per site of the cohort, by ascending roster position.
    """

    round: int
    residues: Residues
    proofs: tuple[UpdateProof, ...]

    @property
    def cohort(self) -> Cohort:
        """Roster positions of the summed sites."""
        return tuple(proof.header.site for proof in self.proofs)

    def to_bytes(self) -> bytes:
        """Encode for the wire."""
        width = self.proofs[0].header.modulus_bits // 8
        head = _AGGREGATE_HEAD.pack(_AGGREGATE_MAGIC, self.round, len(self.proofs))
        return b"".join((head, pack_residues(self.residues, width), *(proof.to_bytes() for proof in self.proofs)))

    @classmethod
    def from_bytes(cls, data: bytes | memoryview, agreement: Agreement) -> EncryptedAggregate:
        """Parse an aggregate by the sizes that the agreement fixes; proofs are parsed, not yet checked.

        Raises:
            LengthError: Another length than round and number of sites fix.
            MalformedError: Not an aggregate.
            ResidueRangeError: A residue is q or more.
        """
        view = memoryview(data)
        round_number, count = _aggregate_head(view, len(agreement.roster))
        kind = agreement.round_kind(round_number)
        plan = agreement.plan(kind)
        shape, is_seeded = agreement.sum_shape(kind, count), agreement.is_seeded(count)
        seeds_bytes = plan.ciphertexts * SEED_BYTES if is_seeded else DIGEST_BYTES
        proof_sizes = (HEADER_BYTES, *_proof_tail(seeds_bytes, agreement))
        sizes = [_AGGREGATE_HEAD.size, _body_bytes(shape, plan), *(proof_sizes * count)]
        if len(view) != sum(sizes):
            raise LengthError("aggregate bytes", expected=sum(sizes), got=len(view))
        _, body, *parts = _split(view, sizes)
        proofs = []
        for start in range(0, len(parts), len(proof_sizes)):
            header, seeds, checksum, tag, signature = map(bytes, parts[start : start + len(proof_sizes)])
            proofs.append(
                UpdateProof(
                    header=UpdateHeader.from_bytes(header),
                    seeds=seeds if is_seeded else b"",
                    seeds_digest=b"" if is_seeded else seeds,
                    checksum=checksum,
                    tag=tag,
                    signature=signature,
                )
            )
        residues = unpack_residues(body, plan.parameters.residue_bytes, plan.parameters.modulus, shape)
        return cls(round=round_number, residues=residues, proofs=tuple(proofs))


def body_checksum(body: bytes | memoryview) -> bytes:
    """Return the 128-bit XXH3 of packed residues."""
    return xxhash.xxh3_128_digest(body)


def check_no_secret(data: bytes | memoryview) -> None:
    """Stop at anything that SEAL has saved: no such object belongs in a message, and it may be a secret key.

    Raises:
        SecretMaterialError: The data begins like one.
    """
    if bytes(data[: len(_SEAL_MAGIC)]) == _SEAL_MAGIC:
        raise SecretMaterialError("a SEAL object (a key?) came in place of a message; nothing of it was read")


def _proof_tail(seeds_bytes: int, agreement: Agreement) -> tuple[int, int, int, int]:
    """Return the lengths of seeds (or their digest), checksum, sealed tag and signature."""
    return seeds_bytes, CHECKSUM_BYTES, sealed_tag_bytes(tag_vector_count(agreement.parameters)), SIGNATURE_BYTES


def _body_bytes(shape: tuple[int, int], plan: PackingPlan) -> int:
    rows, columns = shape
    return rows * columns * plan.parameters.residue_bytes


def _aggregate_head(view: memoryview, sites: int) -> tuple[int, int]:
    """Return round and number of proofs."""
    if len(view) < _AGGREGATE_HEAD.size:
        raise LengthError("aggregate bytes", expected=f"at least {_AGGREGATE_HEAD.size}", got=len(view))
    magic, round_number, count = _AGGREGATE_HEAD.unpack(view[: _AGGREGATE_HEAD.size])
    if magic != _AGGREGATE_MAGIC:
        raise MalformedError("aggregate", expected=_AGGREGATE_MAGIC.decode(), got=magic.hex())
    if _AGGREGATE_HEAD.pack(magic, round_number, count) != view[: _AGGREGATE_HEAD.size]:
        raise MalformedError("aggregate", expected="zeros between its fields", got="other bytes")
    if count > sites:  # before anything is laid out for so many
        raise MalformedError("proofs in the aggregate", expected=f"at most {sites}", got=count)
    return round_number, count


def _split(view: memoryview, sizes: Sequence[int]) -> list[memoryview]:
    parts = []
    start = 0
    for size in sizes:
        parts.append(view[start : start + size])
        start += size
    return parts
