"""Open a run: find the sites, relay their cards and the sealed epoch secret.

Trust: runs at the provider, which carries every message and can read none that matters.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from flwr.app import Message
from flwr.serverapp import Grid

from protocol.agreement import Agreement
from protocol.envelope import Request, pack_envelope, unpack_envelope, unpack_list
from protocol.errors import AgreementMismatchError, CohortError, LengthError, PeerRefusedError, ProtocolError
from protocol.handshake import RunCard, Session
from protocol.terms import Terms
from strategies.journal import RunJournal

_POLL_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedRun:
    """A run whose sites share their keys.

    Attributes:
        run: The run's id.
        agreement: The sites' agreement.
        session: Their run cards.
        nodes: Roster position -> Flower's node.
    """

    run: bytes
    agreement: Agreement
    session: Session
    nodes: Mapping[int, int]

    def names(self, sites: Iterable[int]) -> list[str]:
        """Return the names of sites given by their roster positions."""
        return [self.agreement.roster[site].name for site in sites]

    def request(self, request: Request, site: int, **parts: bytes) -> Message:
        """Make a message to one site."""
        return make_request(request, self.nodes[site], run=self.run, **parts)


def make_request(request: Request, node: int, **parts: bytes) -> Message:
    """Make a message to a node."""
    return Message(pack_envelope(parts), dst_node_id=node, message_type=request)


def answers(replies: Iterable[Message], *names: str, journal: RunJournal) -> Iterator[tuple[int, dict[str, bytes]]]:
    """Yield node and parts of each good reply; the others are recorded and passed over."""
    for reply in replies:
        node = reply.metadata.src_node_id
        if reply.has_error():
            journal.event("no-answer", node=str(node), code=reply.error.code)
            continue
        try:
            yield node, unpack_envelope(reply.content, names)
        except PeerRefusedError:
            journal.event("refused-by-site", node=str(node), request=reply.metadata.message_type)
        except ProtocolError as error:
            journal.event("refused", node=str(node), reason=str(error))


def open_run(
    grid: Grid,
    *,
    run: bytes,
    terms: Terms,
    sites: int,
    join_seconds: float,
    answer_seconds: float,
    journal: RunJournal,
) -> OpenedRun:
    """Bring the sites of a consortium into one session.

    Args:
        grid: Sends and receives.
        run: The run's id, 16 random bytes.
        terms: What this run was submitted with; sites under other terms are left out.
        sites: Sites to wait for.
        join_seconds: How long to wait for them.
        answer_seconds: How long to wait for their answers.
        journal: Told what happens.

    Raises:
        CohortError: Too few sites are there for the smallest cohort.
    """
    nodes = _wait_for_nodes(grid, sites, join_seconds)
    smallest = terms.cohort.smallest_cohort
    if len(nodes) < smallest:
        raise CohortError("connected nodes (the smallest cohort)", expected=f"at least {smallest}", got=len(nodes))
    replies = grid.send_and_receive(
        [make_request(Request.ANNOUNCE, node, run=run) for node in nodes], timeout=answer_seconds
    )
    announced = list(answers(replies, "card", "agreement", journal=journal))
    agreement = _common_agreement([parts["agreement"] for _, parts in announced], terms)
    cards: dict[int, RunCard] = {}
    node_of: dict[int, int] = {}
    for node, parts in announced:
        try:
            card = RunCard.from_bytes(parts["card"], agreement, run)
        except ProtocolError as error:
            journal.event("refused", node=str(node), reason=str(error))
            continue
        if card.site not in cards:
            cards[card.site], node_of[card.site] = card, node
    session = Session.of([cards[site] for site in sorted(cards)], agreement)
    opened = OpenedRun(run=run, agreement=agreement, session=session, nodes=node_of)
    journal.event("joined", sites=[agreement.roster[site].name for site in session.sites])
    _share_epoch_secret(grid, opened, answer_seconds, journal)
    return opened


def _wait_for_nodes(grid: Grid, sites: int, join_seconds: float) -> list[int]:
    deadline = time.monotonic() + join_seconds
    while len(nodes := list(grid.get_node_ids())) < sites and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    return nodes


def _common_agreement(offered: list[bytes], terms: Terms) -> Agreement:
    """Return the agreement that most sites presented.

    The provider needs no other source for it: it only checks signatures for its own sake, and every site holds the
    others to the agreement that it pinned itself.
    """
    if not offered:
        raise CohortError("sites that answered", expected=f"at least {terms.cohort.smallest_cohort}", got=0)
    (most_common, _), *_ = Counter(offered).most_common(1)
    agreement = Agreement.from_bytes(most_common)
    if agreement.terms != terms:
        raise AgreementMismatchError("terms", expected="those this run was submitted with", got="the sites' own")
    return agreement


def _share_epoch_secret(grid: Grid, opened: OpenedRun, answer_seconds: float, journal: RunJournal) -> None:
    session_bytes = opened.session.to_bytes()
    steward = opened.session.steward
    others = [site for site in opened.session.sites if site != steward]
    entrust = opened.request(Request.ENTRUST, steward, session=session_bytes)
    replies = list(answers(grid.send_and_receive([entrust], timeout=answer_seconds), "secrets", journal=journal))
    if not replies:
        raise CohortError("answer of the steward", expected=opened.agreement.roster[steward].name, got="none")
    secrets = unpack_list(replies[0][1]["secrets"], limit=len(others))
    if len(secrets) != len(others):
        raise LengthError("sealed secrets", expected=len(others), got=len(secrets))
    messages = [
        opened.request(Request.OPEN, site, session=session_bytes, secret=secret)
        for site, secret in zip(others, secrets, strict=True)
    ]
    count = sum(1 for _ in answers(grid.send_and_receive(messages, timeout=answer_seconds), journal=journal))
    journal.event("opened", sites=1 + count)
