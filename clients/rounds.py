"""A site's part in the rounds: apply the sums so far, prepare a contribution, upload it once, close.

Trust: site only. A contribution leaves as a sealed update or not at all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property

from clients.keys import EpochKeys
from clients.learner import Learner
from clients.membership import Membership
from clients.opening import Opening
from clients.release import release
from clients.results import Results
from clients.run_files import MAX_TRIES, Position, RunFiles
from clients.sealing import seal_update
from clients.table import Values
from protocol.agreement import Cohort
from protocol.errors import (
    DataError,
    ProtocolError,
    ResidualError,
    RoundMismatchError,
    SessionMismatchError,
    SiteMismatchError,
    TagError,
    ValueRefusedError,
)
from protocol.handshake import Session
from protocol.notes import NoteKind, SiteNote, UploadCall
from protocol.packing import RoundKind
from protocol.rounds import RoundTerms
from protocol.state import initial_state, next_state
from protocol.update import EncryptedAggregate, SealedUpdate, UpdateProof


class Rounds:
    """Handles the messages of one run's rounds.

    Args:
        membership: The site.
        run: The run's id.
        make_learner: Reads the site's table and makes its learner, when a message needs one.
    """

    def __init__(self, membership: Membership, run: bytes, make_learner: Callable[[], Learner]) -> None:
        self._membership = membership
        self._agreement = membership.agreement
        self._run = run
        self._make_learner = make_learner
        self._files = RunFiles(membership.vault, run)

    def handle_prepare(self, round_number: int, aggregates: Sequence[bytes]) -> bytes:
        """Apply the sums that came, train, and say that this site is ready.

        Args:
            round_number: The round to prepare.
            aggregates: Sums of rounds before it, in order; those already applied are passed over.

        Returns:
            A signed note without any data.

        Raises:
            ProtocolError: A sum was refused, or this site does not stand before that round.
            ValueRefusedError: Training diverged; names round and tensor.
        """
        session, epoch, keys = self._enter()
        position = self._catch_up(aggregates, session, epoch, keys)
        if position.round != round_number:
            raise RoundMismatchError("round", expected=position.round, got=round_number)
        if self._files.pending(round_number) is None and self._files.uploaded(position.state) is None:
            started = time.perf_counter()
            kind = self._agreement.round_kind(round_number)
            with _told_by_round(round_number):
                contribution = self._learner.contribution(position.learner, position.personal, kind, round_number)
            self._files.keep_pending(contribution, round_number)
            if kind is RoundKind.STATISTICS:
                self._files.keep_table(self._learner.table)
                self._record_table()
            self._record("trained", round_number, started, kind=kind.name.lower())
        return self._note(NoteKind.READY, position, session, epoch, keys)

    def handle_upload(self, call_bytes: bytes) -> bytes:
        """Seal this round's contribution for the cohort that the provider named.

        Returns:
            The sealed update; the same bytes if they were asked for before.

        Raises:
            SecondUploadError: This state's update left for another cohort.
            ProtocolError: The call does not fit this site's round, or names a cohort that the agreement forbids.
        """
        call = UploadCall.from_bytes(call_bytes)
        session, epoch, keys = self._enter()
        position = self._position(session)
        if call.round != position.round:
            raise RoundMismatchError("round", expected=position.round, got=call.round)
        uploaded = self._files.uploaded(position.state, call.cohort)
        if uploaded is not None:
            return uploaded
        self._agreement.check_cohort(call.cohort, members=position.members)
        if self._membership.site not in call.cohort:
            raise SiteMismatchError("cohort", expected=f"one with site {self._membership.site}", got=call.cohort)
        pending = self._files.pending(call.round)
        if pending is None:
            raise RoundMismatchError("upload", expected="after this round was prepared", got="before")
        started = time.perf_counter()
        terms = self._terms(position, session, epoch, keys, call.cohort)
        packed = pending.packed
        if call.cohort != position.members and terms.kind is not RoundKind.STATISTICS:
            packed = terms.plan.model_only(packed)
        update = seal_update(
            packed,
            terms=terms,
            state=position.state,
            site=self._membership.site,
            identity=self._membership.identity,
            pair_keys=Opening(self._membership, self._run).pair_keys(session),
            epoch_keys=keys,
        ).to_bytes()
        self._files.keep_upload(update, state=position.state, round_number=position.round, cohort=call.cohort)
        self._record("sealed", position.round, started, bytes=len(update), cohort=len(call.cohort))
        return update

    def handle_close(self, aggregates: Sequence[bytes]) -> bytes:
        """Apply the last sum, write models and results, delete the run's secrets, and say in which state this ends.

        Returns:
            A signed note; the same one if it was asked for before.

        Raises:
            ProtocolError: A sum was refused, or the run has not reached its end.
        """
        closed = self._files.closed()
        if closed is not None:
            self._files.forget()  # a crash may have come between the note and this
            return closed
        session, epoch, keys = self._enter()
        try:
            position = self._catch_up(aggregates, session, epoch, keys)
        except DataError:
            self._files.forget()  # a site that could never read its table has no part in this run, and keeps no secret
            raise
        if position.round != self._agreement.last_round + 1:
            raise RoundMismatchError("round", expected=self._agreement.last_round + 1, got=position.round)
        self._results.finish(position)
        note = self._note(NoteKind.CLOSED, position, session, epoch, keys)
        self._files.close(note)
        self._record("closed", self._agreement.last_round, time.perf_counter())
        return note

    @cached_property
    def _learner(self) -> Learner:
        return self._make_learner()

    @property
    def _results(self) -> Results:
        return Results(self._membership, self._learner, self._run)

    def _enter(self) -> tuple[Session, int, EpochKeys]:
        session_bytes = self._files.session()
        if session_bytes is None or self._files.closed() is not None:
            raise SessionMismatchError("run", expected="one that is open", got=self._run.hex())
        session = Session.from_bytes(session_bytes, self._agreement, self._run)
        epoch, secret = self._files.epoch()
        return session, epoch, EpochKeys(secret, self._agreement, session.digest)

    def _position(self, session: Session) -> Position:
        return self._files.position() or Position(
            round=0,
            state=initial_state(self._agreement.digest),
            members=session.sites,
            learner=self._learner.initial_state(),
            personal=self._learner.initial_personal(),
        )

    def _terms(
        self, position: Position, session: Session, epoch: int, keys: EpochKeys, cohort: tuple[int, ...]
    ) -> RoundTerms:
        return RoundTerms(
            agreement=self._agreement,
            session=session.digest,
            epoch=epoch,
            round=position.round,
            cohort=cohort,
            state=keys.state_mac(position.state),
        )

    def _catch_up(self, aggregates: Sequence[bytes], session: Session, epoch: int, keys: EpochKeys) -> Position:
        position = self._position(session)
        for data in aggregates:
            aggregate = EncryptedAggregate.from_bytes(data, self._agreement)
            if aggregate.round < position.round:
                continue
            if aggregate.round > position.round:
                raise RoundMismatchError("round of the sum", expected=position.round, got=aggregate.round)
            if self._files.tries() >= MAX_TRIES:
                raise TagError("aggregates refused in this round", expected=f"fewer than {MAX_TRIES}", got=MAX_TRIES)
            try:
                position = self._apply(aggregate, position, session, epoch, keys)
            except ResidualError:
                # the tags held, so no accident explains this: the run is over for this site
                self._files.count_tries(MAX_TRIES)
                raise
            except ProtocolError:
                self._files.count_tries(1)
                raise
            self._files.move_to(position)
        return position

    def _apply(
        self, aggregate: EncryptedAggregate, position: Position, session: Session, epoch: int, keys: EpochKeys
    ) -> Position:
        started = time.perf_counter()
        self._agreement.check_cohort(aggregate.cohort, members=position.members)
        terms = self._terms(position, session, epoch, keys, aggregate.cohort)
        exact = release(
            aggregate,
            terms=terms,
            state=position.state,
            epoch_keys=keys,
            own_proof=self._own_proof(position, terms),
        )
        self._record("released", position.round, started, cohort=len(aggregate.cohort))
        kind = terms.kind
        with _told_by_round(position.round):
            learner = self._learner.apply(position.learner, kind, exact)
        moved = Position(
            round=position.round + 1,
            state=next_state(position.state, exact, learner.shared_digest()),
            members=aggregate.cohort if kind is RoundKind.STATISTICS else position.members,
            learner=learner,
            personal=self._personal_after(position, aggregate.cohort),
        )
        self._results.after_sum(position, moved)
        return moved

    def _personal_after(self, position: Position, cohort: Cohort) -> Values:
        """Return the personal values that were trained for a sum, if the sum contains this site."""
        pending = self._files.pending(position.round)
        return pending.personal if pending is not None and self._membership.site in cohort else position.personal

    def _own_proof(self, position: Position, terms: RoundTerms) -> UpdateProof | None:
        uploaded = self._files.uploaded(position.state, terms.cohort)
        if uploaded is not None:
            return SealedUpdate.from_bytes(uploaded, terms).proof
        if self._membership.site in terms.cohort:
            raise TagError("own entry in the aggregate", expected="none: this site did not upload", got="one")
        return None

    def _note(self, kind: NoteKind, position: Position, session: Session, epoch: int, keys: EpochKeys) -> bytes:
        unsigned = SiteNote(
            kind=kind,
            site=self._membership.site,
            epoch=epoch,
            round=position.round,
            agreement=self._agreement.digest,
            session=session.digest,
            state=keys.state_mac(position.state),
            signature=b"",
        )
        return replace(unsigned, signature=self._membership.identity.sign(unsigned.signed_bytes())).to_bytes()

    def _record_table(self) -> None:
        """Tell the site's own people what was read, once per run; rows that repeat others are kept."""
        table = self._learner.table
        self._membership.vault.record(
            "table", run=self._run.hex(), records=table.records, repeated_records=table.repeated
        )

    def _record(self, event: str, round_number: int, started: float, **fields: object) -> None:
        seconds = round(time.perf_counter() - started, 6)
        self._membership.vault.record(event, run=self._run.hex(), round=round_number, seconds=seconds, **fields)


@contextmanager
def _told_by_round(round_number: int) -> Iterator[None]:
    try:
        yield
    except ValueRefusedError as error:
        raise ValueRefusedError(f"round {round_number}: {error}") from error
