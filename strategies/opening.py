"""Open a run, or find it again: bring the sites together, relay their cards and the sealed epoch secret.

What is kept of an earlier start is not asked for again, so a provider that starts again goes on with the same run.

Trust: runs at the provider, which carries every message and can read none that matters.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Final

from flwr.serverapp import Grid

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

_POLL_SECONDS: Final = 0.5


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
    nodes = _wait_for_nodes(grid, sites, join_seconds)
    smallest = terms.cohort.smallest_cohort
    if len(nodes) < smallest:
        raise CohortError("connected nodes (the smallest cohort)", expected=f"at least {smallest}", got=len(nodes))
    announce = [make_request(Request.ANNOUNCE, node, run=history.run) for node in nodes]
    replies = grid.send_and_receive(announce, timeout=answer_seconds)
    announced = [reply for reply in read_replies(replies, journal) if reply.parts is not None]
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


def _wait_for_nodes(grid: Grid, sites: int, join_seconds: float) -> list[int]:
    deadline = time.monotonic() + join_seconds
    while len(nodes := list(grid.get_node_ids())) < sites and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    return nodes


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
