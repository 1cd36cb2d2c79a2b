"""Collect the updates of a named cohort: wait for sites that went away, and let them give up what never left.

Trust: runs at the provider, without a secret key.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from flwr.app import Message

from protocol.envelope import ROUND_NUMBER, Request
from protocol.errors import ProtocolError, StateMismatchError
from protocol.notes import NoteKind, UploadCall
from protocol.rounds import RoundTerms
from strategies.attendance import Answer, Attendance
from strategies.cohort import read_note
from strategies.history import RunHistory
from strategies.journal import RunJournal
from strategies.round_sum import RoundSum
from strategies.streaming_grid import StreamingGrid

_LONGEST_SLICE_SECONDS: Final = 30.0
_SLICES: Final = 6  # at least, so that a short wait has room for asking again
_PAUSE_SECONDS: Final = 0.1


class Collection:
    """The uploads of one cohort.

    Args:
        grid: Sends and receives.
        attendance: Where the sites are.
        history: Keeps void notes.
        journal: Told what is refused and what is waited for.
        terms: The round's terms, cohort included.
        prepare: Makes the message that has a site prepare the round.

    Attributes:
        total: The running sum.
        up_bytes: Length of an update.
        seconds: What checking and adding took.
        is_voided: Whether a site of the cohort has signed that it will never upload.
        heard: Sites that answered, be it by a refusal.
    """

    def __init__(
        self,
        *,
        grid: StreamingGrid,
        attendance: Attendance,
        history: RunHistory,
        journal: RunJournal,
        terms: RoundTerms,
        prepare: Callable[[int], Message],
    ) -> None:
        self._grid = grid
        self._attendance = attendance
        self._history = history
        self._journal = journal
        self._terms = terms
        self._prepare = prepare
        self._call = UploadCall(round=terms.round, cohort=terms.cohort)
        self._refused_first: dict[int, float] = {}
        self._void_seconds = 0.0
        self._voiding: set[int] = set()
        self.total = RoundSum(terms)
        self.up_bytes = 0
        self.seconds = 0.0
        self.is_voided = False
        self.heard: set[int] = set()

    def run(self, patience_seconds: float) -> None:
        """Ask the cohort to upload, until all has come, time is up, or a site has voided its upload.

        Args:
            patience_seconds: How long to wait for updates.
        """
        self._history.keep_cohort(self._call, self._terms.state)
        deadline = time.monotonic() + patience_seconds
        slice_seconds = min(_LONGEST_SLICE_SECONDS, patience_seconds / _SLICES)
        self._void_seconds = slice_seconds
        messages = [self._upload(site) for site in self._terms.cohort if site in self._attendance.present]
        is_told = False
        while True:
            seconds = min(slice_seconds, max(0.0, deadline - time.monotonic()))
            for answer in self._attendance.answers(self._grid.send_and_receive(messages, timeout=seconds)):
                self._grid.post(self._next_messages(answer))
                if self._is_over:
                    return
            # a message may have been lost with the process that had it: whoever is missing is asked again who he is
            self._attendance.miss(self.total.missing, self._terms.round)
            if time.monotonic() >= deadline:
                return
            if not is_told:
                self._tell_who_is_waited_for(deadline - time.monotonic())
            is_told = True
            self._attendance.look()
            time.sleep(_PAUSE_SECONDS)
            messages = []

    @property
    def _is_over(self) -> bool:
        return self.is_voided or not self.total.missing

    def _upload(self, site: int) -> Message:
        return self._attendance.request(Request.UPLOAD, site, call=self._call.to_bytes())

    def _void(self, site: int) -> Message:
        self._voiding.add(site)
        return self._attendance.request(Request.VOID, site, round=ROUND_NUMBER.pack(self._terms.round))

    def _next_messages(self, answer: Answer) -> list[Message]:
        """Take an answer in, and return what to ask its site next."""
        site, parts = answer.site, answer.parts
        if parts is not None or answer.is_refusal:
            self.heard.add(site)
        if site not in self.total.missing:
            return []
        match answer.request:
            case Request.ANNOUNCE if self._attendance.is_to_be_opened(site):
                return [self._attendance.open_request(site)]
            case Request.ANNOUNCE | Request.OPEN | Request.CATCH_UP if parts is not None:
                return [self._prepare(site)]
            case Request.PREPARE | Request.UPLOAD if answer.is_refusal and self._is_to_be_voided(site):
                return [self._void(site)]
            case Request.PREPARE if parts is not None:
                return self._after_ready(site, parts["note"])
            case Request.UPLOAD if parts is not None:
                self._add(site, parts.pop("update"))  # nobody else holds it, so the next one finds its memory free
            case Request.VOID if parts is not None:
                self._take_void(site, parts["note"])
        return []

    def _is_to_be_voided(self, site: int) -> bool:
        """Return whether a site that refuses is to promise that nothing of it left, which it can never take back.

        Not at once, since a full disk may have room a moment later; and not if those that are left are too few for a
        sum, since no later resuming could make them more.
        """
        first = self._refused_first.setdefault(site, time.monotonic())
        left = len(self._terms.cohort) - len(self._voiding.intersection(self.total.missing) | {site})
        is_dispensable = left >= self._terms.agreement.terms.cohort.smallest_cohort
        return is_dispensable and time.monotonic() - first >= self._void_seconds

    def _after_ready(self, site: int, data: bytes) -> list[Message]:
        """Return what to ask a site next that says where it stands: nothing, if its people gave up another's upload."""
        try:
            note = read_note(self._attendance.run, NoteKind.READY, self._terms.round, site, data)
        except ProtocolError as error:
            self._refuse(site, error)
            return []
        if note.state == self._terms.state:
            return [self._upload(site)]
        return [self._void(site)] if site in note.voided else []  # it has promised already, and was not heard

    def _add(self, site: int, update: bytes) -> None:
        started = time.perf_counter()
        self.up_bytes = len(update)
        try:
            self.total.add(update)
        except ProtocolError as error:
            self._refuse(site, error)
        self.seconds += time.perf_counter() - started

    def _take_void(self, site: int, data: bytes) -> None:
        run = self._attendance.run
        try:
            note = read_note(run, NoteKind.VOID, self._terms.round, site, data)
            if note.state != self._history.state(self._terms.round):  # which no site would take
                raise StateMismatchError("state of the void note", expected="the round's", got="another")
        except ProtocolError as error:
            self._refuse(site, error)
            return
        self._history.keep_void(self._terms.round, data)
        self._attendance.ask_soon(site)
        self.is_voided = True
        (name,) = run.names([site])
        self._journal.event(
            "voided",
            round=self._terms.round,
            site=name,
            text=f"{name} has signed that nothing of it left in round {self._terms.round}; the others go on without it",
        )

    def _refuse(self, site: int, error: ProtocolError) -> None:
        (name,) = self._attendance.run.names([site])
        self._journal.event("refused", site=name, round=self._terms.round, reason=str(error))

    def _tell_who_is_waited_for(self, seconds: float) -> None:
        names = self._attendance.run.names(self.total.missing)
        self._journal.event(
            "waiting",
            round=self._terms.round,
            sites=names,
            text=f"round {self._terms.round} waits for the uploads of {', '.join(names)}, at most {seconds:.0f} s",
        )
