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
from misbehaviour.observer import DECRYPT, Observer
from misbehaviour.promises import Violation
from misbehaviour.provider import Provider
from misbehaviour.schedule import Schedule, Stage
from misbehaviour.stage import make_starts
from misbehaviour.view import RunView

import clients.run.state_chain
import clients.secrets.release
from clients.run.state_chain import StateChain
from clients.secrets.ckks import Decryptor
from protocol.agreement import Cohort
from protocol.envelope import pack_list
from protocol.errors import ProtocolError, SecondUploadError
from protocol.state import initial_state

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
        self._starts = {
            (size, epoch_rounds): make_starts(directory / f"cohorts-of-{size}-{epoch_rounds}", size, epoch_rounds)
            for size in (2, 3)
            for epoch_rounds in (0, 1)
        }
        self.observer: Observer
        self._decrypted: dict[tuple[object, ...], np.ndarray] = {}
        patch.setattr(clients.secrets.release, "Decryptor", self._spying_decryptor())
        patch.setattr(clients.run.state_chain, "release", self._spying_release(clients.run.state_chain.release))
        patch.setattr(StateChain, "_apply", self._spying_apply(StateChain._apply))
        patch.setattr(StateChain, "_take_void", self._spying_take_void(StateChain._take_void))

    def play(self, schedule: Schedule) -> bool:
        """Play a schedule; return whether it ended with a completed run.

        Raises:
            Violation: Something happened that must never happen; the text holds the schedule.
        """
        consortium = (schedule.smallest_cohort, schedule.epoch_rounds)
        start = self._starts[consortium][schedule.stage]
        self._decrypted.clear()
        main, other, agreement = start.main.copied(), start.other.copied(), start.main.agreement
        self.observer = start.put_back()
        self.observer.promises.insider = schedule.insider
        try:
            archive = self._archive(consortium)
            provider = Provider(agreement, self.observer, main, other, archive, schedule.insider)
            for operation in schedule.operations:
                provider.carry_out(operation)
            self.observer.check_journals()
            return schedule.ends_honest and self._complete(provider, self.observer.hospitals, schedule.insider)
        except Violation as violation:
            raise Violation(f"{violation}\n{schedule}") from violation

    def _archive(self, consortium: tuple[int, int]) -> dict[str, list[bytes]]:
        """Return what a provider has from other consortia, and from another run of this one."""
        strangers = [starts[Stage.LAST].main for other, starts in self._starts.items() if other != consortium]
        others = [starts[Stage.LAST].other for starts in self._starts.values()]
        archive: dict[str, list[bytes]] = defaultdict(list)
        for view in (*strangers, *others):
            archive["session"].append(view.session)
            archive["secret"] += view.secrets.values()
            archive["aggregate"] += view.sums.values()
        archive["history"] = [pack_list([data]) for data in archive["aggregate"]]
        return archive

    def _complete(self, provider: Provider, hospitals: Sequence[Hospital], insider: int | None) -> bool:
        """Have the provider turn honest; return whether the run completed, which only a spoiled cohort may prevent."""
        view = provider.main
        if _is_spoiled(view, hospitals, insider):
            return False
        given_up, view.given_up = _given_up(view, hospitals), {}
        sessions = {hospital.files(view.run).session() for hospital in hospitals} - {None}
        view.session = sessions.pop() if sessions else b""
        view.cohorts = _cohorts_in_journals(hospitals)
        for site in given_up:
            provider.send_void(site, _round_of(view, hospitals[site]))
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

    def _spying_apply(self, apply):
        def spying(chain, aggregate, position, keys):
            self.observer.applying(position.voided)
            return apply(chain, aggregate, position, keys)

        return spying

    def _spying_take_void(self, take_void):
        def spying(chain, data, position, keys):
            moved = take_void(chain, data, position, keys)
            if moved is not position:
                self.observer.note_taken()
            return moved

        return spying

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
    """Return the cohort of each round that updates were made for first; in an unspoiled run there is one per round."""
    cohorts: dict[int, Cohort] = {}
    for line in _uploads(hospitals):
        cohorts.setdefault(line["round"], tuple(line["cohort"]))
    return cohorts


def _uploads(hospitals: Sequence[Hospital]) -> list[dict[str, object]]:
    return [line for hospital in hospitals for line in hospital.journal() if "cohort" in line]


def _is_spoiled(view: RunView, hospitals: Sequence[Hospital], insider: int | None) -> bool:
    """Return whether an honest end is out of reach: sites are bound to different sessions, cohorts or runs."""
    if len({hospital.files(view.run).session() for hospital in hospitals} - {None}) > 1:
        return True
    cohorts: Mapping[object, set[object]] = defaultdict(set)
    for hospital in hospitals:
        files = hospital.files(view.run)
        if files.tries() >= clients.run.state_chain.MAX_TRIES:
            return True
        for line in _uploads([hospital]):
            if line["round_state"] not in cohorts:  # later cohorts of a round follow from the first
                cohorts[line["round_state"]].add(tuple(line["cohort"]))
            if line["round_state"] == line["state"]:
                cohorts[line["round_state"]].add(tuple(line["cohort"]))
            position = files.position()
            if position is None or line["state"] == position.upload_state.hex():
                try:
                    files.journal.uploaded(bytes.fromhex(line["state"]))
                except SecondUploadError:
                    return True
    return any(len(named) > 1 for named in cohorts.values()) or _is_spoiled_by_notes(view, hospitals, insider)


def _is_spoiled_by_notes(view: RunView, hospitals: Sequence[Hospital], insider: int | None) -> bool:
    """Return whether sites were given up in a way that not all sites can follow."""
    if any("overruled" in line for hospital in hospitals for line in hospital.journal()):
        return True
    given_up, rounds = _given_up(view, hospitals), {_round_of(view, hospital) for hospital in hospitals}
    if any(hospitals[site].files(view.run).session() is None for site in given_up):
        return True  # they have promised it in the other run, and cannot say so in this one
    if len(rounds) > 1:
        return bool(given_up) or any(view.given_up.get(number) for number in range(min(rounds), max(rounds) + 1))
    (number,) = rounds
    members = view.chain(0)[0][0] if number else view.sites
    left = set(_cohorts_in_journals(hospitals).get(number, members)) - given_up
    is_summed = any(place[0] == number for place in view.sums)
    is_too_small = len(left) < view.agreement.terms.cohort.smallest_cohort
    return bool(given_up) and (insider in given_up or is_too_small or is_summed)


def _round_of(view: RunView, hospital: Hospital) -> int:
    return hospital.files(view.run).next_round()


def _given_up(view: RunView, hospitals: Sequence[Hospital]) -> set[int]:
    """Return the sites that are given up in the round that is not finished, as any site sees it."""
    given_up: set[int] = set()
    for site, hospital in enumerate(hospitals):
        files = hospital.files(view.run)
        position = files.position()
        given_up |= set(position.voided if position else ())
        if files.journal.has_voided(position.state if position else initial_state(view.agreement.digest)):
            given_up.add(site)
    return given_up
