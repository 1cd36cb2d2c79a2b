"""A small consortium on the test's own directory, and a provider that is driven by hand, one message at a time.

Everything is the real thing: identities, agreement, vaults, tables of three columns, sites, the provider's sums.
"""

from __future__ import annotations

import os
import shutil
import struct
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from safetensors.numpy import load_file

with warnings.catch_warnings():
    # Flower's own imports: the typer that it pins takes from click what click has deprecated since
    warnings.filterwarnings("ignore", message="'click.utils", category=DeprecationWarning)
    from flwr.app import ArrayRecord, Context, Message
    from flwr.serverapp.strategy import Result

from clients.app import app
from clients.data.public_data import DATA_VARIABLE
from clients.run.membership import Membership
from clients.run.results import model_path
from clients.run.site import Site
from clients.secrets.vault import Vault
from clients.simulation import simulated_site_names, simulated_vault
from conf import DataConfig, ExperimentConfig, FederationConfig, to_yaml
from conf.run_directory import RUN_DIRECTORY_VARIABLE
from protocol.agreement import Agreement
from protocol.data_terms import ColumnTerms, LabelTerms
from protocol.envelope import Request, pack_list, unpack_list
from protocol.handshake import RUN_BYTES, RunCard, Session
from protocol.notes import NoteKind, SiteNote, UploadCall
from protocol.rounds import RoundTerms
from protocol.terms import CryptoTerms, ModelTerms, TrainingTerms
from scripts.simulation.in_process import InProcessGrid
from server.record import RunRecord
from strategies.encrypted_fedavg import EncryptedFedAvg
from strategies.round_sum import RoundSum

# the fixed consortium of the golden files, and ways to harm a message, are modules that tests import by name
sys.path.insert(0, str(Path(__file__).parent / "vectors"))

# the heart-disease files: beside the project where CI has them, else wherever the product finds them; never skipped
BESIDE = Path(__file__).parents[2] / "shared" / "data"
if DATA_VARIABLE not in os.environ and BESIDE.is_dir():
    os.environ[DATA_VARIABLE] = str(BESIDE)

# a busy machine is no reason to fail; the whole run has a time limit
settings.register_profile("project", deadline=None)
settings.load_profile("project")

SITES = 4
EXPERIMENT = ExperimentConfig(
    data=DataConfig(
        name="breast_cancer",
        label=LabelTerms(name="malignant"),
        columns=(
            ColumnTerms(name="mean radius", centre=14.0, scale=4.0),
            ColumnTerms(name="mean texture", centre=19.0, scale=4.0),
            ColumnTerms(name="mean smoothness", centre=0.1, scale=0.02),
        ),
    ),
    strategy=TrainingTerms(rounds=2, local_epochs=1),
    federation=FederationConfig(sites=SITES, partition="iid"),
)

Interfere = Callable[[Message], Message | None]
"""What happens to a reply on its way: returned as it is, replaced, or lost (None)."""


@dataclass
class Federation:
    """A consortium's directory, and what a provider at one run knows.

    Attributes:
        directory: Run directory; vaults are below `sites/`.
        run: The run's id.
        cards: Roster position -> run card, as it came.
        session: The run's session, as it goes out.
        sums: The sums so far, by round.
    """

    directory: Path
    experiment: ExperimentConfig = EXPERIMENT
    run: bytes = field(default_factory=lambda: os.urandom(RUN_BYTES))
    cards: dict[int, bytes] = field(default_factory=dict)
    session: bytes = b""
    sums: list[bytes] = field(default_factory=list)

    @classmethod
    def found(cls, directory: Path, experiment: ExperimentConfig = EXPERIMENT) -> Federation:
        simulated_vault(directory, 0, experiment)
        return cls(directory, experiment)

    @property
    def everyone(self) -> tuple[int, ...]:
        return tuple(range(self.experiment.federation.sites))

    def vault(self, position: int) -> Vault:
        return Vault(self.directory / "sites" / simulated_site_names(self.experiment)[position])

    def run_path(self, position: int) -> Path:
        return self.vault(position).path(f"runs/{self.run.hex()}")

    def site(self, position: int) -> Site:
        """Load a site from its vault, as a new process does."""
        return Site.of(self.vault(position))

    def member(self, position: int) -> Membership:
        return Membership.load(self.vault(position))

    @property
    def agreement(self) -> Agreement:
        return self.member(0).agreement

    def values(self, position: int, name: str = "last") -> np.ndarray:
        """Return all values of a model in a site's vault, float64 (P,)."""
        terms = self.agreement.terms
        tensors = load_file(self.vault(position).path(model_path(name)))
        return np.concatenate([tensors[tensor].ravel() for tensor in terms.model.tensor_shapes(len(terms.data.inputs))])

    def ask(self, position: int, request: Request, **parts: bytes) -> dict[str, bytes]:
        return self.site(position).handle(request, {"run": self.run, **parts})

    def announce(self) -> None:
        self.cards = {site: self.ask(site, Request.ANNOUNCE)["card"] for site in self.everyone}
        self.session = self.session_of(*self.everyone)

    def session_of(self, *positions: int) -> bytes:
        return b"".join(self.cards[site] for site in positions)

    def entrust(self) -> dict[int, bytes]:
        """Ask the steward for the sealed secrets; return them by recipient."""
        secrets = unpack_list(self.ask(0, Request.ENTRUST, session=self.session)["secrets"], limit=len(self.everyone))
        return dict(zip(self.everyone[1:], secrets, strict=True))

    def open(self) -> None:
        self.announce()
        for site, secret in self.entrust().items():
            self.ask(site, Request.OPEN, session=self.session, secret=secret)

    def prepare(self, position: int, round_number: int, sums: Sequence[bytes] | None = None) -> bytes:
        """Have a site prepare a round, by default with all sums there are; return its note."""
        aggregates = pack_list(self.sums if sums is None else sums)
        parts = {"round": struct.pack("<I", round_number), "history": aggregates}
        return self.ask(position, Request.PREPARE, **parts)["note"]

    def prepare_all(self) -> None:
        for site in self.everyone:
            self.prepare(site, len(self.sums))

    def upload(self, position: int, cohort: Sequence[int], round_number: int | None = None) -> bytes:
        number = len(self.sums) if round_number is None else round_number
        call = UploadCall(round=number, cohort=tuple(cohort)).to_bytes()
        return self.ask(position, Request.UPLOAD, call=call)["update"]

    def terms(self, cohort: Sequence[int]) -> RoundTerms:
        """Return the terms of the round that comes next, as the provider fixes them from a note."""
        agreement, session = self.agreement, self.parsed_session()
        number = len(self.sums)
        note = SiteNote.from_bytes(
            self.prepare(cohort[0], number),
            kind=NoteKind.READY,
            agreement=agreement,
            session=session.digest,
            round_number=number,
        )
        return RoundTerms(
            agreement=agreement,
            session=session.digest,
            epoch=agreement.epoch_of(number),
            round=number,
            cohort=tuple(cohort),
            state=note.state,
        )

    def parsed_session(self) -> Session:
        return Session.from_bytes(self.session, self.agreement, self.run)

    def sum_up(self, cohort: Sequence[int] | None = None) -> bytes:
        """Collect the cohort's updates of the next round, which all have prepared, and keep their sum."""
        cohort = self.everyone if cohort is None else tuple(cohort)
        total = RoundSum(self.terms(cohort))
        for site in cohort:
            total.add(self.upload(site, cohort))
        self.sums.append(total.close().to_bytes())
        return self.sums[-1]

    def run_all(self) -> None:
        """Run every round that is left; the last sum is not delivered."""
        while len(self.sums) <= self.agreement.last_round:
            self.prepare_all()
            self.sum_up()

    def close(self, position: int) -> bytes:
        return self.ask(position, Request.CLOSE, history=pack_list(self.sums))["note"]

    def card_of(self, position: int) -> RunCard:
        return RunCard.from_bytes(self.cards[position], self.agreement, self.run)

    def copied_to(self, directory: Path) -> Federation:
        shutil.copytree(self.directory, directory)
        return replace(self, directory=directory, cards=dict(self.cards), sums=list(self.sums))


class UnreliableGrid(InProcessGrid):
    """An in-process grid on which replies can be lost or replaced."""

    def __init__(self, federation: Federation, interfere: Interfere, nodes: Sequence[int]) -> None:
        sites = len(federation.everyone)
        configs = {node: {"partition-id": node - 100, "num-partitions": sites} for node in nodes}
        super().__init__(app, configs, {"hydra": to_yaml(federation.experiment)})
        self._interfere = interfere
        self._lost: set[str] = set()
        self._down: dict[int, Context] = {}

    def take_down(self, node):
        """Have a node vanish: it is not listed, and what was sent to it is never answered."""
        self._down[node] = self._contexts.pop(node)

    def bring_back(self, node, new_node=None):
        """Have a node come back, perhaps as another one."""
        self._contexts[node if new_node is None else new_node] = self._down.pop(node)

    def pull_messages(self, message_ids):
        replies = []
        for message_id in message_ids:
            if message_id in self._waiting and self._waiting[message_id].metadata.dst_node_id not in self._contexts:
                del self._waiting[message_id]
                self._lost.add(message_id)
            if message_id not in self._lost:
                (reply,) = super().pull_messages([message_id])
                replies.append(self._interfere(reply))
                if replies[-1] is None:
                    self._lost.add(message_id)
        return [reply for reply in replies if reply is not None]


@pytest.fixture(scope="session")
def founded_once(tmp_path_factory) -> Federation:
    return Federation.found(tmp_path_factory.mktemp("founded") / "run")


@pytest.fixture(scope="session")
def opened_once(founded_once, tmp_path_factory) -> Federation:
    federation = founded_once.copied_to(tmp_path_factory.mktemp("opened") / "run")
    federation.open()
    return federation


@pytest.fixture(scope="session")
def started_once(opened_once, tmp_path_factory) -> Federation:
    federation = opened_once.copied_to(tmp_path_factory.mktemp("started") / "run")
    federation.prepare_all()
    federation.sum_up()
    federation.prepare_all()
    return federation


@pytest.fixture(scope="session")
def summed_once(started_once, tmp_path_factory) -> Federation:
    federation = started_once.copied_to(tmp_path_factory.mktemp("summed") / "run")
    federation.run_all()
    return federation


@pytest.fixture(scope="session")
def closed_once(summed_once, tmp_path_factory) -> Federation:
    federation = summed_once.copied_to(tmp_path_factory.mktemp("closed") / "run")
    for site in federation.everyone:
        federation.close(site)
    return federation


def run_to_an_expanded_sum(directory: Path) -> Federation:
    model, crypto = ModelTerms(kind="mlp", hidden=(64, 64)), CryptoTerms(largest_seeded_cohort=SITES - 1)
    federation = Federation.found(directory, replace(EXPERIMENT, model=model, crypto=crypto))
    federation.open()
    for _ in range(2):
        federation.prepare_all()
        federation.sum_up()
    return federation


@pytest.fixture(scope="session")
def expanded_once(tmp_path_factory) -> Federation:
    return run_to_an_expanded_sum(tmp_path_factory.mktemp("expanded") / "run")


@pytest.fixture
def founded(founded_once, tmp_path) -> Federation:
    """Four sites that have pinned their agreement; no run yet."""
    return founded_once.copied_to(tmp_path / "founded")


@pytest.fixture
def opened(opened_once, tmp_path) -> Federation:
    """A run whose sites share their keys; no round yet."""
    return opened_once.copied_to(tmp_path / "opened")


@pytest.fixture
def started(started_once, tmp_path) -> Federation:
    """A run whose statistics are summed, and whose sites have all prepared round 1."""
    return started_once.copied_to(tmp_path / "started")


@pytest.fixture
def summed(summed_once, tmp_path) -> Federation:
    """A run with all its sums made; the last one is still to be delivered, with the closing."""
    return summed_once.copied_to(tmp_path / "summed")


@pytest.fixture
def closed(closed_once, tmp_path) -> Federation:
    """A run that all its sites have ended."""
    return closed_once.copied_to(tmp_path / "closed")


@pytest.fixture
def found(tmp_path) -> Callable[[ExperimentConfig], Federation]:
    """Found a consortium for another experiment."""
    return lambda experiment: Federation.found(tmp_path / "found", experiment)


@pytest.fixture
def expanded(expanded_once, tmp_path) -> Federation:
    """A run in which the sum of round 1 is made, expanded and of three ciphertexts, and not delivered."""
    return expanded_once.copied_to(tmp_path / "expanded")


@pytest.fixture
def run_expanded(tmp_path) -> Callable[[], Federation]:
    """Run anew what `expanded` has run, in case its sites are to behave in another way."""
    return lambda: run_to_an_expanded_sum(tmp_path / "expanded")


@pytest.fixture
def grid_of(monkeypatch) -> Callable[..., UnreliableGrid]:
    """Make a Flower grid to a federation's sites: node 100 + position, through the real ClientApp."""

    def make(federation: Federation, interfere: Interfere = lambda reply: reply, *, nodes=None) -> UnreliableGrid:
        monkeypatch.setenv(RUN_DIRECTORY_VARIABLE, str(federation.directory))
        return UnreliableGrid(
            federation, interfere, [100 + site for site in federation.everyone] if nodes is None else nodes
        )

    return make


@pytest.fixture
def run(grid_of, monkeypatch) -> Callable[..., Result]:
    """Run a whole federation through the real strategy; the provider's record is below `provider/`.

    Sites draw their reports only on request: that takes longer than all the rest.
    """

    def start(
        federation: Federation,
        interfere: Interfere = lambda reply: reply,
        *,
        nodes=None,
        wrap=lambda grid: grid,
        reports=False,
        patience_seconds=0.6,
    ):
        if not reports:
            monkeypatch.setattr("clients.node.answering._write_report", lambda site, run: None)
        strategy = EncryptedFedAvg(
            terms=federation.experiment.terms,
            sites=len(federation.everyone),
            join_seconds=0.0,
            ready_seconds=patience_seconds,
            upload_seconds=patience_seconds,
            journal=RunRecord(federation.directory / "provider"),
        )
        grid = wrap(grid_of(federation, interfere, nodes=nodes))
        return strategy.start(grid, ArrayRecord(), num_rounds=federation.experiment.strategy.rounds)

    return start
