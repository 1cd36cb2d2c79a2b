"""How a site's runs stand, and their end, for the site's own people.

A vault has runs of every agreement that it ever pinned, each with a roster of its own.

Trust: site only.
"""

from __future__ import annotations

from dataclasses import dataclass

from clients.run.files import RunFiles
from clients.run.membership import Place
from clients.secrets.vault import Vault
from protocol.handshake import RUN_BYTES
from protocol.state import initial_state


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOverview:
    """How one run stands at this site.

    Attributes:
        run: The run's id.
        next_round: The round whose sum the site needs next.
        last_round: The run's last round; None if it was made under another agreement than the pinned one.
        is_closed: Whether the run has ended here, and its secrets are deleted.
        has_secrets: Whether its secrets are still on disk.
        has_uploaded: Whether an update for the next round has left.
        given_up: Names of the sites whose uploads for that round were given up; under another agreement, whose roster
            is not known, their numbers in it.
    """

    run: bytes
    next_round: int
    last_round: int | None
    is_closed: bool
    has_secrets: bool
    has_uploaded: bool
    given_up: tuple[str, ...]

    @property
    def is_pinned(self) -> bool:
        """Whether the run was made under the pinned agreement."""
        return self.last_round is not None


def run_overviews(place: Place) -> list[RunOverview]:
    """Return how each run that the vault has files of stands, by the run's id."""
    return [_overview(place, run) for run in _runs(place.vault)]


def open_runs(vault: Vault) -> list[bytes]:
    """Return the ids of the runs whose secrets are on disk, whatever agreement they were made under."""
    return [run for run in _runs(vault) if _has_secrets(RunFiles(vault, run))]


def end_run(vault: Vault, run: bytes) -> None:
    """Take no more part in a run, and delete every secret of it; the models stay."""
    with vault.locked():
        RunFiles(vault, run).end()
        vault.record("forgotten", run=run.hex(), text="this site's people ended the run here")


def _runs(vault: Vault) -> list[bytes]:
    names = sorted(path.name for path in vault.path("runs").glob("?" * 2 * RUN_BYTES))
    return [bytes.fromhex(name) for name in names]


def _has_secrets(files: RunFiles) -> bool:
    return files.has_ephemeral() or files.has_epoch()


def _overview(place: Place, run: bytes) -> RunOverview:
    files, agreement = RunFiles(place.vault, run), place.agreement
    made_under, position, next_round = files.agreement(), files.position(), files.next_round()
    is_pinned = made_under == agreement.digest
    state = position.state if position else initial_state(made_under or b"")  # without a card, nothing has left
    given_up = files.journal.overruled(next_round).union(position.voided if position else ())
    if is_pinned and files.journal.has_voided(state):
        given_up.add(place.site)
    return RunOverview(
        run=run,
        next_round=next_round,
        last_round=agreement.last_round if is_pinned else None,
        is_closed=files.closed() is not None,
        has_secrets=_has_secrets(files),
        has_uploaded=files.journal.first_cohort(state) is not None,
        given_up=tuple(agreement.roster[site].name if is_pinned else f"site {site + 1}" for site in sorted(given_up)),
    )
