"""A hospital that can be struck at any moment: a real site on a real vault, with a stand-in for its statistics.

What is under test is what leaves a site and when, so the learner only has to make integers that depend on all that they
should depend on. Everything else is the product's.

Trust: tests only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from clients.data.table import Labels, Values
from clients.learning.learner import Contribution
from clients.learning.learner_state import LearnerState
from clients.run.files import RunFiles
from clients.run.membership import Membership
from clients.run.site import Site
from clients.run.upload_journal import JOURNAL
from clients.secrets.vault import Vault
from protocol.agreement import Agreement
from protocol.envelope import Request
from protocol.packing import RoundKind
from protocol.schedule import digest

MODEL_VALUES = 4
_FIELDS_IN_USE = 32
_LARGEST = 500

Strike = Callable[[Callable[[], None]], None]
"""Called before each operation of a vault, with what a crash in the middle of that operation leaves behind."""


Fingerprint = dict[str, tuple[int, int, int]]
"""File name -> inode, time of change, size."""


class Killed(BaseException):
    """The process of a site ends here; no handler of the product's may stop that."""


class FragileVault(Vault):
    """A vault that calls `strike` before whatever it does."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.strike: Strike | None = None
        self._paths: dict[str, Path] = {}
        self._is_locked = False

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the vault; there is but one process here, so no file has to tell others."""
        assert not self._is_locked
        self._is_locked = True
        try:
            yield
        finally:
            self._is_locked = False

    def path(self, name: str) -> Path:
        """Return a file's path, made once."""
        return self._paths.get(name) or self._paths.setdefault(name, super().path(name))

    def has(self, name: str) -> bool:
        self._step()
        return super().has(name)

    def read(self, name: str) -> bytes:
        self._step()
        return super().read(name)

    def write(self, name: str, data: bytes, *, is_durable: bool = True) -> None:
        path = self.path(name)
        if path.parent.exists():
            self._step(lambda: super(FragileVault, self).write(f"{name}.partial", data[: len(data) // 2]))
        super().write(name, data, is_durable=is_durable)

    def delete(self, name: str) -> None:
        self._step()
        super().delete(name)

    def append(self, name: str, entry: dict[str, object], *, is_durable: bool = False) -> None:
        self._step(lambda: self._tear(name))
        super().append(name, entry, is_durable=is_durable)

    def _tear(self, name: str) -> None:
        with self.path(name).open("ab") as file:
            file.write(b'{"state":"cut off')

    def _step(self, tear: Callable[[], object] = lambda: None) -> None:
        if self.strike is not None:
            self.strike(tear)


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyTable:
    """As many patients as a log line needs."""

    features: Values = field(default_factory=lambda: np.zeros((10, 1)))
    labels: Labels = field(default_factory=lambda: np.zeros(10, dtype=np.int8))
    records: int = 10
    repeated: int = 0


class TinyLearner:
    """Contributions that follow from site, round and model, and a model that is the total of all sums."""

    table = TinyTable()

    def __init__(self, agreement: Agreement, site: int) -> None:
        self._agreement = agreement
        self._site = site

    def initial_state(self) -> LearnerState:
        exponents = np.zeros(1, dtype=np.int64)
        return LearnerState(model=np.zeros(MODEL_VALUES), step_exponents=exponents, least_exponents=exponents)

    def initial_personal(self) -> np.ndarray:
        return np.zeros(0)

    def contribution(self, state: LearnerState, personal: np.ndarray, kind: RoundKind, number: int) -> Contribution:
        packed = np.zeros(self._agreement.plan(kind).shape, dtype=np.int64)
        seed = digest("tiny contribution", self._site, number, state.model.tobytes())
        packed[0, :_FIELDS_IN_USE] = np.frombuffer(seed, dtype=np.uint8).astype(np.int64) - _LARGEST
        return Contribution(packed=packed, personal=personal)

    def apply(self, state: LearnerState, kind: RoundKind, packed_sum: np.ndarray) -> LearnerState:
        return replace(state, model=state.model + packed_sum[0, :MODEL_VALUES])

    def personal_after(self, before: LearnerState, after: LearnerState, personal: np.ndarray) -> np.ndarray:
        return personal


class FragileSite(Site):
    """A real site whose learner is the tiny one."""

    def learner(self, run: bytes) -> TinyLearner:
        """Return the stand-in."""
        return TinyLearner(self.membership.agreement, self.membership.site)


class Hospital:
    """One site of the consortium, as a process that can be ended and started again.

    Args:
        directory: Its vault.
    """

    def __init__(self, directory: Path) -> None:
        self.vault = FragileVault(directory)
        self._unharmed_vault = Vault(directory)
        self.restart()

    def restart(self) -> None:
        """Start the site's process anew: all that it knows is in its vault."""
        self.vault.strike = None
        self._site = FragileSite.of(self.vault)

    @property
    def membership(self) -> Membership:
        return self._site.membership

    def handle(self, request: Request, parts: Mapping[str, bytes], strike: Strike | None = None) -> dict[str, bytes]:
        """Answer as the product does, with `strike` before each operation of the vault."""
        self.vault.strike = strike
        try:
            return self._site.handle(request, parts)
        finally:
            self.vault.strike = None

    def overrule(self, run: bytes, round_number: int, site: str) -> None:
        """Have this site's people give up another's upload."""
        self._site.overrule(run, round_number, site)

    def files(self, run: bytes) -> RunFiles:
        """Return what the site keeps about a run."""
        return RunFiles(self._unharmed_vault, run)

    def journal(self) -> list[dict[str, object]]:
        """Return the site's journal of the updates that it has made."""
        return list(self._unharmed_vault.lines(JOURNAL))


def fingerprint(directory: str | Path, prefix: str = "") -> Fingerprint:
    """Return for each file below a directory what changes whenever it is replaced or appended to."""
    found: Fingerprint = {}
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_dir():
                found |= fingerprint(entry.path, f"{prefix}{entry.name}/")
            else:
                status = entry.stat()
                found[prefix + entry.name] = (status.st_ino, status.st_mtime_ns, status.st_size)
    return found
