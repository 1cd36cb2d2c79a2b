"""Train and score one fold of a study: encrypted federations in this process, and what they are compared with.

Trust: the study's observer, who owns every simulated site.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, Context, Message
from flwr.clientapp import ClientApp

from clients.data.generator import public_generator
from clients.data.table import Table, Values, fold_of_rows, split_table
from clients.data.table_file import TableFile, encode_table
from clients.learning.evaluation import score
from clients.learning.models import initial_values
from clients.learning.statistics import standardisation, statistics_sums
from clients.learning.training import train
from clients.run.results import SCORES, model_path, scores_from_csv
from clients.run.site import Site
from clients.secrets.vault import Vault
from clients.simulation import SITES, found_consortium
from conf import ExperimentConfig
from protocol.agreement import SiteId
from protocol.envelope import REQUEST_PARTS, Request, pack_envelope, unpack_envelope
from protocol.terms import Terms
from scripts.simulation.in_process import InProcessGrid, quiet_flower
from scripts.simulation.observer import difference_from_plaintext, read_model
from server.record import RunRecord
from strategies.encrypted_fedavg import EncryptedFedAvg

PERSONAL: Final = ("output.bias",)
"""What stays at a site in the method federated_personal."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Fold:
    """One fold of one repeat.

    Attributes:
        experiment: What is studied; its own fold and seed are those of the first repeat.
        files: Each site's file.
        repeat: Which dealing of the patients into folds, from 0.
        fold: Which of them is held out, from 0.
    """

    experiment: ExperimentConfig
    files: Mapping[SiteId, TableFile]
    repeat: int
    fold: int

    @cached_property
    def tables(self) -> dict[SiteId, Table]:
        """Each site's patients, by name."""
        return {name: encode_table(file, self.experiment.data) for name, file in self.files.items()}

    def held_out_rows(self, site: SiteId) -> npt.NDArray[np.int64]:
        """Return the rows of a site's table that this fold holds out, ascending."""
        terms = self.terms(())
        fold = fold_of_rows(self.tables[site].labels, folds=terms.data.folds, seed=terms.training.seed, site=site)
        return np.flatnonzero(fold == self.fold)

    def terms(self, personal: tuple[str, ...]) -> Terms:
        """Return what the sites agree on for this fold."""
        terms = self.experiment.terms
        return replace(
            terms,
            data=replace(terms.data, fold=self.fold),
            model=replace(terms.model, personal=personal),
            training=replace(terms.training, seed=terms.training.seed + self.repeat),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FoldScores:
    """One site's held-out patients of a fold.

    Attributes:
        rows: int64 (k,), their positions in the site's table.
        scores: Method -> float64 (k,), probability of label 1.
    """

    rows: npt.NDArray[np.int64]
    scores: Mapping[str, Values]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FoldResult:
    """What a fold came to.

    Attributes:
        sites: Site -> scores of its held-out patients.
        largest_difference: Largest difference between a value of a site's final model and its plaintext twin's, over
            both encrypted federations.
    """

    sites: Mapping[SiteId, FoldScores]
    largest_difference: float


def run_fold(fold: Fold) -> FoldResult:
    """Train every method on a fold's training patients, and score those that it holds out.

    Raises:
        FederationError: A federation failed.
    """
    with tempfile.TemporaryDirectory(prefix="cipherward-study-", dir=_scratch()) as directory:
        shared, difference = _federate(fold, (), Path(directory, "shared"))
        personal, personal_difference = _federate(fold, PERSONAL, Path(directory, "personal"))
    pooled = _pooled(fold)
    results = {}
    for name, table in fold.tables.items():
        rows = fold.held_out_rows(name)
        local, federated = shared[name]
        results[name] = FoldScores(
            rows=rows,
            scores={
                "local": local,
                "pooled": pooled[name],
                "federated": federated,
                "federated_personal": personal[name][1],
                "constant": np.full(len(local), np.delete(table.labels, rows).mean()),
            },
        )
    return FoldResult(sites=results, largest_difference=max(difference, personal_difference))


def _scratch() -> Path | None:
    """Return a place for vaults that nobody needs later: memory, where there is such a directory."""
    memory = Path("/dev/shm")  # noqa: S108 - TemporaryDirectory makes a private one in it
    return memory if os.access(memory, os.W_OK) else None


def _federate(fold: Fold, personal: tuple[str, ...], directory: Path) -> tuple[dict[str, tuple[Values, Values]], float]:
    """Run one encrypted federation, and its plaintext twin.

    Returns:
        Each site's local and federated scores, float64 (k,); and by how much a model differs from the twin's.
    """
    terms = fold.terms(personal)
    found_consortium(directory / SITES, fold.files, terms)
    vaults = [Vault(directory / SITES / name) for name in sorted(fold.files)]
    federation = fold.experiment.federation
    strategy = EncryptedFedAvg(
        terms=terms,
        sites=len(vaults),
        join_seconds=federation.join_seconds,
        ready_seconds=federation.ready_seconds,
        upload_seconds=federation.upload_seconds,
        journal=RunRecord(directory / "provider"),
    )
    with quiet_flower():
        strategy.start(_grid(vaults), ArrayRecord(), num_rounds=terms.training.rounds)
    models = {vault.directory.name: read_model(vault.path(model_path("last")), terms) for vault in vaults}
    scores = {vault.directory.name: scores_from_csv(vault.read(SCORES))[1:] for vault in vaults}
    return scores, difference_from_plaintext(directory, models)


def _grid(vaults: Sequence[Vault]) -> InProcessGrid:
    """Return a grid whose nodes are the sites."""
    sites = [Site.of(vault) for vault in vaults]
    app = ClientApp()

    def register(request: Request) -> None:
        category, action = request.split(".")

        @getattr(app, category)(action)  # type: ignore[untyped-decorator]  # looked up by name
        def handle(message: Message, context: Context) -> Message:
            parts = unpack_envelope(message.content, REQUEST_PARTS[request])
            answer = sites[context.node_id - 1].handle(request, parts)
            return Message(pack_envelope(answer), reply_to=message)

    for request in Request:
        register(request)
    return InProcessGrid(app, {position + 1: {} for position in range(len(vaults))}, {})


def _pooled(fold: Fold) -> dict[str, Values]:
    """Train on all sites' training patients together, which no hospital may; return each site's scores, (k,)."""
    terms = fold.terms(())
    training = replace(terms.training, proximal=0.0)  # there is no shared model to stay near to
    halves = {
        name: split_table(table, folds=terms.data.folds, fold=fold.fold, seed=training.seed, site=name)
        for name, table in fold.tables.items()
    }
    features = np.concatenate([known.features for known, _ in halves.values()])
    common = standardisation(statistics_sums(features, terms.data, smallest_cell=1), terms.data)
    values = train(
        terms.model,
        initial_values(terms.model, len(terms.data.inputs), training.seed),
        common.apply(features),
        np.concatenate([known.labels for known, _ in halves.values()]),
        training,
        epochs=training.rounds * training.local_epochs,
        rng=public_generator("pooled", seed=training.seed),
    )
    return {name: score(terms.model, values, common.apply(held_out.features)) for name, (_, held_out) in halves.items()}
