"""Take sites at their word about where they stand: who is ready or has closed, and in which state.

Sites that applied the same sums are in the same state. One that is not has another model or optimiser than its peers;
it is named, and no sum contains it, because its masks would not cancel.

Trust: runs at the provider, to which a state is a MAC that it cannot make.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from flwr.app import Message

from protocol.agreement import Cohort
from protocol.errors import ProtocolError, SiteMismatchError
from protocol.handshake import FIRST_EPOCH
from protocol.notes import NoteKind, SiteNote
from strategies.journal import RunJournal
from strategies.opening import OpenedRun, answers


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Sites by the state that each says it is in.

    Attributes:
        groups: State's MAC -> roster positions, ascending.
    """

    groups: Mapping[bytes, Cohort]

    @property
    def sites(self) -> Cohort:
        """All sites that said something."""
        return tuple(sorted(site for group in self.groups.values() for site in group))

    @property
    def common(self) -> bytes:
        """The state that most are in; there must be one."""
        return max(self.groups, key=lambda state: (len(self.groups[state]), state))

    @property
    def agreeing(self) -> Cohort:
        """The sites in the common state."""
        return self.groups[self.common] if self.groups else ()

    @property
    def differing(self) -> Cohort:
        """The sites in another one."""
        return tuple(site for site in self.sites if site not in self.agreeing)


def collect_standing(
    run: OpenedRun, kind: NoteKind, round_number: int, replies: Iterable[Message], journal: RunJournal
) -> Standing:
    """Check the notes that sites sent, and group them; what is refused is recorded, and so are sites that differ.

    Args:
        run: The opened run.
        kind: What the notes must say.
        round_number: The round that they must be for.
        replies: The sites' answers, in any order.
        journal: Told of refusals and differences.
    """
    groups: dict[bytes, list[int]] = defaultdict(list)
    for node, parts in answers(replies, "note", journal=journal):
        try:
            note = SiteNote.from_bytes(
                parts["note"],
                kind=kind,
                agreement=run.agreement,
                session=run.session.digest,
                epoch=FIRST_EPOCH,
                round_number=round_number,
            )
            if run.nodes.get(note.site) != node:
                raise SiteMismatchError("site of this node", expected=run.nodes.get(note.site), got=node)
        except ProtocolError as error:
            journal.event("refused", node=str(node), round=round_number, reason=str(error))
            continue
        groups[note.state].append(note.site)
    standing = Standing(groups={state: tuple(sorted(sites)) for state, sites in groups.items()})
    if standing.differing:
        journal.event(
            "states-differ",
            round=round_number,
            agreeing=run.names(standing.agreeing),
            differing=run.names(standing.differing),
        )
    return standing
