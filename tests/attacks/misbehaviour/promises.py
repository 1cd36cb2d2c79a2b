"""What sites have uploaded, given up and overruled, and which sums a coalition could read; checks that these agree.

Trust: tests only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass

from misbehaviour.schedule import SITES

from protocol.agreement import Cohort


class Violation(AssertionError):  # noqa: N818 - it is no error of the product's
    """Something that must never happen has happened."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """An update that has left a site.

    Attributes:
        site: The site.
        run: Its run.
        round: Its round.
        round_state: The state that its round began in.
        state: What the provider sees of the state that it was made in.
        cohort: Whose masks are in it.
    """

    site: int
    run: bytes
    round: int
    round_state: str
    state: bytes
    cohort: Cohort


class Promises:
    """Keeps what has left sites, and checks each thing that leaves against it.

    Args:
        tolerated_colluders: Sites that may collude with the provider.

    Attributes:
        insider: The one that does; None if it might be any.
        overruled: (site, run, round) -> the sites that its people have given up.
    """

    def __init__(self, tolerated_colluders: int) -> None:
        self.insider: int | None = None
        self.overruled: dict[tuple[int, bytes, int], set[int]] = defaultdict(set)
        self._tolerated_colluders = tolerated_colluders
        self._uploads: dict[tuple[int, str], list[Upload]] = defaultdict(list)
        self._voided: set[tuple[int, str]] = set()
        self._senders: dict[tuple[bytes, int, bytes, Cohort], set[int]] = defaultdict(set)
        self._readable: dict[tuple[int | None, int], dict[tuple[bytes, bytes, Cohort], Upload]] = defaultdict(dict)

    def copied(self) -> Promises:
        """Return the same promises, to be added to apart from these."""
        return deepcopy(self)

    def has_uploaded(self, site: int, round_state: str) -> bool:
        """Return whether an update of a site has left in the round that began in a state."""
        return bool(self._uploads[site, round_state])

    def voided(self, site: int, round_state: str) -> None:
        """Take note that a site has signed that nothing has left in a round and nothing will.

        Raises:
            Violation: Something has.
        """
        if self.has_uploaded(site, round_state):
            raise Violation(f"site {site} signs that nothing has left in a round, and something has")
        self._voided.add((site, round_state))

    def uploaded(self, upload: Upload, given_up: Iterable[int]) -> None:
        """Take note of a new update.

        Args:
            upload: The update.
            given_up: The sites that its site takes as given up.

        Raises:
            Violation: The site had promised otherwise, or a coalition learns from it what it must not.
        """
        site, before = upload.site, self._uploads[upload.site, upload.round_state]
        if (site, upload.round_state) in self._voided:
            raise Violation(f"site {site} uploads in a round in which it has signed that nothing will leave")
        for first in before:
            if first.run != upload.run:
                raise Violation(f"site {site} uploads in two runs for one round")
            if set(upload.cohort) - set(first.cohort) or set(first.cohort) - set(upload.cohort) - set(given_up):
                raise Violation(
                    f"site {site} uploads in one round for {first.cohort} and for {upload.cohort}, "
                    f"and has given up {sorted(given_up)} only"
                )
        before.append(upload)
        senders = self._senders[upload.run, upload.round, upload.state, upload.cohort]
        senders.add(site)
        for colluder in self._colluders():
            if set(upload.cohort) <= senders | {colluder}:
                self._check_difference(colluder, upload)

    def _colluders(self) -> Iterable[int | None]:
        """Return who may be the provider's: one site where one is tolerated, and else nobody."""
        if not self._tolerated_colluders:
            return [None]
        return range(SITES) if self.insider is None else [self.insider]

    def _check_difference(self, colluder: int | None, upload: Upload) -> None:
        """Check that no two sums that provider and colluder can read differ by a site that people did not overrule."""
        readable = self._readable[colluder, upload.round]
        place = (upload.run, upload.state, upload.cohort)
        for other in readable.values():
            shared = (set(upload.cohort) & set(other.cohort)) - {colluder}
            exposed = (set(upload.cohort) ^ set(other.cohort)) - {colluder}
            if place == (other.run, other.state, other.cohort) or not shared:
                continue  # one and the same, or nothing cancels in their difference
            for site in shared:
                overruled = self.overruled[site, upload.run, upload.round]
                if exposed - overruled:
                    raise Violation(
                        f"the sums over {other.cohort} and {upload.cohort} in round {upload.round} can be read "
                        f"with site {colluder}'s key, and tell them apart by {sorted(exposed - overruled)}"
                    )
        readable[place] = upload
