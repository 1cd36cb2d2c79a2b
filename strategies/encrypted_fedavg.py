"""Federated averaging whose sums the provider cannot read.

Per round: every site applies the last sum, trains and says that it is ready; the provider names a cohort among those
who are; each of the cohort uploads one sealed update; the provider adds. Averages, metrics and the model itself exist
at the sites only.

Source: McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data (2017).
Trust: runs at the provider, without a secret key.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from protocol.agreement import Cohort
from protocol.envelope import ROUND_NUMBER, Request, pack_list
from protocol.errors import CohortError, ConfigurationError, RunPausedError, StateMismatchError
from protocol.notes import NoteKind
from protocol.rounds import RoundTerms
from protocol.terms import Terms
from strategies.attendance import Attendance, OpenedRun
from strategies.cohort import Standing, collect_standing
from strategies.collection import Collection
from strategies.history import RunHistory
from strategies.journal import RunJournal
from strategies.opening import open_run
from strategies.streaming_grid import StreamingGrid
from strategies.train_only import TrainOnlyStrategy

_CLOSING_SECONDS: Final = 10.0
_PAUSE_SECONDS: Final = 0.1


class EncryptedFedAvg(TrainOnlyStrategy):
    """A Flower strategy that adds ciphertexts.

    Args:
        terms: What the run was submitted with.
        sites: Sites to wait for.
        join_seconds: How long to wait for them to connect.
        ready_seconds: How long a round waits for sites to train; who is not ready by then is left out.
        upload_seconds: How long a round waits for the cohort's updates; one that does not come pauses the run.
        journal: Told what happens, and keeps the sums.
    """

    def __init__(
        self,
        *,
        terms: Terms,
        sites: int,
        join_seconds: float,
        ready_seconds: float,
        upload_seconds: float,
        journal: RunJournal,
    ) -> None:
        self._terms = terms
        self._sites = sites
        self._join_seconds = join_seconds
        self._ready_seconds = ready_seconds
        self._upload_seconds = upload_seconds
        self._journal = journal
        self._history = RunHistory(journal)
        self._grid: StreamingGrid
        self._attendance: Attendance
        self._round_started = 0.0

    def start(  # noqa: PLR0917 - Flower's signature
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Open the run, sum statistics, train, evaluate, close.

        Args:
            grid: Sends and receives.
            initial_arrays: Not used: the initial model follows from the agreement, at the sites.
            num_rounds: Training rounds; must be what the terms say.
            timeout: Not used: each wait has its own limit.
            train_config: Passed on to Flower's loop.
            evaluate_config: Passed on to Flower's loop.
            evaluate_fn: Must be None; there is nothing that the provider could evaluate.

        Returns:
            Flower's result, without arrays: the sums are in the journal, and held in memory only while they are made.

        Raises:
            ConfigurationError: `num_rounds` is not what the terms say.
            CohortError: Too few sites took part.
            RunPausedError: An update did not come.
        """
        del initial_arrays, timeout
        if num_rounds != self._terms.training.rounds:
            raise ConfigurationError(f"num_rounds = {num_rounds}, the terms fix {self._terms.training.rounds}")
        self._journal.event("started", rounds=self._terms.training.rounds, sites=self._sites)
        self._grid = StreamingGrid(grid)
        self._attendance = open_run(
            self._grid,
            history=self._history,
            terms=self._terms,
            sites=self._sites,
            join_seconds=self._join_seconds,
            answer_seconds=self._ready_seconds,
            journal=self._journal,
        )
        self._sum_round(0)
        result = super().start(
            self._grid,
            ArrayRecord(),
            num_rounds,
            self._ready_seconds,
            train_config,
            evaluate_config,
            evaluate_fn,
        )
        self._sum_round(self._run.agreement.last_round)
        self._close()
        return result

    @property
    def _run(self) -> OpenedRun:
        return self._attendance.run

    @property
    def _members(self) -> Cohort:
        return self._history.members(self._run.agreement, self._run.session)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask every member that is there to apply the sums it has not had, train, and say when it is ready.

        A round that was summed before the provider started again is passed over.
        """
        del arrays, config, grid
        self._round_started = time.monotonic()
        if self._history.sum(server_round) is not None:
            return []
        self._attendance.look()
        return self._preparations(server_round)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Name a cohort among the ready, and add its updates one at a time.

        Raises:
            CohortError: Too few sites are ready.
            RunPausedError: An update did not come.
        """
        if self._history.sum(server_round) is None:
            self._sum(server_round, replies)
        return None, None

    def _sum_round(self, round_number: int) -> None:
        messages = self.configure_train(round_number, ArrayRecord(), ConfigRecord(), self._grid)
        self.aggregate_train(round_number, self._grid.send_and_receive(messages, timeout=self._ready_seconds))

    def _sum(self, round_number: int, replies: Iterable[Message]) -> None:
        while True:
            ready = self._ready(round_number, replies)
            terms = self._name_cohort(round_number, ready)
            ready_time = time.monotonic()
            collection = Collection(
                grid=self._grid,
                attendance=self._attendance,
                history=self._history,
                journal=self._journal,
                terms=terms,
                prepare=lambda site: self._prepare(site, round_number),
            )
            collection.run(self._upload_seconds)
            if not collection.is_voided:
                break
            replies = self._grid.send_and_receive(self._preparations(round_number), timeout=self._ready_seconds)
        if collection.total.missing:
            self._pause(terms, collection, ready)
        started = time.perf_counter()
        data = collection.total.close().to_bytes()
        aggregate_seconds = collection.seconds + time.perf_counter() - started
        self._history.keep_sum(round_number, data)
        self._journal.event(
            "round",
            round=round_number,
            kind=terms.kind.name.lower(),
            cohort=self._run.names(terms.cohort),
            left_out=self._run.names(site for site in self._run.session.sites if site not in terms.cohort),
            up_bytes=collection.up_bytes,
            down_bytes=len(data),
            seconds={
                "ready": round(ready_time - self._round_started, 3),
                "upload": round(time.monotonic() - ready_time, 3),
                "aggregate": round(aggregate_seconds, 6),
                "total": round(time.monotonic() - self._round_started, 3),
            },
        )

    def _preparations(self, round_number: int) -> Iterator[Message]:
        """Make the messages one at a time, so that the sums in them are not in memory once for each site."""
        for site in [site for site in self._members if site in self._attendance.present]:
            yield self._prepare(site, round_number)

    def _prepare(self, site: int, round_number: int) -> Message:
        return self._with_history(Request.PREPARE, site, round_number, round=ROUND_NUMBER.pack(round_number))

    def _with_history(self, request: Request, site: int, round_number: int, **parts: bytes) -> Message:
        """Make a request to a site before which it needs sums; the first of them alone, if they are too many."""
        steps, reached = self._history.since(self._attendance.next_round(site), round_number)
        history = pack_list(steps)
        del steps  # a sum is as long as the model, and is copied once more
        if reached < round_number:
            return self._attendance.request(Request.CATCH_UP, site, history=history)
        return self._attendance.request(request, site, history=history, **parts)

    def _ready(self, round_number: int, replies: Iterable[Message]) -> Standing:
        """Collect who is ready for a round; a site that comes back meanwhile is asked too.

        Too few of them are waited for, as long as those that are away could make them enough.
        """
        members, notes = self._members, []
        refusing: set[int] = set()
        smallest = self._run.agreement.terms.cohort.smallest_cohort
        while True:
            for answer in self._attendance.answers(replies):
                is_back = answer.request is Request.ANNOUNCE
                if answer.request is Request.PREPARE and answer.parts is not None:
                    notes.append((answer.site, answer.parts["note"]))
                elif answer.request in {Request.PREPARE, Request.CATCH_UP} and answer.is_refusal:
                    refusing.add(answer.site)
                elif is_back and self._attendance.is_to_be_opened(answer.site):
                    self._grid.post([self._attendance.open_request(answer.site)])
                elif answer.site in members and (
                    is_back or (answer.request in {Request.OPEN, Request.CATCH_UP} and answer.parts is not None)
                ):
                    self._grid.post([self._prepare(answer.site, round_number)])
            ready = {site for site, _ in notes}
            is_hopeless = len(members) - len(refusing - ready) < smallest
            is_late = time.monotonic() - self._round_started >= self._ready_seconds
            if len(ready) >= smallest or is_hopeless or is_late:
                break
            self._attendance.miss([site for site in members if site not in ready], round_number)
            self._attendance.look()
            time.sleep(_PAUSE_SECONDS)
            replies = self._grid.send_and_receive([], timeout=self._ready_seconds)
        standing = collect_standing(self._run, NoteKind.READY, round_number, notes, self._journal)
        self._attendance.stands_before(standing.sites, round_number)
        self._attendance.miss([site for site in members if site not in standing.sites], round_number)
        return standing

    def _name_cohort(self, round_number: int, ready: Standing) -> RoundTerms:
        """Name everybody who is ready in the state that most are in; once a cohort was named, what is left of it."""
        agreement = self._run.agreement
        smallest = agreement.terms.cohort.smallest_cohort
        if len(ready.sites) < smallest:
            what = f"sites ready for round {round_number} (why a site refuses stands in its own log)"
            raise CohortError(what, expected=f"at least {smallest}", got=len(ready.sites))
        terms = RoundTerms(
            agreement=agreement,
            session=self._run.session.digest,
            epoch=agreement.epoch_of(round_number),
            round=round_number,
            cohort=ready.cohort(self._history.cohort(round_number)),
            state=ready.state,
        )
        agreement.check_cohort(terms.cohort)
        return terms

    def _pause(self, terms: RoundTerms, collection: Collection, ready: Standing) -> None:
        missing = collection.total.missing
        reason = (
            f"round {terms.round} waits for the updates of {', '.join(self._run.names(missing))}. Nothing is lost: "
            "when they are back, resume the run."
        )
        # whoever is advised to give up a site whose update has left gives that update away
        if len(ready.decisions) > 1:
            told = [
                f"{', '.join(self._run.names(sites))} gave up {', '.join(self._run.names(voided)) or 'nobody'}"
                for voided, sites in ready.decisions.items()
            ]
            reason += f" The sites' people have not decided alike: {'; '.join(told)}. Nobody else is to be given up."
        elif collection.heard.intersection(missing):
            reason += " Some of them answer: their own logs say why they do not upload. They are not to be given up."
        else:
            reason += (
                " For a site that is gone for good, and only then, the people of every other site can give its update "
                "up with `cipherward site overrule`; that cannot be undone."
            )
        self._journal.event("paused", round=terms.round, missing=self._run.names(missing), reason=reason)
        raise RunPausedError(reason)

    def _close(self) -> None:
        """Deliver the last sum and compare in which states the sites end."""
        last_round = self._run.agreement.last_round
        sites = self._run.session.sites  # also those that no sum contains: they hold the run's secrets too
        messages = (self._closing(site) for site in self._attendance.present)
        notes = self._closing_notes(messages, self._ready_seconds)
        # who has only just come back is not left with the run's secrets; who is gone keeps nobody waiting for long
        late = self._attendance.announcements(is_urgent=True)
        notes += self._closing_notes(late, min(self._ready_seconds, _CLOSING_SECONDS))
        closed = collect_standing(self._run, NoteKind.CLOSED, last_round + 1, notes, self._journal)
        if closed.differing:
            raise StateMismatchError("final states of the sites", expected="one", got=len(closed.groups))
        self._journal.event(
            "finished",
            closed=self._run.names(closed.sites),
            not_closed=self._run.names(site for site in sites if site not in closed.sites),
            states_identical=len(closed.groups) == 1,
        )

    def _closing_notes(self, messages: Iterable[Message], seconds: float) -> list[tuple[int, bytes]]:
        notes = []
        for answer in self._attendance.answers(self._grid.send_and_receive(messages, timeout=seconds)):
            if answer.request is Request.ANNOUNCE or (answer.request is Request.CATCH_UP and answer.parts is not None):
                self._grid.post([self._closing(answer.site)])
            elif answer.request is Request.CATCH_UP and answer.is_refusal:  # it can at least delete what it holds
                self._grid.post([self._attendance.request(Request.CLOSE, answer.site, history=pack_list([]))])
            elif answer.request is Request.CLOSE and answer.parts is not None:
                notes.append((answer.site, answer.parts["note"]))
        return notes

    def _closing(self, site: int) -> Message:
        return self._with_history(Request.CLOSE, site, self._run.agreement.last_round + 1)
