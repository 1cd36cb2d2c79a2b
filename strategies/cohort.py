"""Take sites at their word about where they stand: who is ready or has closed, and in which state.

Sites that applied the same sums are in the same state. One that is not has another model or optimiser than its peers,
or has not given up an upload that they have; it is named, and no sum contains it, because its masks would not cancel.

Trust: runs at the provider, to which a state is a MAC that it cannot make.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from protocol.agreement import Cohort
from protocol.errors import ProtocolError, SiteMismatchError
from protocol.notes import NoteKind, SiteNote
from strategies.attendance import OpenedRun
from strategies.journal import RunJournal


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Sites by what each says it stands at.

    Attributes:
        groups: State's MAC, and whose uploads were given up -> the sites that say so, ascending.
    """

    groups: Mapping[tuple[bytes, Cohort], Cohort]

    @property
    def sites(self) -> Cohort:
        """All sites that said something."""
        return tuple(sorted(site for sites in self.groups.values() for site in sites))

    @property
    def _common(self) -> tuple[bytes, Cohort]:
        return max(self.groups, key=lambda key: (len(self.groups[key]), key))

    @property
    def state(self) -> bytes:
        """The MAC of the state that most are in; there must be one."""
        return self._common[0]

    @property
    def voided(self) -> Cohort:
        """The sites whose uploads those have given up."""
        return self._common[1]

    @property
    def agreeing(self) -> Cohort:
        """The sites in that state."""
        return self.groups[self._common] if self.groups else ()

    @property
    def differing(self) -> Cohort:
        """The sites in another one."""
        return tuple(site for site in self.sites if site not in self.agreeing)

    @property
    def decisions(self) -> Mapping[Cohort, Cohort]:
        """Whose uploads were given up -> the sites that say so."""
        decided: dict[Cohort, list[int]] = defaultdict(list)
        for (_, voided), sites in self.groups.items():
            decided[voided] += sites
        return {voided: tuple(sorted(sites)) for voided, sites in decided.items()}

    def cohort(self, named: Cohort | None) -> Cohort:
        """Return the sites whose updates are to be summed; some must have said something.

        Args:
            named: The cohort that was named for this round before, if one was: its sites upload for no other, but
                without those whose uploads they have given up since.
        """
        return tuple(site for site in named or self.agreeing if site not in self.voided)


def collect_standing(
    run: OpenedRun, kind: NoteKind, round_number: int, notes: Iterable[tuple[int, bytes]], journal: RunJournal
) -> Standing:
    """Check the notes that sites sent, and group them; what is refused is recorded, and so are sites that differ.

    Args:
        run: The opened run.
        kind: What the notes must say.
        round_number: The round that they must be for.
        notes: Roster position and note, as they came; a site that answers late may have sent another one before.
        journal: Told of refusals and differences.
    """
    good: dict[int, SiteNote] = {}
    for site, data in notes:
        try:
            good[site] = read_note(run, kind, round_number, site, data)
        except ProtocolError as error:
            journal.event("refused", site=run.names([site])[0], round=round_number, reason=str(error))
    groups: dict[tuple[bytes, Cohort], list[int]] = defaultdict(list)
    for site, note in sorted(good.items()):
        groups[note.state, note.voided].append(site)
    standing = Standing(groups={key: tuple(group) for key, group in groups.items()})
    if standing.differing:
        names = run.names(standing.differing)
        journal.event(
            "states-differ",
            round=round_number,
            agreeing=run.names(standing.agreeing),
            differing=names,
            text=f"{', '.join(names)}: not in the others' state after the same sums, and left out; its vault was "
            "altered or damaged, or its people have not given up an upload that the others' have",
        )
    return standing


def read_note(run: OpenedRun, kind: NoteKind, round_number: int, site: int, data: bytes) -> SiteNote:
    """Parse a site's note.

    Raises:
        ProtocolError: It is not that site's, or not of that kind and round.
    """
    note = SiteNote.from_bytes(
        data, kind=kind, agreement=run.agreement, session=run.session.digest, round_number=round_number
    )
    if note.site != site:
        raise SiteMismatchError("site of this node", expected=site, got=note.site)
    return note
