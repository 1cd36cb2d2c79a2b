"""The places where schedules start: vaults after an honest beginning, and how to put them back.

Trust: tests only.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from misbehaviour.hospital import Fingerprint, Hospital, fingerprint
from misbehaviour.observer import Observer
from misbehaviour.schedule import SITES, Stage
from misbehaviour.view import RunView

from clients.run.code import code_digest
from clients.run.membership import commitment, pin
from clients.secrets.enrolment import enrol
from clients.secrets.keys import EpochSecrets
from clients.secrets.secret import SecretBytes
from clients.secrets.vault import Vault
from protocol.agreement import Agreement, SiteId
from protocol.data_terms import ColumnTerms, DataTerms, LabelTerms
from protocol.handshake import RUN_BYTES, Session
from protocol.schedule import KEY_BYTES
from protocol.terms import CohortTerms, CryptoTerms, Terms, TrainingTerms


class KeptVault:
    """A site's vault whose files can be put back as they were.

    Args:
        directory: The vault.

    Attributes:
        directory: The vault.
        prints: Its fingerprint, as it was and is after `put_back`.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.prints: Fingerprint = fingerprint(directory)
        self._files = {name: (directory / name).read_bytes() for name in self.prints}

    def put_back(self) -> None:
        """Undo everything that has happened to the files since they were kept."""
        found = fingerprint(self.directory)
        for name in found.keys() - self._files.keys():
            path = self.directory / name
            path.unlink()
            with suppress(OSError):  # a directory that is not empty is an old one
                path.parent.rmdir()
        for name, data in self._files.items():
            if found.get(name) != self.prints[name]:
                self.prints[name] = _write_private(self.directory / name, data)


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where schedules of one stage start.

    Attributes:
        vaults: The sites' vaults.
        main: What the provider knows of the run.
        other: What it knows of a second run of the same agreement, which was opened honestly and no further.
        observer: Who has seen all of it.
    """

    vaults: Sequence[KeptVault]
    main: RunView
    other: RunView
    observer: Observer

    def put_back(self) -> Observer:
        """Undo everything that a schedule has done to the vaults, and return an observer for the next one."""
        for vault in self.vaults:
            vault.put_back()
        return self.observer.starting_from([vault.prints for vault in self.vaults])


def make_starts(directory: Path, smallest_cohort: int, epoch_rounds: int) -> dict[Stage, Start]:
    """Found a consortium and go honestly from stage to stage, keeping the vaults at each."""
    honest = directory / "honest"
    agreement = _found(honest, smallest_cohort, epoch_rounds)
    hospitals = _hospitals(honest, agreement)
    other, main = (RunView(agreement=agreement, run=os.urandom(RUN_BYTES)) for _ in range(2))
    starts = {}
    first_epochs: dict[bytes, EpochSecrets] = {}

    def keep(stage: Stage) -> None:
        apart = directory / stage.name
        shutil.copytree(honest, apart)
        starts[stage] = Start(
            vaults=[KeptVault(apart / card.name) for card in agreement.roster],
            main=main.copied(),
            other=other.copied(),
            observer=Observer(agreement, _hospitals(apart, agreement), main, other, first_epochs),
        )

    def open_run(view: RunView) -> None:
        _go(hospitals, view, lambda: len(view.opened) == SITES - 1)
        session = Session.from_bytes(view.session, agreement, view.run)
        first_epochs[session.digest] = hospitals[session.steward].files(view.run).epoch()

    open_run(other)
    keep(Stage.FOUNDED)
    open_run(main)
    keep(Stage.OPENED)
    for number, stage in enumerate((Stage.PREPARED, Stage.STARTED, Stage.LAST)):
        _go(hospitals, main, lambda number=number: list(main.prepared.values()).count(number) == SITES)
        keep(stage)
    return starts


def _found(directory: Path, smallest_cohort: int, epoch_rounds: int) -> Agreement:
    """Give four hospitals their vaults below a directory; return their agreement."""
    vaults = {name: Vault(directory / name) for name in (SiteId(f"hospital-{site}") for site in range(SITES))}
    consortium_secret = SecretBytes(os.urandom(KEY_BYTES))
    agreement = Agreement(
        roster=tuple(enrol(vault, name).card for name, vault in vaults.items()),
        terms=Terms(
            data=DataTerms(
                name="tiny",
                columns=(ColumnTerms(name="age", centre=60.0, scale=10.0),),
                label=LabelTerms(name="ill"),
            ),
            training=TrainingTerms(rounds=1),
            crypto=CryptoTerms(epoch_rounds=epoch_rounds),
            cohort=CohortTerms(tolerated_colluders=smallest_cohort - 2, smallest_cohort=smallest_cohort),
        ),
        code_digest=code_digest(),
        secret_digest=commitment(consortium_secret),
    )
    for vault in vaults.values():
        pin(vault, agreement=agreement, consortium_secret=consortium_secret)
    return agreement


def _hospitals(directory: Path, agreement: Agreement) -> list[Hospital]:
    return [Hospital(directory / card.name) for card in agreement.roster]


def _go(hospitals: Sequence[Hospital], view: RunView, is_there: Callable[[], bool]) -> None:
    while not is_there():
        for site in range(SITES):
            if not is_there():
                request, to = view.next_step(site)
                parts = view.message(request, to)
                view.learn(request, to, parts, hospitals[to].handle(request, parts))


def _write_private(path: Path, data: bytes) -> tuple[int, int, int]:
    """Write a file anew and return its fingerprint."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        status = os.fstat(descriptor)
    return status.st_ino, status.st_mtime_ns, status.st_size
