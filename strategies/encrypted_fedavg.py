"""Federated averaging whose sums the provider cannot read.

Per round: every site applies the last sum, trains and says that it is ready; the provider names a cohort among those
who are; each of the cohort uploads one sealed update; the provider adds. Averages, metrics and the model itself exist
at the sites only.

Source: McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data (2017).
Trust: runs at the provider, without a secret key.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from typing import Final

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from protocol.agreement import Cohort
from protocol.envelope import ROUND_NUMBER, Request, pack_list
from protocol.errors import (
    CohortError,
    ConfigurationError,
    ProtocolError,
    RunPausedError,
    StateMismatchError,
)
from protocol.handshake import FIRST_EPOCH, RUN_BYTES
from protocol.notes import NoteKind, UploadCall
from protocol.rounds import RoundTerms
from protocol.terms import Terms
from strategies.cohort import Standing, collect_standing
from strategies.journal import RunJournal
from strategies.opening import OpenedRun, answers, open_run
from strategies.round_sum import RoundSum
from strategies.streaming_grid import StreamingGrid
from strategies.train_only import TrainOnlyStrategy

_AGGREGATE: Final = "aggregate"


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
        self._grid: Grid
        self._run: OpenedRun
        self._members: Cohort = ()
        self._next_sum: dict[int, int] = {}
        self._sums_kept = 0
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
            Flower's result; its arrays are the last encrypted sum.

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
        self._run = open_run(
            self._grid,
            run=os.urandom(RUN_BYTES),
            terms=self._terms,
            sites=self._sites,
            join_seconds=self._join_seconds,
            answer_seconds=self._ready_seconds,
            journal=self._journal,
        )
        self._members = self._run.session.sites
        self._next_sum = dict.fromkeys(self._members, 0)
        statistics = self._sum_round(0)
        result = super().start(
            self._grid,
            statistics,
            num_rounds,
            self._ready_seconds,
            train_config,
            evaluate_config,
            evaluate_fn,
        )
        result.arrays = self._sum_round(self._run.agreement.last_round)
        self._close()
        return result

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask every member to apply the sums it has not had, train, and say when it is ready."""
        del arrays, config, grid
        self._round_started = time.monotonic()
        return [
            self._run.request(
                Request.PREPARE, site, round=ROUND_NUMBER.pack(server_round), aggregates=self._sums_for(site)
            )
            for site in self._members
        ]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Name a cohort among the ready, and add its updates one at a time.

        Raises:
            CohortError: Too few sites are ready.
            RunPausedError: An update did not come.
        """
        terms = self._name_cohort(server_round, replies)
        ready = time.monotonic()
        call = UploadCall(round=server_round, cohort=terms.cohort).to_bytes()
        uploads = self._grid.send_and_receive(
            [self._run.request(Request.UPLOAD, site, call=call) for site in terms.cohort],
            timeout=self._upload_seconds,
        )
        total = RoundSum(terms)
        up_bytes, aggregate_seconds = 0, 0.0
        for node, parts in answers(uploads, "update", journal=self._journal):
            started = time.perf_counter()
            up_bytes = len(parts["update"])
            self._add(total, parts["update"], node)
            aggregate_seconds += time.perf_counter() - started
            if not total.missing:
                break
        if total.missing:
            self._pause(server_round, total.missing)
        started = time.perf_counter()
        data = total.close().to_bytes()
        aggregate_seconds += time.perf_counter() - started
        self._journal.keep_sum(server_round, data)
        self._sums_kept = server_round + 1
        if server_round == 0:
            self._members = terms.cohort
        self._journal.event(
            "round",
            round=server_round,
            kind=terms.kind.name.lower(),
            cohort=self._run.names(terms.cohort),
            left_out=self._run.names(site for site in self._run.session.sites if site not in terms.cohort),
            up_bytes=up_bytes,
            down_bytes=len(data),
            seconds={
                "ready": round(ready - self._round_started, 3),
                "upload": round(time.monotonic() - ready, 3),
                "aggregate": round(aggregate_seconds, 6),
                "total": round(time.monotonic() - self._round_started, 3),
            },
        )
        arrays = ArrayRecord({_AGGREGATE: Array("uint8", (len(data),), "cipherward.aggregate/1", data)})
        return arrays, MetricRecord({"cohort": len(terms.cohort), "up_bytes": up_bytes, "down_bytes": len(data)})

    def _sum_round(self, round_number: int) -> ArrayRecord:
        messages = self.configure_train(round_number, ArrayRecord(), ConfigRecord(), self._grid)
        arrays, _ = self.aggregate_train(
            round_number, self._grid.send_and_receive(messages, timeout=self._ready_seconds)
        )
        return arrays or ArrayRecord()

    def _sums_for(self, site: int) -> bytes:
        """Return the sums that a site has not confirmed yet, in order; usually the last one."""
        return pack_list([self._journal.load_sum(number) for number in range(self._next_sum[site], self._sums_kept)])

    def _standing(self, kind: NoteKind, round_number: int, replies: Iterable[Message]) -> Standing:
        standing = collect_standing(self._run, kind, round_number, replies, self._journal)
        self._next_sum |= dict.fromkeys(standing.sites, round_number)
        return standing

    def _name_cohort(self, round_number: int, replies: Iterable[Message]) -> RoundTerms:
        """Name everybody who is ready in the state that most are in."""
        ready = self._standing(NoteKind.READY, round_number, replies)
        if not ready.sites:
            raise CohortError(f"sites ready for round {round_number}", expected="some", got=0)
        terms = RoundTerms(
            agreement=self._run.agreement,
            session=self._run.session.digest,
            epoch=FIRST_EPOCH,
            round=round_number,
            cohort=ready.agreeing,
            state=ready.common,
        )
        terms.agreement.check_cohort(terms.cohort)
        return terms

    def _add(self, total: RoundSum, update: bytes, node: int) -> None:
        try:
            total.add(update)
        except ProtocolError as error:
            self._journal.event("refused", node=str(node), reason=str(error))

    def _pause(self, round_number: int, missing: Cohort) -> None:
        names = ", ".join(self._run.names(missing))
        reason = (
            f"round {round_number} waits for the updates of {names}: masks of a named cohort cancel only when all of "
            "it has uploaded, and no site uploads twice for one state. The run's directory is intact."
        )
        self._journal.event("paused", round=round_number, missing=self._run.names(missing), reason=reason)
        raise RunPausedError(reason)

    def _close(self) -> None:
        """Deliver the last sum and compare in which states the sites end."""
        last_round = self._run.agreement.last_round
        sites = self._run.session.sites  # also those that no sum contains: they hold the run's secrets too
        messages = [self._run.request(Request.CLOSE, site, aggregates=self._sums_for(site)) for site in sites]
        replies = self._grid.send_and_receive(messages, timeout=self._ready_seconds)
        closed = self._standing(NoteKind.CLOSED, last_round + 1, replies)
        if closed.differing:
            raise StateMismatchError("final states of the sites", expected="one", got=len(closed.groups))
        self._journal.event(
            "finished",
            closed=self._run.names(closed.sites),
            not_closed=self._run.names(site for site in sites if site not in closed.sites),
            states_identical=len(closed.groups) == 1,
        )
