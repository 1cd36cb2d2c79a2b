"""A site's part in the rounds: apply the sums so far, prepare a contribution, upload it once per state, close.

Trust: site only. A contribution leaves as a sealed update or not at all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from clients.learning.learner import Learner
from clients.run.files import Position, RunFiles
from clients.run.membership import Membership
from clients.run.run_keys import RunKeys
from clients.run.state_chain import StateChain, told_by_round
from clients.secrets.sealing import seal_update
from protocol.agreement import Cohort
from protocol.errors import (
    CohortError,
    DataError,
    RoundMismatchError,
    SecondUploadError,
    SiteMismatchError,
)
from protocol.notes import NoteKind, SiteNote, UploadCall
from protocol.packing import RoundKind
from protocol.state import initial_state


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
        self._files = RunFiles(membership.vault, run)
        self._chain = StateChain(membership, run, make_learner)

    def handle_catch_up(self, history: Sequence[bytes]) -> int:
        """Apply a part of what this site has missed, without training for the rounds in between.

        Args:
            history: Void notes and sums, in the order in which they apply; what is already applied is passed over.

        Returns:
            The round whose sum this site needs next.

        Raises:
            ProtocolError: A sum was refused.
        """
        position, _ = self._chain.catch_up(history, self._keys())
        return position.round

    def handle_prepare(self, round_number: int, history: Sequence[bytes]) -> bytes:
        """Apply the history that came, train, and say that this site is ready.

        Args:
            round_number: The round to prepare.
            history: Void notes and sums, in the order in which they apply; what is already applied is passed over.

        Returns:
            A signed note without any data.

        Raises:
            ProtocolError: A sum was refused, or this site does not stand before that round.
            ValueRefusedError: Training diverged; names round and tensor.
        """
        position, keys = self._chain.catch_up(history, self._keys())
        if position.round != round_number:
            raise RoundMismatchError("round", expected=position.round, got=round_number)
        is_prepared = self._files.pending(round_number) is not None or self._membership.site in position.voided
        if not is_prepared and self._files.journal.uploaded(position.upload_state) is None:
            started = time.perf_counter()
            kind = self._agreement.round_kind(round_number)
            with told_by_round(round_number):
                contribution = self._chain.learner.contribution(position.learner, position.personal, kind, round_number)
            if kind is RoundKind.STATISTICS:
                self._files.keep_table(self._chain.learner.table)  # first: with a contribution, nothing is made again
                self._record_table()
            self._files.keep_pending(contribution, round_number)
            self._record("trained", round_number, started, kind=kind.name.lower())
        return self._note(NoteKind.READY, position, keys)

    def handle_upload(self, call_bytes: bytes) -> bytes:
        """Seal this round's contribution for the cohort that the provider named.

        Returns:
            The sealed update; the same bytes if they were asked for before.

        Raises:
            SecondUploadError: This state's update left for another cohort.
            ProtocolError: The call does not fit this site's round, or names a cohort that the agreement forbids.
        """
        call = UploadCall.from_bytes(call_bytes)
        keys = self._keys()
        position = self._chain.position(keys)
        if call.round != position.round:
            raise RoundMismatchError("round", expected=position.round, got=call.round)
        uploaded = self._files.journal.uploaded(position.upload_state, call.cohort)
        if uploaded is not None:
            return uploaded
        self._check_cohort(call.cohort, position)
        pending = self._files.pending(call.round)
        if pending is None:
            raise RoundMismatchError("upload", expected="after this round was prepared", got="before")
        started = time.perf_counter()
        terms = self._chain.terms(position, keys, call.cohort)
        packed = pending.packed
        if call.cohort != position.members and terms.kind is not RoundKind.STATISTICS:
            packed = terms.plan.model_only(packed)
        update = seal_update(
            packed,
            terms=terms,
            state=position.upload_state,
            site=self._membership.site,
            identity=self._membership.identity,
            pair_keys=keys.pairs,
            epoch_keys=keys.common,
        ).to_bytes()
        self._files.journal.keep_upload(
            update,
            state=position.upload_state,
            round_state=position.state,
            round_number=position.round,
            cohort=call.cohort,
        )
        self._record("sealed", position.round, started, bytes=len(update), cohort=len(call.cohort))
        return update

    def handle_void(self, round_number: int) -> bytes:
        """Promise that nothing of this site has left in this round and that nothing will, so that others may go on.

        Returns:
            A signed note; the same one if it was asked for before.

        Raises:
            SecondUploadError: An update has left.
            RoundMismatchError: This site does not stand before that round.
            MalformedError: The run has no such round.
            CohortError: The others would be too few for a sum, so that the promise would end the run.
        """
        keys = self._keys()
        position = self._files.position()  # without the learner: a site whose table is damaged can say this, too
        here, state = (position.round, position.state) if position else (0, initial_state(self._agreement.digest))
        if round_number != here:
            raise RoundMismatchError("round", expected=here, got=round_number)
        self._agreement.round_kind(round_number)
        if self._files.journal.first_cohort(state) is not None:
            raise SecondUploadError("update for this round", expected="none that has left", got="one")
        if not self._files.journal.has_voided(state):
            self._check_others(
                position.members if position else keys.session.sites, position.voided if position else ()
            )
            self._files.journal.keep_void(state, round_number)
            self._tell("voided", round_number, f"this site has signed that nothing of it left in round {round_number}")
        return self._signed_note(NoteKind.VOID, round_number, state, (), keys)

    def overrule(self, round_number: int, site: int) -> None:
        """Give up another site's upload for this round, by decision of this site's people.

        If that upload has left after all, whoever has it and the sums gets that site's update. All other sites must
        decide the same, or they cannot go on together.

        Args:
            round_number: The round that waits; this site must stand before it.
            site: Roster position of the site that is given up.

        Raises:
            RoundMismatchError: This site does not stand before that round.
            MalformedError: The run has no such round.
            SiteMismatchError: That site cannot be in a sum of this run.
        """
        position = self._chain.position(self._keys())
        if round_number != position.round:
            raise RoundMismatchError("round", expected=position.round, got=round_number)
        self._agreement.round_kind(round_number)
        if site not in position.members:
            raise SiteMismatchError("site in the run", expected=position.members, got=site)
        if site not in position.voided:
            self._files.journal.keep_overruled(site, round_number)
            name = self._agreement.roster[site].name
            self._tell(
                "overruled", round_number, f"this site's people gave up {name}'s upload for round {round_number}"
            )

    def handle_close(self, history: Sequence[bytes]) -> bytes:
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
        keys = self._keys()
        try:
            position, keys = self._chain.catch_up(history, keys)
        except DataError:
            self._files.forget()  # a site that could never read its table has no part in this run, and keeps no secret
            raise
        if position.round != self._agreement.last_round + 1:
            raise RoundMismatchError("round", expected=self._agreement.last_round + 1, got=position.round)
        self._chain.results.finish(position)
        note = self._note(NoteKind.CLOSED, position, keys)
        self._files.close(note)
        self._record("closed", self._agreement.last_round, time.perf_counter())
        return note

    def _keys(self) -> RunKeys:
        return RunKeys.load(self._membership, self._run)

    def _check_cohort(self, cohort: Cohort, position: Position) -> None:
        """Check a cohort that this site is to upload for.

        Raises:
            SecondUploadError: This site promised to upload nothing; or its update left in another run, or for other
                sites than these and those that were given up since.
            CohortError: The agreement forbids the cohort.
            SiteMismatchError: This site is not in it.
        """
        here = self._membership.site
        if here in position.voided:
            raise SecondUploadError("upload for this round", expected="none: it was given up", got="a call for it")
        self._files.journal.check_run(position.state)
        first = self._files.journal.first_cohort(position.state)
        if first is not None:
            # otherwise the difference of two sums could be the update of a site that was not given up
            left = tuple(site for site in first if site not in position.voided)
            if cohort != left:
                raise SecondUploadError("cohort for this round", expected=left, got=cohort)
        allowed = [site for site in position.members if site not in position.voided]
        self._agreement.check_cohort(cohort, members=allowed)
        if here not in cohort:
            raise SiteMismatchError("cohort", expected=f"one with site {here}", got=cohort)

    def _check_others(self, members: Cohort, voided: Cohort) -> None:
        others = [site for site in members if site not in {*voided, self._membership.site}]
        smallest = self._agreement.terms.cohort.smallest_cohort
        if len(others) < smallest:
            raise CohortError("sites left for this round", expected=f"at least {smallest}", got=len(others))

    def _note(self, kind: NoteKind, position: Position, keys: RunKeys) -> bytes:
        return self._signed_note(kind, position.round, position.upload_state, position.voided, keys)

    def _signed_note(self, kind: NoteKind, round_number: int, state: bytes, voided: Cohort, keys: RunKeys) -> bytes:
        unsigned = SiteNote(
            kind=kind,
            site=self._membership.site,
            epoch=keys.epoch,
            round=round_number,
            voided=voided,
            agreement=self._agreement.digest,
            session=keys.session.digest,
            state=keys.common.state_mac(state),
            signature=b"",
        )
        return replace(unsigned, signature=self._membership.identity.sign(unsigned.signed_bytes())).to_bytes()

    def _record_table(self) -> None:
        """Tell the site's own people what was read, once per run; rows that repeat others are kept."""
        table = self._chain.learner.table
        self._membership.vault.record(
            "table", run=self._run.hex(), records=table.records, repeated_records=table.repeated
        )

    def _tell(self, event: str, round_number: int, text: str) -> None:
        self._membership.vault.record(event, run=self._run.hex(), round=round_number, text=text)

    def _record(self, event: str, round_number: int, started: float, **fields: object) -> None:
        seconds = round(time.perf_counter() - started, 6)
        self._membership.vault.record(event, run=self._run.hex(), round=round_number, seconds=seconds, **fields)
