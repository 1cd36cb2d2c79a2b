"""Open a run, or find it again: bring the sites together, relay their cards and the sealed epoch secret.

What is kept of an earlier start is not asked for again, so a provider that starts again goes on with the same run.

Trust: runs at the provider, which carries every message and can read none that matters.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from protocol.agreement import Agreement
from protocol.envelope import Request, unpack_list
from protocol.errors import AgreementMismatchError, CohortError, LengthError, ProtocolError
from protocol.handshake import RunCard, Session
from protocol.terms import Terms
from strategies.attendance import Attendance, OpenedRun
from strategies.history import RunHistory
from strategies.journal import RunJournal
from strategies.replies import Reply, make_request, read_replies
from strategies.streaming_grid import StreamingGrid

_POLL_SECONDS: Final = 0.2
_AGAIN_SECONDS: Final = 30.0


def open_run(
    grid: StreamingGrid,
    *,
    history: RunHistory,
    terms: Terms,
    sites: int,
    join_seconds: float,
    answer_seconds: float,
    journal: RunJournal,
) -> Attendance:
    """Bring the sites of a consortium into one session.

    Args:
        grid: Sends and receives.
        history: What is kept of the run.
        terms: What this run was submitted with; sites under other terms are left out.
        sites: Sites to wait for.
        join_seconds: How long to wait for them.
        answer_seconds: How long to wait for their answers.
        journal: Told what happens.

    Returns:
        The opened run, and where its sites are.

    Raises:
        AgreementMismatchError: The run began with other terms.
        CohortError: Too few sites are there for the smallest cohort, or the steward is not.
    """
    arrivals = _Arrivals(grid, history, terms, sites, journal)
    announced = arrivals.wait(join_seconds, answer_seconds)
    agreement, session = history.session(terms) or _new_session(announced, terms, history, journal)
    secrets = history.secrets(session)
    if secrets is None:
        secrets = _entrust(grid, agreement, session, announced, history, answer_seconds, journal)
    run = OpenedRun(run=history.run, agreement=agreement, session=session, secrets=secrets)
    attendance = Attendance(grid, run, journal)
    came = [site for reply in announced if (site := attendance.welcome(reply)) is not None]
    journal.event("joined", sites=run.names(sorted(came)))
    _hand_out(grid, attendance, answer_seconds, journal)
    return attendance


class _Arrivals:
    """Asks each node who is there, as the nodes connect.

    What is waited for are cards, not nodes: a SuperLink may have the nodes of other consortia, too.
    """

    def __init__(self, grid: StreamingGrid, history: RunHistory, terms: Terms, sites: int, journal: RunJournal) -> None:
        self._grid = grid
        self._run = history.run
        self._terms = terms
        self._sites = sites
        self._journal = journal
        self._unanswered: set[int] = set()
        self._next_time: dict[int, float] = {}
        self._announced: list[Reply] = []
        self._here: dict[bytes, set[int]] = {}

    def wait(self, join_seconds: float, answer_seconds: float) -> list[Reply]:
        """Wait for all sites, and return what nodes announced; a site that is not there in time is left out.

        Raises:
            CohortError: Fewer nodes are connected than the smallest cohort has sites; nobody was asked.
        """
        smallest = self._terms.cohort.smallest_cohort
        joined_by = time.monotonic() + join_seconds
        is_asked = is_told = False
        while True:
            nodes = list(self._grid.get_node_ids())
            is_asked = is_asked or len(nodes) >= smallest
            if is_asked:
                self._ask(nodes)
            left = joined_by - time.monotonic()
            if self._count >= self._sites or left < (-answer_seconds if self._unanswered else 0.0):
                break
            if is_asked and not (self._unanswered or is_told):
                self._tell(left)
                is_told = True
            time.sleep(_POLL_SECONDS)
        if not is_asked:
            raise CohortError("connected nodes (the smallest cohort)", expected=f"at least {smallest}", got=len(nodes))
        return self._announced

    @property
    def _count(self) -> int:
        return max(map(len, self._here.values()), default=0)

    def _ask(self, nodes: Sequence[int]) -> None:
        """Ask the nodes that are new, or that did not or would not say a while ago, and take answers in."""
        now = time.monotonic()
        for node in self._unanswered.difference(nodes):  # it is gone, and so is the question; it may come back
            self._unanswered.discard(node)
            del self._next_time[node]
        due = [node for node in nodes if self._next_time.get(node, now) <= now]
        self._next_time |= dict.fromkeys(due, now + _AGAIN_SECONDS)
        self._unanswered |= set(due)
        self._grid.post([make_request(Request.ANNOUNCE, node, run=self._run) for node in due])
        for reply in read_replies(self._grid.send_and_receive([], timeout=0.0), self._journal):
            self._unanswered.discard(reply.node)
            if reply.parts is not None:
                self._next_time[reply.node] = math.inf
                self._announced.append(reply)
                self._recognise(reply.parts)

    def _recognise(self, parts: Mapping[str, bytes]) -> None:
        with contextlib.suppress(ProtocolError):  # what is wrong with it is told where the session is made
            agreement = Agreement.from_bytes(parts["agreement"])
            if agreement.terms == self._terms:
                card = RunCard.from_bytes(parts["card"], agreement, self._run)
                self._here.setdefault(agreement.digest, set()).add(card.site)

    def _tell(self, seconds: float) -> None:
        self._journal.event(
            "joining",
            sites=self._count,
            text=f"{self._count} of {self._sites} sites are there; the others have {seconds:.0f} s "
            "(why a site refuses stands in its own log)",
        )


def _new_session(
    announced: Sequence[Reply], terms: Terms, history: RunHistory, journal: RunJournal
) -> tuple[Agreement, Session]:
    """Make a session of the cards that came, and keep it before anything is built on it."""
    agreement = _common_agreement([reply.parts["agreement"] for reply in announced if reply.parts], terms)
    cards: dict[int, RunCard] = {}
    for reply in announced:
        try:
            card = RunCard.from_bytes(reply.parts["card"] if reply.parts else b"", agreement, history.run)
        except ProtocolError as error:
            journal.event("refused", node=str(reply.node), request=str(reply.request), reason=str(error))
            continue
        cards.setdefault(card.site, card)
    session = Session.of([cards[site] for site in sorted(cards)], agreement)
    history.keep_session(agreement, session)
    return agreement, session


def _common_agreement(offered: list[bytes], terms: Terms) -> Agreement:
    """Return the agreement that most sites presented.

    The provider needs no other source for it: it only checks signatures for its own sake, and every site holds the
    others to the agreement that it pinned itself.
    """
    if not offered:
        raise CohortError(
            "sites that answered (why a site refuses stands in its own log; all refuse an agreement's second run)",
            expected=f"at least {terms.cohort.smallest_cohort}",
            got=0,
        )
    (most_common, _), *_ = Counter(offered).most_common(1)
    agreement = Agreement.from_bytes(most_common)
    if agreement.terms != terms:
        raise AgreementMismatchError("terms", expected="those this run was submitted with", got="the sites' own")
    return agreement


def _entrust(  # noqa: PLR0917 - one step of `open_run`
    grid: StreamingGrid,
    agreement: Agreement,
    session: Session,
    announced: Sequence[Reply],
    history: RunHistory,
    answer_seconds: float,
    journal: RunJournal,
) -> dict[int, bytes]:
    """Have the steward draw the epoch secret, and keep what it sealed to the others."""
    card = session.card_of(session.steward).to_bytes()
    nodes = [reply.node for reply in announced if reply.parts and reply.parts["card"] == card]
    entrust = [make_request(Request.ENTRUST, node, run=history.run, session=session.to_bytes()) for node in nodes[:1]]
    replies = read_replies(grid.send_and_receive(entrust, timeout=answer_seconds), journal)
    answers = [reply.parts for reply in replies if reply.request is Request.ENTRUST and reply.parts is not None]
    if not answers:
        steward = agreement.roster[session.steward].name
        what = f"answer of the steward (if {steward} is gone for good, start a new run: nothing has left yet)"
        raise CohortError(what, expected="one", got="none")
    others = session.others(session.steward)
    secrets = unpack_list(answers[0]["secrets"], limit=len(others))
    if len(secrets) != len(others):
        raise LengthError("sealed secrets", expected=len(others), got=len(secrets))
    by_site = dict(zip(others, secrets, strict=True))
    history.keep_secrets(by_site)
    return by_site


def _hand_out(grid: StreamingGrid, attendance: Attendance, answer_seconds: float, journal: RunJournal) -> None:
    """Bring the sealed secrets to the sites that may still lack them."""
    opening = [attendance.open_request(site) for site in attendance.present if attendance.is_to_be_opened(site)]
    answers = attendance.answers(grid.send_and_receive(opening, timeout=answer_seconds))
    opened = [answer.site for answer in answers if answer.request is Request.OPEN and answer.parts is not None]
    lacking = [site for site in attendance.present if attendance.is_to_be_opened(site) and site not in opened]
    attendance.miss(lacking, 0)
    journal.event("opened", sites=len(attendance.present))
