"""Open a run, or find it again: bring the sites together, relay their cards and the sealed epoch secret.

What is kept of an earlier start is not asked for again, so a provider that starts again goes on with the same run.

Trust: runs at the provider, which carries every message and can read none that matters.
"""

from __future__ import annotations

import contextlib
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
_TELL_SECONDS: Final = 30.0


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

    Args:
        grid: Sends and receives.
        history: What is kept of the run.
        terms: What the run was submitted with.
        sites: Sites to wait for, if none are in the run's session already.
        journal: Told who refuses, and who is waited for.
    """

    def __init__(self, grid: StreamingGrid, history: RunHistory, terms: Terms, sites: int, journal: RunJournal) -> None:
        self._grid = grid
        self._run = history.run
        self._terms = terms
        opened = history.session(terms)  # then nobody else can join
        self._session = opened and opened[1]
        self._sites = len(self._session.sites) if self._session else sites
        self._journal = journal
        self._replies: dict[int, Reply] = {}
        self._site_at: dict[int, tuple[bytes, int]] = {}
        self._asked: dict[int, tuple[float, float]] = {}
        self._unanswered: set[int] = set()

    def wait(self, join_seconds: float, answer_seconds: float) -> list[Reply]:
        """Wait for all sites, and return what the nodes that are there announced; who is not there is left out.

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
                self._forget_all_but(nodes)
                self._ask(nodes)
            left = joined_by - time.monotonic()
            if self._count >= self._sites or left < (-answer_seconds if self._unanswered else 0.0):
                break
            if is_asked and not is_told and (not self._unanswered or join_seconds - left > _TELL_SECONDS):
                self._tell(left)
                is_told = True
            time.sleep(_POLL_SECONDS)
        if not is_asked:
            raise CohortError("connected nodes (the smallest cohort)", expected=f"at least {smallest}", got=len(nodes))
        return list(self._replies.values())

    @property
    def _count(self) -> int:
        """The most sites that are there under one agreement."""
        return max(Counter(agreement for agreement, _ in set(self._site_at.values())).values(), default=0)

    def _forget_all_but(self, nodes: Sequence[int]) -> None:
        """Forget nodes that have left, with what they said; they may come back."""
        for node in self._asked.keys() - set(nodes):
            self._unanswered.discard(node)
            for known in (self._asked, self._replies, self._site_at):
                known.pop(node, None)

    def _ask(self, nodes: Sequence[int]) -> None:
        """Ask the nodes that are new, or that did not or would not say a while ago, and take answers in."""
        now = time.monotonic()
        messages = []
        for node in nodes:
            due, pause = self._asked.get(node, (now, _AGAIN_SECONDS))
            if node in self._replies or now < due:
                continue
            # a site may be busy for long, and answers every message in the end: so ever more rarely
            self._asked[node] = (now + pause, 2 * pause)
            self._unanswered.add(node)
            messages.append(make_request(Request.ANNOUNCE, node, run=self._run))
        self._grid.post(messages)
        for reply in read_replies(self._grid.send_and_receive([], timeout=0.0), self._journal):
            self._unanswered.discard(reply.node)
            if reply.parts is not None and reply.node in self._asked:
                self._replies[reply.node] = reply
                self._recognise(reply.node, reply.parts)

    def _recognise(self, node: int, parts: Mapping[str, bytes]) -> None:
        with contextlib.suppress(ProtocolError):  # what is wrong with it is told where the session is made
            agreement = Agreement.from_bytes(parts["agreement"])
            card = RunCard.from_bytes(parts["card"], agreement, self._run)
            if agreement.terms == self._terms and (self._session is None or card in self._session.cards):
                self._site_at[node] = (agreement.digest, card.site)

    def _tell(self, seconds: float) -> None:
        self._journal.event(
            "joining",
            sites=self._count,
            text=f"{self._count} of {self._sites} sites are there; the others have {max(seconds, 0.0):.0f} s "
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
    parsed = []
    for data in offered:
        with contextlib.suppress(ProtocolError):  # of another release, or of nobody that means well
            parsed.append(Agreement.from_bytes(data))
    ours = Counter(agreement.digest for agreement in parsed if agreement.terms == terms)
    if not ours:
        raise AgreementMismatchError("terms", expected="those this run was submitted with", got="the sites' own")
    ((most_common, _),) = ours.most_common(1)
    return next(agreement for agreement in parsed if agreement.digest == most_common)


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
