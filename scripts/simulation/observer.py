"""Look through a finished run's directory and sum it up.

Trust: runs at the simulation's observer; reads what the provider wrote and what every site wrote, scores of held-out
patients included. No deployment has such a place.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np
from safetensors.numpy import load_file

from clients.data.table import Values
from clients.learning.epsilon import epsilon_of
from clients.learning.evaluation import Metrics, score
from clients.learning.models import ParameterLayout
from clients.learning.statistics import Standardisation
from clients.run.results import RESULT, SCORES, model_path, scores_from_csv
from clients.simulation import SITES
from protocol.agreement import Agreement
from protocol.packing import PackingPlan, RoundKind
from protocol.terms import Terms
from scripts.events import (
    PROVIDER_EVENTS,
    Event,
    RoundEvent,
    RunStatus,
    outcome_from_events,
    read_events,
    site_complaints,
)
from scripts.simulation.summary import (
    Checks,
    Comparison,
    Crypto,
    Privacy,
    Scores,
    Seconds,
    SiteResult,
    Summary,
    Traffic,
)
from scripts.simulation.twin import plaintext_models, run_agreement, run_learners


def summarise(run_directory: Path, *, verify: bool) -> Summary:
    """Sum up a run, completed or not.

    Args:
        run_directory: The run's directory.
        verify: Whether to train the plaintext twin of a completed run and compare; noise leaves nothing to compare.

    Raises:
        ConfigurationError: No site has pinned an agreement in that directory.
        MalformedError: A file of a site is not what a site writes.
    """
    agreement = run_agreement(run_directory)
    events = read_events(run_directory / PROVIDER_EVENTS)
    outcome = outcome_from_events(events)
    if outcome.status is not RunStatus.COMPLETED:
        outcome = replace(outcome, reason="; ".join([outcome.reason, *site_complaints(run_directory / SITES)]))
    rounds = [RoundEvent.from_event(event) for event in events if event["event"] == "round"]
    training = [event for event in rounds if event.kind == "train"]
    sites = next((tuple(event["sites"]) for event in events if event["event"] == "joined"), ())
    homes = [run_directory / SITES / name for name in sites]
    reporting = [home for home in homes if (home / RESULT).exists()]
    models = {home.name: read_model(home / model_path("last"), agreement.terms) for home in reporting}
    everywhere = _local_everywhere(run_directory, agreement, [home.name for home in reporting]) if reporting else {}
    privacy = agreement.terms.privacy
    difference = None
    if verify and not privacy.has_noise and outcome.status is RunStatus.COMPLETED:
        difference = difference_from_plaintext(run_directory, models)
    parameters = agreement.parameters
    return Summary(
        outcome=outcome,
        rounds=len(training),
        sites=sites,
        model_parameters=sum(math.prod(shape) for shape in _tensor_shapes(agreement.terms).values()),
        pooled=_pooled(reporting) if reporting else None,
        results={home.name: _site_result(home, everywhere[home.name]) for home in reporting},
        traffic=_traffic(training, agreement.plan(RoundKind.TRAIN)) if training else None,
        seconds=_seconds(events, rounds, homes),
        crypto=Crypto(
            ring_degree=parameters.ring_degree,
            modulus_bits=parameters.modulus_bits,
            guard_bits=parameters.guard_bits,
            value_bits=parameters.value_bits,
            security_bits=parameters.security_bits,
        ),
        privacy=Privacy(epsilon=epsilon_of(agreement.terms), delta=privacy.delta) if privacy.has_noise else None,
        checks=Checks(
            max_abs_difference_from_plaintext=difference,
            sites_bit_identical=_are_identical(models.values(), agreement.terms) if models else None,
        ),
    )


def _are_identical(models: Iterable[Values], terms: Terms) -> bool:
    """Return whether all sites hold the same shared values."""
    layout = ParameterLayout(terms.model, len(terms.data.inputs))
    return len({layout.split(values)[0].tobytes() for values in models}) == 1


def _site_result(home: Path, local_everywhere: Scores) -> SiteResult:
    result = json.loads((home / RESULT).read_text(encoding="utf-8"))
    return SiteResult(
        train_records=result["records"]["train"],
        test_records=result["records"]["test"],
        scores=Comparison(local=_scores(Metrics(**result["local"])), federated=_scores(Metrics(**result["federated"]))),
        local_everywhere=local_everywhere,
    )


def _scores(metrics: Metrics) -> Scores:
    return Scores(auc=metrics.auc, accuracy=metrics.accuracy, brier=metrics.brier, n=metrics.records)


def _pooled(homes: Sequence[Path]) -> Comparison:
    """Score all sites' held-out patients together."""
    sites = [scores_from_csv((home / SCORES).read_bytes()) for home in homes]
    labels, local, federated = (np.concatenate(column) for column in zip(*sites, strict=True))
    return Comparison(local=_scores(Metrics.of(labels, local)), federated=_scores(Metrics.of(labels, federated)))


def _traffic(training: Sequence[RoundEvent], plan: PackingPlan) -> Traffic:
    up_bytes = fmean(event.up_bytes for event in training)
    return Traffic(
        up_bytes_per_site_per_round=up_bytes,
        down_bytes_per_site_per_round=fmean(event.down_bytes for event in training),
        up_bytes_per_value=up_bytes / plan.values,
    )


def _seconds(events: Sequence[Event], rounds: Sequence[RoundEvent], homes: Sequence[Path]) -> Seconds:
    logs = [read_events(home / "events.jsonl") for home in homes]

    def mean_over_sites(kind: str) -> float:
        totals = [math.fsum(event["seconds"] for event in log if event["event"] == kind) for log in logs]
        return fmean(totals) if totals else 0.0

    return Seconds(
        total=events[-1]["time"] - events[0]["time"] if events else 0.0,
        train=mean_over_sites("trained"),
        encrypt=mean_over_sites("sealed"),
        aggregate=math.fsum(event.seconds.get("aggregate", 0.0) for event in rounds),
        decrypt=mean_over_sites("released"),
    )


def _local_everywhere(run_directory: Path, agreement: Agreement, names: Sequence[str]) -> dict[str, Scores]:
    """Score all sites' held-out patients by the model that each site trained alone."""
    learners = run_learners(run_directory, agreement)
    tables = [learners[name].held_out_table for name in names]
    labels = np.concatenate([table.labels for table in tables])
    features = np.concatenate([table.features for table in tables])
    scores = {}
    for name in names:
        path = run_directory / SITES / name / model_path("local")
        tensors = load_file(path)
        own = Standardisation(
            mean=tensors["standardisation.mean"],
            deviation=tensors["standardisation.deviation"],
            records=learners[name].training_table.records,
        )
        terms = agreement.terms
        scores[name] = _scores(Metrics.of(labels, score(terms.model, read_model(path, terms), own.apply(features))))
    return scores


def difference_from_plaintext(run_directory: Path, models: Mapping[str, Values]) -> float:
    """Return by how much a value of a site's final model differs at most from its plaintext twin's.

    Args:
        run_directory: Directory of a completed run.
        models: Site name -> float64 (P,), all values of its final model.
    """
    twins = plaintext_models(run_directory)
    differences = [np.max(np.abs(values - twins[name])) for name, values in models.items()]
    return float(np.nan_to_num(np.max(differences), nan=math.inf))


def read_model(path: Path, terms: Terms) -> Values:
    """Read a site's model file, float64 (P,), shared and personal values in order."""
    tensors = load_file(path)
    return np.concatenate([tensors[name].reshape(-1) for name in _tensor_shapes(terms)])


def _tensor_shapes(terms: Terms) -> dict[str, tuple[int, ...]]:
    return terms.model.tensor_shapes(len(terms.data.inputs))
