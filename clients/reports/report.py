"""A site's report of one run, for its doctors first: one page to look at, print and keep.

What the shared model is worth on this site's own patients, beside the model that the site trained alone; what its data
lack; what left it, and how large that was.

Trust: site only. The page shows measures, counts and curves of this site's patients, and is nobody else's business.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from markupsafe import Markup

from clients.data.table import Labels, Values
from clients.learning.epsilon import epsilon_of
from clients.learning.evaluation import COUNTS
from clients.learning.intervals import MEASURES, Resampled, resample
from clients.learning.learner import Learner
from clients.learning.score_cells import LARGEST_BOUND, ScoreCells
from clients.reports.charts import (
    Curve,
    calibration_chart,
    groups_of_cells,
    groups_of_scores,
    learning_chart,
    loss_chart,
    roc_chart,
)
from clients.reports.template import REPORT_TEMPLATE
from clients.run.membership import Membership
from clients.run.results import METRICS, SCORES, scores_from_csv
from clients.secrets.vault import Vault
from conf.page import render_page
from protocol.agreement import Agreement
from protocol.packing import RoundKind
from protocol.terms import ModelTerms

REPORT: Final = "report.html"
EVENTS: Final = "events.jsonl"

_FEW: Final = 10
"""Fewer held-out patients of either label than this, and intervals are too narrow."""

Entry: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One measure of both models on the same held-out patients.

    Attributes:
        key: "auc", "accuracy" or "brier".
        federated: Of the shared model.
        local: Of the site's own model.
    """

    key: str
    federated: Resampled
    local: Resampled

    @property
    def difference(self) -> Resampled:
        """Shared minus own."""
        return self.federated.minus(self.local)

    @property
    def verdict(self) -> str:
        """Which model is better beyond chance: "shared", "own", "neither", or "unknown"."""
        interval = self.difference.interval()
        if self.difference.value is None or interval is None:
            return "unknown"
        low, high = interval
        if low <= 0 <= high:
            return "neither"
        return "shared" if (low > 0) == (self.key != "brier") else "own"


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnGaps:
    """What is missing in one column of the site's table.

    Attributes:
        column: Its name.
        missing: Patients without a value.
        records: Patients.
    """

    column: str
    missing: int
    records: int

    @property
    def share(self) -> float:
        """Share of the patients without a value, 0..1."""
        return self.missing / self.records


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """The sealed updates that left the site for one kind of round.

    Attributes:
        kind: What the rounds summed.
        sizes: Bytes of each update.
        cohorts: Sites in each sum.
    """

    kind: RoundKind
    sizes: Sequence[int]
    cohorts: Sequence[int]

    @property
    def count(self) -> int:
        """Number of updates."""
        return len(self.sizes)

    @property
    def total(self) -> int:
        """Bytes of all updates together."""
        return sum(self.sizes)


def write_site_report(membership: Membership, learner: Learner, run: str) -> None:
    """Write REPORT into the site's vault, once the results of a run are there.

    Args:
        membership: The site.
        learner: Its learning, with the tables that the results come from.
        run: The run's id, hex; events and metrics of other runs are passed over.

    Raises:
        ConfigurationError: The vault has no scores: the run has not come to its results.
    """
    vault, agreement = membership.vault, membership.agreement
    events = _entries_of(vault, EVENTS, run)
    labels, local, federated = scores_from_csv(vault.read(SCORES))
    measures = _measures(labels, local, federated)
    page = render_page(
        REPORT_TEMPLATE,
        site=membership.name,
        data=agreement.terms.data.name,
        label=agreement.terms.data.label.meaning or agreement.terms.data.label.name,
        model=_model_in_words(agreement.terms.model, len(agreement.terms.data.inputs)),
        finished=max((event["time"] for event in events), default=None),
        rounds=agreement.terms.training.rounds,
        epsilon=epsilon_of(agreement.terms) if agreement.terms.privacy.has_noise else None,
        delta=agreement.terms.privacy.delta,
        colluders=agreement.terms.cohort.tolerated_colluders,
        training=learner.training_table,
        held_out=learner.held_out_table,
        measures=measures,
        better=[measure.key for measure in measures if measure.verdict == "shared"],
        worse=[measure.key for measure in measures if measure.verdict == "own"],
        known=[measure.key for measure in measures if measure.verdict != "unknown"],
        fewest=min(int((labels == label).sum()) for label in (0, 1)),
        few=_FEW,
        roc=roc_chart(labels, federated, local) if len(np.unique(labels)) > 1 else None,
        calibration=calibration_chart(
            {"shared model": groups_of_scores(labels, federated), "own model": groups_of_scores(labels, local)},
            "Calibration here",
        ),
        **_course_of_run(_entries_of(vault, METRICS, run), agreement),
        **_own_data(learner),
        sent=_sent(events, agreement),
    )
    vault.write(REPORT, page, is_durable=False)


def _entries_of(vault: Vault, name: str, run: str) -> list[Entry]:
    return [entry for entry in vault.lines(name) if entry.get("run") == run]


def _measures(labels: Labels, local: Values, federated: Values) -> list[Measure]:
    resampled = resample(labels, {"local": local, "federated": federated}, seed=0)
    return [Measure(key=key, federated=resampled["federated"][key], local=resampled["local"][key]) for key in MEASURES]


def _model_in_words(model: ModelTerms, inputs: int) -> str:
    kind = "neural network" if model.hidden else "logistic regression"
    widths = " and ".join(str(width) for width in model.hidden)
    hidden = f", {widths} hidden units ({model.activation})" if model.hidden else ""
    own = " and ".join("intercept" if name == "output.bias" else name for name in model.personal)
    personal = f", {own} trained here alone and never sent" if model.personal else ""
    return f"{kind}, {inputs} input{'' if inputs == 1 else 's'}{hidden}{personal}"


def _course_of_run(entries: Sequence[Entry], agreement: Agreement) -> dict[str, object]:
    """Return the learning curves, and what the last sums said of the shared model."""
    # a crash may have written a round's line twice; the evaluation's model is that of the last training round
    own = {entry["round"]: entry["own"] for entry in entries if entry["round"] < agreement.last_round}
    sums = {
        entry["round"] - 1: entry["federation_before_round"] for entry in entries if "federation_before_round" in entry
    }
    last_round, last = max(sums.items(), default=(0, None))
    known = {number: entry for number, entry in sums.items() if _is_known(entry, "auc")}
    charts: list[Markup] = []
    for title, key in (("AUC", "auc"), ("Brier score", "brier")):
        here, all_sites = _curve(own, key), _curve(known if key == "auc" else sums, key)
        if here or all_sites:
            reach = _curve(known, "auc_bound") if key == "auc" else None
            charts.append(learning_chart(title, here, all_sites, reach=reach))
    if sums:
        charts.append(loss_chart(_curve(sums, "loss"), _curve(sums, "training_loss")))
    calibration = None
    if last is not None:
        cells = ScoreCells.of(records=last["records"], **{name: last[name] for name in COUNTS})
        groups = groups_of_cells(cells, most_hidden=(agreement.terms.privacy.smallest_cell - 1) * len(agreement.roster))
        if groups:
            calibration = calibration_chart({"shared model": groups}, "Calibration, all sites")
    return {
        "curves": charts,
        "federation": last,
        "is_known": _is_known,
        "smallest_cell": agreement.terms.privacy.smallest_cell,
        "federation_rounds": last_round,
        "federation_calibration": calibration,
    }


def _is_known(entry: Entry, key: str) -> bool:
    """Return whether the patients of small cells leave a measure over all sites a number that says something."""
    return entry[key] is not None and entry[f"{key}_bound"] <= LARGEST_BOUND


def _curve(measures: Mapping[int, Entry], key: str) -> Curve:
    return {number: entry[key] for number, entry in sorted(measures.items()) if entry[key] is not None}


def _own_data(learner: Learner) -> dict[str, object]:
    """Return what is missing in the site's table, the worst column first, and how many rows repeat another."""
    table = learner.table
    missing = {
        given.column: int(np.isnan(table.features[:, position]).sum())
        for position, given in enumerate(learner.terms.data.inputs)
    }
    columns = [ColumnGaps(column=name, missing=count, records=table.records) for name, count in missing.items()]
    return {
        "columns": len(columns),
        "gaps": sorted((gap for gap in columns if gap.missing), key=lambda gap: -gap.missing),
        "repeated": table.repeated,
    }


def _sent(events: Sequence[Entry], agreement: Agreement) -> list[Sent]:
    by_kind: dict[RoundKind, list[Entry]] = defaultdict(list)
    for event in events:
        if event["event"] == "sealed":
            by_kind[agreement.round_kind(event["round"])].append(event)
    return [
        Sent(kind=kind, sizes=[event["bytes"] for event in sealed], cohorts=[event["cohort"] for event in sealed])
        for kind, sealed in by_kind.items()
    ]
