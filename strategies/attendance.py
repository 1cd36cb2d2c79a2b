"""Know where a run's sites are: at which node, before which round, and who has not answered lately.

A site that was killed, cut off or slow comes back when it can, perhaps at another node. So whoever did not answer is
asked who he is again, beside the work of the round and without anybody waiting for it.

Trust: runs at the provider. A site says by its card who it is; whether that is true shows in what it signs.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from flwr.app import Message

from protocol.agreement import Agreement, Cohort
from protocol.envelope import Request, unpack_round
from protocol.errors import ProtocolError
from protocol.handshake import Session
from strategies.journal import RunJournal
from strategies.replies import Reply, make_request, read_replies
from strategies.streaming_grid import StreamingGrid

_FIRST_PAUSE_SECONDS: Final = 1.0
_LONGEST_PAUSE_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedRun:
    """A run whose sites can share their keys.

    Attributes:
        run: The run's id.
        agreement: The sites' agreement.
        session: Their run cards.
        secrets: Roster position -> sealed epoch secret, for all but the steward.
    """

    run: bytes
    agreement: Agreement
    session: Session
    secrets: Mapping[int, bytes]

    def names(self, sites: Iterable[int]) -> list[str]:
        """Return the names of sites given by their roster positions."""
        return [self.agreement.roster[site].name for site in sites]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One site's answer to one request; its fields are those of `Reply`."""

    site: int
    request: Request
    parts: dict[str, bytes] | None
    is_refusal: bool


class Attendance:
    """Sends requests to sites, and knows who is there.

    Args:
        grid: Sends and receives.
        run: The opened run.
        journal: Told who stays away and who returns.
    """

    def __init__(self, grid: StreamingGrid, run: OpenedRun, journal: RunJournal) -> None:
        self.run = run
        self._grid = grid
        self._journal = journal
        self._nodes: dict[int, int] = {}
        self._next_round: dict[int, int] = {}
        self._absent = set(run.session.sites)
        self._asked: dict[int, tuple[float, float]] = {}
        self._site_of_card = {card.to_bytes(): card.site for card in run.session.cards}

    @property
    def present(self) -> Cohort:
        """Sites that answered what they were asked last."""
        return tuple(site for site in self.run.session.sites if site not in self._absent)

    def next_round(self, site: int) -> int:
        """Return the round whose sum a site needs next."""
        return self._next_round[site]

    def stands_before(self, sites: Iterable[int], round_number: int) -> None:
        """Take note that sites have applied all sums before a round."""
        for site in sites:
            self._next_round[site] = round_number
            self.ask_soon(site)

    def ask_soon(self, site: int) -> None:
        """Take note that a site gets on: if it is away, or goes away, it is asked soon who it is."""
        self._asked.pop(self._nodes.get(site, 0), None)

    def request(self, request: Request, site: int, **parts: bytes) -> Message:
        """Make a message to a site that has been there."""
        return make_request(request, self._nodes[site], run=self.run.run, **parts)

    def open_request(self, site: int) -> Message:
        """Make the message that brings a site its sealed secret."""
        session = self.run.session.to_bytes()
        return self.request(Request.OPEN, site, session=session, secret=self.run.secrets[site])

    def is_to_be_opened(self, site: int) -> bool:
        """Return whether a site that has just come may still lack the run's secret."""
        return self._next_round[site] == 0 and site != self.run.session.steward

    def miss(self, sites: Iterable[int], round_number: int) -> None:
        """Take note that sites did not answer in time."""
        missed = sorted(set(sites) - self._absent)
        if not missed:
            return
        self._absent |= set(missed)
        names = self.run.names(missed)
        self._journal.event(
            "absent",
            round=round_number,
            sites=names,
            text=f"{', '.join(names)}: no answer in round {round_number}; will be asked again",
        )

    def look(self) -> None:
        """Ask the nodes at which no present site is who they are; their answers come with those of any exchange."""
        self._grid.post(self.announcements(), is_awaited=False)

    def announcements(self, *, is_urgent: bool = False) -> list[Message]:
        """Make the messages that ask the nodes at which no present site is who they are, if some site is absent.

        Args:
            is_urgent: Whether also those nodes are asked that were asked lately.
        """
        busy = {self._nodes[site] for site in self.present if site in self._nodes}
        now = time.monotonic()
        messages = []
        for node in self._grid.get_node_ids():
            due, pause = self._asked.get(node, (now, _FIRST_PAUSE_SECONDS))
            if node in busy or not self._absent or (now < due and not is_urgent):
                continue
            # a site may be training for long, and answers every message in the end: so rarely, and ever more rarely
            self._asked[node] = (now + pause, min(2 * pause, _LONGEST_PAUSE_SECONDS))
            messages.append(make_request(Request.ANNOUNCE, node, run=self.run.run))
        return messages

    def answers(self, messages: Iterable[Message]) -> Iterator[Answer]:
        """Yield each site's answer as it comes.

        An answer to ANNOUNCE is that of a site which has come back.

        Args:
            messages: Replies, in any order.
        """
        for reply in read_replies(messages, self._journal):
            parts = reply.parts
            if reply.request is Request.ANNOUNCE:
                site = self.welcome(reply)
            else:
                site = next((site for site, node in self._nodes.items() if node == reply.node), None)
                if reply.request is Request.CATCH_UP and parts is not None and not self._gets_on(site, parts):
                    parts = None
                if site is not None and parts is None:
                    self._absent.add(site)
            if site is not None:
                yield Answer(site=site, request=reply.request, parts=parts, is_refusal=reply.is_refusal)

    def _gets_on(self, site: int | None, parts: Mapping[str, bytes]) -> bool:
        """Return whether CATCH_UP has moved a site, which otherwise would be asked the same for ever."""
        if site is None:
            return False
        before = self._next_round[site]
        with contextlib.suppress(ProtocolError):
            self._next_round[site] = min(unpack_round(parts["round"]), self.run.agreement.last_round + 1)
        return self._next_round[site] > before

    def welcome(self, reply: Reply) -> int | None:
        """Take note of where a site is, by its answer to ANNOUNCE; return the site, or None if it is none of the run's.

        Args:
            reply: The answer.
        """
        if reply.parts is None:
            return None
        try:
            next_round = unpack_round(reply.parts["round"])
        except ProtocolError as error:
            self._journal.event("refused", node=str(reply.node), request=str(reply.request), reason=str(error))
            return None
        site = self._site_of_card.get(reply.parts["card"])
        if site is None or site not in self._absent:
            return None
        self._absent |= {other for other, node in self._nodes.items() if node == reply.node}
        is_known = site in self._nodes
        self._nodes = {other: node for other, node in self._nodes.items() if node != reply.node} | {site: reply.node}
        self._next_round[site] = min(next_round, self.run.agreement.last_round + 1)
        self._absent.discard(site)
        if is_known:
            (name,) = self.run.names([site])
            self._journal.event(
                "returned",
                site=name,
                next_round=next_round,
                text=f"{name} is back, and stands before round {next_round}",
            )
        return site
