"""The small messages of a round: a site's signed note, and the provider's call to upload.

A named cohort's masks cancel only when all of it has uploaded, so a round waits for each upload. It can be given up in
two ways. The missing site signs that nothing of it has left in this round, and never will ("void"); or the people of
every other site overrule it. Either way the others go on in a state of their own, over the same cohort without that
site: what a provider gains by it is the difference of two sums, the update of the site that was given up.

Trust: both sides parse them; neither carries anything about data or model but the state's MAC.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from protocol.agreement import Agreement, Cohort
from protocol.errors import (
    AgreementMismatchError,
    EpochMismatchError,
    LengthError,
    MalformedError,
    RoundMismatchError,
    SessionMismatchError,
    SiteMismatchError,
)
from protocol.parameters import MAX_SITES
from protocol.schedule import frame

_NOTE = struct.Struct("<4sHHII16s32s32s32s64s")
NOTE_MAGIC: Final = b"CWN1"
"""How every note begins."""

_VOIDED_BYTES: Final = MAX_SITES // 8  # a bit per roster position
_CALL = struct.Struct("<4sIHxx")
_CALL_MAGIC: Final = b"CWC1"
_CALL_SITE: Final = struct.Struct("<H")


class NoteKind(IntEnum):
    """What a site says."""

    READY = 1
    CLOSED = 2
    VOID = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteNote:
    """A site is ready to upload for a round, has closed the run, or will never upload for a round; without any data.

    Attributes:
        kind: What it says.
        site: Roster position.
        epoch: Key epoch.
        round: Round number.
        voided: Roster positions whose uploads for this round the site takes as given up, ascending.
        agreement: A.
        session: X.
        state: MAC of the state the site is in; in a VOID note, of the one that the round began in.
        signature: Over all of it.
    """

    kind: NoteKind
    site: int
    epoch: int
    round: int
    voided: Cohort
    agreement: bytes
    session: bytes
    state: bytes
    signature: bytes

    def signed_bytes(self) -> bytes:
        """Return what the site signs."""
        return frame(
            "note",
            int(self.kind),
            self.agreement,
            self.session,
            self.epoch,
            self.round,
            _bits(self.voided),
            self.site,
            self.state,
        )

    def to_bytes(self) -> bytes:
        """Encode for the wire."""
        return _NOTE.pack(
            NOTE_MAGIC,
            self.kind,
            self.site,
            self.epoch,
            self.round,
            _bits(self.voided),
            self.agreement,
            self.session,
            self.state,
            self.signature,
        )

    @classmethod
    def from_bytes(
        cls, data: bytes, *, kind: NoteKind, agreement: Agreement, session: bytes, round_number: int | None = None
    ) -> SiteNote:
        """Parse a note that must be of this kind and run, and check its signature.

        Args:
            data: Bytes from outside.
            kind: What the note must say.
            agreement: A; fixes the epoch of each round.
            session: X.
            round_number: The round that it must be for; None for any.

        Raises:
            ProtocolError: The subclass of the first check that failed.
        """
        if len(data) != _NOTE.size:
            raise LengthError("note bytes", expected=_NOTE.size, got=len(data))
        magic, got_kind, site, epoch, got_round, bits, got_agreement, got_session, state, signature = _NOTE.unpack(data)
        if magic != NOTE_MAGIC or got_kind != kind:
            raise MalformedError("note", expected=f"{NOTE_MAGIC.decode()} {kind.name}", got=f"{magic.hex()} {got_kind}")
        if got_agreement != agreement.digest:
            raise AgreementMismatchError("agreement", expected=agreement.digest.hex(), got=got_agreement.hex())
        if got_session != session:
            raise SessionMismatchError("session", expected=session.hex(), got=got_session.hex())
        if round_number not in {None, got_round}:
            raise RoundMismatchError("round", expected=round_number, got=got_round)
        if epoch != agreement.epoch_of(got_round):
            raise EpochMismatchError("epoch", expected=agreement.epoch_of(got_round), got=epoch)
        voided = tuple(place for place in range(MAX_SITES) if bits[place // 8] >> place % 8 & 1)
        for position in (site, *voided):
            if position >= len(agreement.roster):
                raise SiteMismatchError("roster position", expected=f"below {len(agreement.roster)}", got=position)
        note = cls(
            kind=kind,
            site=site,
            epoch=epoch,
            round=got_round,
            voided=voided,
            agreement=got_agreement,
            session=got_session,
            state=state,
            signature=signature,
        )
        agreement.roster[site].verify(signature, note.signed_bytes())
        return note


def _bits(sites: Cohort) -> bytes:
    """Return a bit per roster position, little-endian."""
    return sum(1 << site for site in sites).to_bytes(_VOIDED_BYTES, "little")


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadCall:
    """The provider names the cohort of a round; each site in it may now upload, once.

    Attributes:
        round: Round number.
        cohort: Roster positions, ascending.
    """

    round: int
    cohort: Cohort

    def to_bytes(self) -> bytes:
        """Encode for the wire."""
        head = _CALL.pack(_CALL_MAGIC, self.round, len(self.cohort))
        return head + b"".join(_CALL_SITE.pack(site) for site in self.cohort)

    @classmethod
    def from_bytes(cls, data: bytes) -> UploadCall:
        """Parse a call; whether the cohort is allowed is checked against the agreement.

        Raises:
            LengthError: Another length than its count fixes.
            MalformedError: Not a call.
        """
        if len(data) < _CALL.size:
            raise LengthError("upload call bytes", expected=f"at least {_CALL.size}", got=len(data))
        magic, round_number, count = _CALL.unpack(data[: _CALL.size])
        if magic != _CALL_MAGIC:
            raise MalformedError("upload call", expected=_CALL_MAGIC.decode(), got=magic.hex())
        if len(data) != _CALL.size + count * _CALL_SITE.size:
            raise LengthError("upload call bytes", expected=_CALL.size + count * _CALL_SITE.size, got=len(data))
        cohort = tuple(site for (site,) in _CALL_SITE.iter_unpack(data[_CALL.size :]))
        call = cls(round=round_number, cohort=cohort)
        if call.to_bytes() != data:
            raise MalformedError("upload call", expected="zeros between its fields", got="other bytes")
        return call
