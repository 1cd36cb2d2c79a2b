"""Sums of rounds in which a site is given up, or that begin a key epoch, made one message at a time.

Trust: tests only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from clients.run.files import Position, RunFiles
from clients.run.run_keys import RunKeys
from clients.secrets.ckks import Decryptor
from protocol.agreement import Cohort
from protocol.envelope import ROUND_NUMBER, Request
from protocol.notes import NOTE_MAGIC, NoteKind, SiteNote
from protocol.packing import Integers
from protocol.rounds import RoundTerms
from protocol.update import EncryptedAggregate
from strategies.round_sum import RoundSum


def files_of(federation, site: int) -> RunFiles:
    """Return a site's files of the run."""
    return RunFiles(federation.vault(site), federation.run)


def stand(federation, site: int) -> Position:
    """Return where a site stands, by its own vault."""
    return files_of(federation, site).position()


def round_after(history: Sequence[bytes]) -> int:
    """Return the round that comes after a history of void notes and sums."""
    return sum(not step.startswith(NOTE_MAGIC) for step in history)


def read_note(federation, data: bytes, kind: NoteKind = NoteKind.READY) -> SiteNote:
    """Parse a note as the provider does."""
    session = federation.parsed_session().digest
    return SiteNote.from_bytes(data, kind=kind, agreement=federation.agreement, session=session)


def ready(federation, site: int, history: Sequence[bytes]) -> SiteNote:
    """Bring a site to where a history ends, and return its note."""
    return read_note(federation, federation.prepare(site, round_after(history), history))


def void(federation, site: int, round_number: int) -> bytes:
    """Ask a site for its void note."""
    return federation.ask(site, Request.VOID, round=ROUND_NUMBER.pack(round_number))["note"]


def signed_void(federation, site: int, **changes: object) -> bytes:
    """Make a site sign a void note that its product would not sign: for the round it stands before, or changed."""
    member, stands = federation.member(site), stand(federation, site)
    keys = RunKeys.load(member, federation.run)
    fields = {
        "kind": NoteKind.VOID,
        "site": site,
        "epoch": keys.epoch,
        "round": stands.round,
        "voided": (),
        "agreement": member.agreement.digest,
        "session": keys.session.digest,
        "state": keys.common.state_mac(stands.state),
        "signature": b"",
    }
    note = SiteNote(**fields | changes)
    return replace(note, signature=member.identity.sign(note.signed_bytes())).to_bytes()


def sum_up(federation, cohort: Cohort, history: Sequence[bytes]) -> bytes:
    """Bring a cohort to where a history ends, collect its updates, and add them up."""
    notes = [ready(federation, site, history) for site in cohort]
    assert len({note.state for note in notes}) == 1
    terms = RoundTerms(
        agreement=federation.agreement,
        session=notes[0].session,
        epoch=notes[0].epoch,
        round=notes[0].round,
        cohort=tuple(cohort),
        state=notes[0].state,
    )
    total = RoundSum(terms)
    for site in cohort:
        total.add(federation.upload(site, cohort, terms.round))
    return total.close().to_bytes()


def read_sum(federation, data: bytes) -> dict[str, Integers]:
    """Decrypt a sum of the epoch that the sites are in, unchecked, with what site 0 has; return it by field."""
    keys = RunKeys.load(federation.member(0), federation.run)
    total = EncryptedAggregate.from_bytes(data, federation.agreement)
    packed = Decryptor(keys.common.ckks).decrypt(total.residues, [proof.seeds for proof in total.proofs])
    return federation.agreement.plan(federation.agreement.round_kind(total.round)).unpack(packed)
