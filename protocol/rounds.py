"""The terms of one round, fixed before its first update arrives.

Trust: public on both sides.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, fields
from typing import Final

from protocol.agreement import Agreement, Cohort
from protocol.errors import (
    AgreementMismatchError,
    CohortMismatchError,
    EpochMismatchError,
    LengthError,
    MalformedError,
    ParametersMismatchError,
    ProtocolError,
    RoundKindMismatchError,
    RoundMismatchError,
    SessionMismatchError,
    SiteMismatchError,
    StateMismatchError,
)
from protocol.packing import PackingPlan, RoundKind
from protocol.schedule import digest
from protocol.tags import tag_vector_count

_HEADER = struct.Struct("<4s4B2I2HIQ32s32s32s32s")
_MAGIC: Final = b"CWU1"


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateHeader:
    """What an update says about itself; 160 bytes, equal for all sites of a round but for `site`.

    Attributes:
        kind: RoundKind as an integer.
        modulus_bits: log2 q.
        ring_degree_bits: log2 N.
        tag_vectors: L.
        epoch: Key epoch, from 1.
        round: Round, from 0 (statistics).
        site: The sender's roster position.
        sites: The roster's length, which the guard bits follow from.
        ciphertexts: Rows of residues.
        values: Coefficients in use.
        agreement: A.
        session: X.
        cohort: Digest of the cohort.
        state: The state's MAC under the group key.
    """

    kind: int
    modulus_bits: int
    ring_degree_bits: int
    tag_vectors: int
    epoch: int
    round: int
    site: int
    sites: int
    ciphertexts: int
    values: int
    agreement: bytes
    session: bytes
    cohort: bytes
    state: bytes

    def to_bytes(self) -> bytes:
        """Encode in HEADER_BYTES bytes."""
        return _HEADER.pack(_MAGIC, *(getattr(self, field.name) for field in fields(self)))

    @classmethod
    def from_bytes(cls, data: bytes) -> UpdateHeader:
        """Decode exactly HEADER_BYTES bytes.

        Raises:
            LengthError: There are more or fewer.
            MalformedError: They do not begin like an update's header.
        """
        if len(data) != HEADER_BYTES:
            raise LengthError("update header bytes", expected=HEADER_BYTES, got=len(data))
        magic, *values = _HEADER.unpack(data)
        if magic != _MAGIC:
            raise MalformedError("update header", expected=_MAGIC.decode(), got=magic.hex())
        return cls(**dict(zip((field.name for field in fields(cls)), values, strict=True)))


HEADER_BYTES: Final = _HEADER.size

_MISMATCH: Final[dict[str, type[ProtocolError]]] = {
    "agreement": AgreementMismatchError,
    "session": SessionMismatchError,
    "epoch": EpochMismatchError,
    "round": RoundMismatchError,
    "kind": RoundKindMismatchError,
    "modulus_bits": ParametersMismatchError,
    "ring_degree_bits": ParametersMismatchError,
    "tag_vectors": ParametersMismatchError,
    "sites": ParametersMismatchError,
    "ciphertexts": ParametersMismatchError,
    "values": ParametersMismatchError,
    "cohort": CohortMismatchError,
    "state": StateMismatchError,
    "site": SiteMismatchError,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundTerms:
    """Everything that an update of one round must agree with.

    Attributes:
        agreement: The agreement.
        session: X.
        epoch: Key epoch.
        round: Round number.
        cohort: Roster positions of the sites in this sum.
        state: The state's MAC.
    """

    agreement: Agreement
    session: bytes
    epoch: int
    round: int
    cohort: Cohort
    state: bytes

    @property
    def kind(self) -> RoundKind:
        """What the round sums."""
        return self.agreement.round_kind(self.round)

    @property
    def plan(self) -> PackingPlan:
        """How the round's values are packed."""
        return self.agreement.plan(self.kind)

    @property
    def is_seeded(self) -> bool:
        """Whether the sum goes down with the sites' seeds, else with its second polynomials; both sides know before."""
        return self.agreement.is_seeded(len(self.cohort))

    @property
    def sum_shape(self) -> tuple[int, int]:
        """Shape of the sum's residues, which is also what a tag covers."""
        return self.agreement.sum_shape(self.kind, len(self.cohort))

    @property
    def tag_vectors(self) -> int:
        """L, secret vectors per tag."""
        return tag_vector_count(self.agreement.parameters)

    @property
    def cohort_digest(self) -> bytes:
        """Digest of the sorted cohort."""
        return digest("cohort", *self.cohort)

    @property
    def context(self) -> tuple[bytes | int, ...]:
        """What one-time keys of this sum are bound to, beside the state itself."""
        return (self.agreement.digest, self.session, self.epoch, self.round, self.cohort_digest)

    def header_of(self, site: int) -> UpdateHeader:
        """Return the only header that `site` may send."""
        parameters = self.agreement.parameters
        plan = self.plan
        return UpdateHeader(
            kind=int(self.kind),
            modulus_bits=parameters.modulus_bits,
            ring_degree_bits=parameters.ring_degree.bit_length() - 1,
            tag_vectors=self.tag_vectors,
            epoch=self.epoch,
            round=self.round,
            site=site,
            sites=len(self.agreement.roster),
            ciphertexts=plan.ciphertexts,
            values=plan.values,
            agreement=self.agreement.digest,
            session=self.session,
            cohort=self.cohort_digest,
            state=self.state,
        )

    def check_header(self, header: UpdateHeader) -> None:
        """Check a header field by field.

        Raises:
            ProtocolError: The subclass of the first field that differs, or SiteMismatchError for a site outside.
        """
        if header.site not in self.cohort:
            raise SiteMismatchError("site", expected=f"one of {self.cohort}", got=header.site)
        wanted = self.header_of(header.site)
        if header == wanted:
            return
        for name, error in _MISMATCH.items():
            expected, got = getattr(wanted, name), getattr(header, name)
            if expected != got:
                raise error(name, expected=_readable(expected), got=_readable(got))


def _readable(value: bytes | int) -> str:
    return value.hex()[:16] if isinstance(value, bytes) else str(value)
