"""Where a site stands in a run, and how sums and void notes move it on.

Trust: site only. Nothing moves it but what the cohort's sites have signed and tagged, and this site's own people.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property

from clients.data.table import Values
from clients.learning.learner import Learner
from clients.run.files import MAX_TRIES, Position, RunFiles
from clients.run.membership import Membership
from clients.run.results import Results
from clients.run.run_keys import RunKeys
from clients.secrets.release import release
from protocol.agreement import Cohort
from protocol.errors import (
    ProtocolError,
    ResidualError,
    RoundMismatchError,
    SiteMismatchError,
    StateMismatchError,
    TagError,
    ValueRefusedError,
)
from protocol.notes import NOTE_MAGIC, NoteKind, SiteNote
from protocol.packing import RoundKind
from protocol.rounds import RoundTerms
from protocol.state import initial_state, next_state
from protocol.update import EncryptedAggregate, SealedUpdate, UpdateProof


class StateChain:
    """One site's way through a run.

    Args:
        membership: The site.
        run: The run's id.
        make_learner: Reads the site's table and makes its learner, when one is needed.
    """

    def __init__(self, membership: Membership, run: bytes, make_learner: Callable[[], Learner]) -> None:
        self._membership = membership
        self._agreement = membership.agreement
        self._run = run
        self._make_learner = make_learner
        self._files = RunFiles(membership.vault, run)

    @cached_property
    def learner(self) -> Learner:
        """The site's learning."""
        return self._make_learner()

    @cached_property
    def results(self) -> Results:
        """What the site keeps for its own people."""
        return Results(self._membership, self.learner, self._run)

    def position(self, keys: RunKeys) -> Position:
        """Return where this site stands, with what it or its people have given up themselves."""
        position = self._files.position() or Position(
            round=0,
            state=initial_state(self._agreement.digest),
            members=keys.session.sites,
            learner=self.learner.initial_state(),
            personal=self.learner.initial_personal(),
        )
        given_up = self._files.journal.overruled(position.round)
        if self._files.journal.has_voided(position.state):
            given_up.add(self._membership.site)
        return replace(position, voided=tuple(sorted(given_up.union(position.voided))))

    def terms(self, position: Position, keys: RunKeys, cohort: Cohort) -> RoundTerms:
        """Return the terms of the round that this site stands before, for a cohort."""
        return RoundTerms(
            agreement=self._agreement,
            session=keys.session.digest,
            epoch=keys.epoch,
            round=position.round,
            cohort=cohort,
            state=keys.common.state_mac(position.upload_state),
        )

    def catch_up(self, history: Sequence[bytes], keys: RunKeys) -> tuple[Position, RunKeys]:
        """Apply what came, in order; what is already applied is passed over.

        Args:
            history: Void notes and sums.
            keys: Of the epoch that this site stands in.

        Returns:
            Where it stands now, and the keys of that epoch.

        Raises:
            ProtocolError: Something was refused. What came before it was good, and stays applied.
        """
        position = self.position(keys)
        for data in history:
            if data[: len(NOTE_MAGIC)] == NOTE_MAGIC:
                position = self._take_void(data, position, keys)
            else:
                position, keys = self._take_sum(data, position, keys)
        return position, keys

    def _take_void(self, data: bytes, position: Position, keys: RunKeys) -> Position:
        note = SiteNote.from_bytes(data, kind=NoteKind.VOID, agreement=self._agreement, session=keys.session.digest)
        if note.round < position.round or note.site in position.voided:
            return position
        if note.round > position.round:
            raise RoundMismatchError("round of the void note", expected=position.round, got=note.round)
        self._agreement.round_kind(note.round)  # past the last round there is nothing to give up
        if note.site not in position.members or note.site == self._membership.site:
            raise SiteMismatchError("site of the void note", expected=position.members, got=note.site)
        state = keys.common.state_mac(position.state)
        if note.state != state:
            raise StateMismatchError("state of the void note", expected=state.hex()[:16], got=note.state.hex()[:16])
        position = replace(position, voided=tuple(sorted((*position.voided, note.site))))
        self._files.keep_position(position)
        name = self._agreement.roster[note.site].name
        self._membership.vault.record(
            "given-up",
            run=self._run.hex(),
            round=position.round,
            site=name,
            text=f"{name} has signed that nothing of it left in round {position.round}; it goes on without it",
        )
        return position

    def _take_sum(self, data: bytes, position: Position, keys: RunKeys) -> tuple[Position, RunKeys]:
        aggregate = EncryptedAggregate.from_bytes(data, self._agreement)
        if aggregate.round < position.round:
            return position, keys
        if aggregate.round > position.round:
            raise RoundMismatchError("round of the sum", expected=position.round, got=aggregate.round)
        if self._files.tries() >= MAX_TRIES:
            raise TagError("aggregates refused in this round", expected=f"fewer than {MAX_TRIES}", got=MAX_TRIES)
        try:
            moved = self._apply(aggregate, position, keys)
        except ResidualError:
            # the tags held, so no accident explains this: the run is over for this site
            self._files.count_tries(MAX_TRIES)
            raise
        except ProtocolError:
            self._files.count_tries(1)
            raise
        self._files.move_to(moved)
        if self._agreement.epoch_of(moved.round) != keys.epoch:
            keys = RunKeys.load(self._membership, self._run)
        return self.position(keys), keys

    def _apply(self, aggregate: EncryptedAggregate, position: Position, keys: RunKeys) -> Position:
        started = time.perf_counter()
        self._agreement.check_cohort(aggregate.cohort, members=position.members)
        terms = self.terms(position, keys, aggregate.cohort)
        exact = release(
            aggregate,
            terms=terms,
            state=position.upload_state,
            epoch_keys=keys.common,
            own_proof=self._own_proof(position, terms),
        )
        seconds = round(time.perf_counter() - started, 6)
        self._membership.vault.record(
            "released", run=self._run.hex(), round=position.round, seconds=seconds, cohort=len(aggregate.cohort)
        )
        kind = terms.kind
        with told_by_round(position.round):
            learner = self.learner.apply(position.learner, kind, exact)
        moved = Position(
            round=position.round + 1,
            state=next_state(position.upload_state, exact, learner.shared_digest()),
            members=aggregate.cohort if kind is RoundKind.STATISTICS else position.members,
            learner=learner,
            personal=self.learner.personal_after(
                position.learner, learner, self._trained_personal(position, aggregate.cohort)
            ),
        )
        self.results.after_sum(position, moved)
        return moved

    def _trained_personal(self, position: Position, cohort: Cohort) -> Values:
        """Return the personal values that were trained for a sum, if the sum contains this site."""
        pending = self._files.pending(position.round)
        return pending.personal if pending is not None and self._membership.site in cohort else position.personal

    def _own_proof(self, position: Position, terms: RoundTerms) -> UpdateProof | None:
        uploaded = self._files.journal.uploaded(position.upload_state, terms.cohort)
        if uploaded is not None:
            return SealedUpdate.from_bytes(uploaded, terms).proof
        if self._membership.site in terms.cohort:
            raise TagError("own entry in the aggregate", expected="none: this site did not upload", got="one")
        return None


@contextmanager
def told_by_round(round_number: int) -> Iterator[None]:
    """Name the round in what training refuses."""
    try:
        yield
    except ValueRefusedError as error:
        raise ValueRefusedError(f"round {round_number}: {error}") from error
