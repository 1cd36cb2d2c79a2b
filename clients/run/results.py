"""What a site keeps of a run for its own people: models, metrics history, comparison with its own local model.

All else of a run is deleted when it ends. So every model is on disk before the site says that it has ended.

Trust: site only.
"""

from __future__ import annotations

import csv
import io
import json
from typing import Final

import numpy as np

from clients.data.table import Labels, Values
from clients.learning.learner import Learner
from clients.learning.models import tensors_of
from clients.learning.statistics import Standardisation
from clients.run.files import Position
from clients.run.membership import Membership
from protocol.errors import MalformedError
from protocol.prediction.model_file import model_file

MODELS: Final = "models"
METRICS: Final = "metrics.jsonl"
RESULT: Final = "result.json"
SCORES: Final = "scores.csv"
SCORE_COLUMNS: Final = ("label", "local", "federated")


class Results:
    """Writes a site's results into its vault.

    Args:
        membership: The site.
        learner: The site's learning.
        run: The run's id.
    """

    def __init__(self, membership: Membership, learner: Learner, run: bytes) -> None:
        self._membership = membership
        self._vault = membership.vault
        self._terms = membership.agreement.terms
        self._learner = learner
        self._run = run

    def after_sum(self, before: Position, after: Position) -> None:
        """Keep the best model so far, and a line of metrics: this site's own, and the federation's exact sums.

        Args:
            before: The position before the sum; the metrics in the sum are those of its model.
            after: The position after it.
        """
        state = after.learner
        if state.standardisation is None:
            return
        if state.best_loss < before.learner.best_loss:
            self._write_model("best", self._values(before), state.standardisation)
        values = self._values(after)
        entry: dict[str, object] = {
            "run": self._run.hex(),
            "round": before.round,
            "own": self._learner.evaluate(values, state.standardisation).as_json(),
        }
        if state.federated is not None:
            entry["federation_before_round"] = state.federated.as_json()
        self._vault.append(METRICS, entry)

    def finish(self, position: Position) -> None:
        """Keep the model that the run ended in, train the local baseline and write the comparison.

        Only here is the last model replaced: that of a run that dies is nobody's to begin another one from.
        """
        state = position.learner
        if state.standardisation is None:
            return
        values = self._values(position)
        self._write_model("last", values, state.standardisation)
        local, local_standardisation = self._learner.local_baseline()
        self._write_model("local", local, local_standardisation)
        result = {
            "site": self._membership.name,
            "records": {
                "train": self._learner.training_table.records,
                "test": self._learner.held_out_table.records,
            },
            "local": self._learner.evaluate(local, local_standardisation).as_json(),
            "federated": self._learner.evaluate(values, state.standardisation).as_json(),
            "federated_sums": None if state.federated is None else state.federated.as_json(),
        }
        self._vault.write(RESULT, json.dumps(result, indent=2).encode() + b"\n")
        self._vault.write(
            SCORES,
            _scores_csv(
                self._learner.held_out_table.labels,
                self._learner.held_out_scores(local, local_standardisation),
                self._learner.held_out_scores(values, state.standardisation),
            ),
        )

    def _values(self, position: Position) -> Values:
        return self._learner.values(position.learner, position.personal)

    def _write_model(self, name: str, values: Values, standardisation: Standardisation) -> None:
        tensors = tensors_of(self._terms.model.tensor_shapes(len(self._terms.data.inputs)), values)
        data = model_file(self._terms, tensors, mean=standardisation.mean, deviation=standardisation.deviation)
        self._vault.write(model_path(name), data)


def model_path(name: str) -> str:
    """Return the place of a model in the vault: "last" (of the last run that ended), "best" or "local"."""
    return f"{MODELS}/{name}.safetensors"


def scores_from_csv(data: bytes) -> tuple[Labels, Values, Values]:
    """Read a SCORES file.

    Returns:
        Held-out patients' labels, int8 (n,), and their scores by the local and the federated model, float64 (n,).

    Raises:
        MalformedError: Its columns are not SCORE_COLUMNS.
    """
    header, _, body = data.decode().partition("\n")
    if header.strip() != ",".join(SCORE_COLUMNS):
        raise MalformedError(f"header of {SCORES}", expected=",".join(SCORE_COLUMNS), got="another")
    labels, local, federated = np.loadtxt(body.splitlines(), delimiter=",", ndmin=2, dtype=np.float64).T
    return labels.astype(np.int8), local, federated


def _scores_csv(labels: np.ndarray, local: Values, federated: Values) -> bytes:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(SCORE_COLUMNS)
    writer.writerows(zip(labels.tolist(), local.tolist(), federated.tolist(), strict=True))
    return buffer.getvalue().encode()
