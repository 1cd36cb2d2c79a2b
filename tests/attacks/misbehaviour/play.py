"""Play a schedule from its start to its end, with an observer who checks after each message.

Trust: tests only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from misbehaviour.hospital import Hospital
from misbehaviour.observer import DECRYPT, Observer, Violation
from misbehaviour.provider import Provider
from misbehaviour.schedule import Schedule, Stage
from misbehaviour.stage import make_starts
from misbehaviour.view import RunView

import clients.release
import clients.rounds
from clients.ckks import Decryptor
from protocol.agreement import Cohort
from protocol.envelope import pack_list
from protocol.errors import ProtocolError, SecondUploadError

_SWEEPS = 24
"""Times that an honest provider goes round all sites; more than any run needs."""


class Theatre:
    """Plays schedules, one at a time, on vaults that are put back before each.

    Args:
        directory: For the vaults; best in memory.
        patch: Installs the spies.

    Attributes:
        observer: Who watched the last schedule.
    """

    def __init__(self, directory: Path, patch: pytest.MonkeyPatch) -> None:
        self._starts = {size: make_starts(directory / f"cohorts-of-{size}", size) for size in (2, 3)}
        self.observer: Observer
        self._decrypted: dict[tuple[object, ...], np.ndarray] = {}
        patch.setattr(clients.release, "Decryptor", self._spying_decryptor())
        patch.setattr(clients.rounds, "release", self._spying_release(clients.rounds.release))

    def play(self, schedule: Schedule) -> bool:
        """Play a schedule; return whether it ended with a completed run.

        Raises:
            Violation: Something happened that must never happen; the text holds the schedule.
        """
        start = self._starts[schedule.smallest_cohort][schedule.stage]
        self._decrypted.clear()
        main, other, agreement = start.main.copied(), start.other.copied(), start.main.agreement
        self.observer = start.put_back()
        try:
            provider = Provider(agreement, self.observer, main, other, self._archive(schedule.smallest_cohort))
            for operation in schedule.operations:
                provider.carry_out(operation)
            self.observer.check_journals()
            return schedule.ends_honest and self._complete(provider, self.observer.hospitals)
        except Violation as violation:
            raise Violation(f"{violation}\n{schedule}") from violation

    def _archive(self, smallest_cohort: int) -> dict[str, list[bytes]]:
        """Return what a provider has from other consortia, and from another run of this one."""
        strangers = [starts[Stage.LAST].main for size, starts in self._starts.items() if size != smallest_cohort]
        others = [starts[Stage.LAST].other for starts in self._starts.values()]
        archive: dict[str, list[bytes]] = defaultdict(list)
        for view in (*strangers, *others):
            archive["session"].append(view.session)
            archive["secret"] += view.secrets.values()
            archive["aggregate"] += view.sums.values()
        archive["aggregates"] = [pack_list([data]) for data in archive["aggregate"]]
        return archive

    def _complete(self, provider: Provider, hospitals: Sequence[Hospital]) -> bool:
        """Have the provider turn honest; return whether the run completed, which only a spoiled cohort may prevent."""
        view = provider.main
        if _is_spoiled(view, hospitals):
            return False
        sessions = {hospital.files(view.run).session() for hospital in hospitals} - {None}
        view.session = sessions.pop() if sessions else b""
        view.cohorts = _cohorts_in_journals(hospitals)
        for _ in range(_SWEEPS):
            for site in view.sites:
                provider.send_next(site)
            if view.closed.issuperset(view.sites):
                break
        positions = [hospitals[site].files(view.run).position() for site in view.sites]
        states = {position and position.state for position in positions}
        if len(states) != 1 or not view.closed.issuperset(view.sites):
            raise Violation(f"an honest end did not complete the run; refusals: {dict(self.observer.refusals)}")
        return True

    def _spying_decryptor(self) -> type[Decryptor]:
        theatre = self

        class SpyingDecryptor(Decryptor):
            """Tells the observer first; decrypts the same sum under the same key once."""

            def __init__(self, key) -> None:
                super().__init__(key)
                self._place = key

            def decrypt(self, residues, seeds):
                theatre.observer.decrypting(residues, seeds)
                place = (self._place, residues.tobytes(), *seeds)
                if place not in theatre._decrypted:
                    theatre._decrypted[place] = DECRYPT(self, residues, seeds)
                return theatre._decrypted[place]

        return SpyingDecryptor

    def _spying_release(self, release):
        def spying(aggregate, *, terms, state, epoch_keys, own_proof):
            try:
                exact = release(aggregate, terms=terms, state=state, epoch_keys=epoch_keys, own_proof=own_proof)
            except ProtocolError:
                self.observer.sum_refused()
                raise
            self.observer.released(terms.round, terms.cohort)
            return exact

        return spying


def _cohorts_in_journals(hospitals: Sequence[Hospital]) -> dict[int, Cohort]:
    """Return the cohort of each round that updates were made for; in an unspoiled run there is one per round."""
    return {line["round"]: tuple(line["cohort"]) for hospital in hospitals for line in hospital.journal()}


def _is_spoiled(view: RunView, hospitals: Sequence[Hospital]) -> bool:
    """Return whether an honest end is out of reach: sites are bound to different sessions, cohorts or runs."""
    if len({hospital.files(view.run).session() for hospital in hospitals} - {None}) > 1:
        return True
    cohorts: Mapping[object, set[object]] = defaultdict(set)
    for hospital in hospitals:
        files = hospital.files(view.run)
        if files.tries() >= clients.rounds.MAX_TRIES:
            return True
        for line in hospital.journal():
            cohorts[line["state"]].add(tuple(line["cohort"]))
            position = files.position()
            if position is None or line["state"] == position.state.hex():
                try:
                    files.uploaded(bytes.fromhex(line["state"]))
                except SecondUploadError:
                    return True
    return any(len(named) > 1 for named in cohorts.values())
