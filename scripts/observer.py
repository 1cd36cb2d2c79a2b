"""Look through a finished run's directory and sum it up.

Trust: runs at the simulation's observer; reads what the provider wrote and what every site wrote, scores of held-out
patients included. No deployment has such a place.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

import conf
from clients.evaluation import Metrics
from conf import ExperimentConfig
from protocol.errors import ConfigurationError, MalformedError
from protocol.packing import PackingPlan, RoundKind, packing_plan
from protocol.parameters import CkksParameters, advise
from scripts.environment import CONFIG_NAME
from scripts.events import PROVIDER_EVENTS, Event, RoundEvent, outcome_from_events, read_events
from scripts.summary import Checks, Comparison, Crypto, Scores, Seconds, SiteResult, Summary, Traffic

SCORES_HEADER: Final = "label,local,federated"


def read_config(run_directory: Path) -> ExperimentConfig:
    """Read the configuration that a run was started with.

    Raises:
        ConfigurationError: The directory holds no run, or its configuration is damaged.
    """
    try:
        text = (run_directory / CONFIG_NAME).read_text(encoding="utf-8")
    except OSError:
        raise ConfigurationError(f"{run_directory} is not a run directory: it has no readable {CONFIG_NAME}") from None
    return conf.from_yaml(text)


def summarise(run_directory: Path, config: ExperimentConfig) -> Summary:
    """Sum up a run, completed or not.

    Args:
        run_directory: The run's directory.
        config: What it was started with.

    Raises:
        MalformedError: A file of a site is not what a site writes.
    """
    events = read_events(run_directory / PROVIDER_EVENTS)
    rounds = [RoundEvent.from_event(event) for event in events if event["event"] == "round"]
    training = [event for event in rounds if event.kind == "train"]
    sites = next((tuple(event["sites"]) for event in events if event["event"] == "joined"), ())
    homes = [run_directory / "sites" / name for name in sites]
    reporting = [home for home in homes if (home / "result.json").exists()]
    plan = train_plan(config)
    parameters = plan.parameters
    shapes = config.model.tensor_shapes(len(config.data.features))
    return Summary(
        outcome=outcome_from_events(events),
        rounds=len(training),
        sites=sites,
        model_parameters=sum(math.prod(shape) for shape in shapes.values()),
        pooled=_pooled(reporting) if reporting else None,
        results={home.name: _site_result(home) for home in reporting},
        traffic=_traffic(training, plan) if training else None,
        seconds=_seconds(events, rounds, homes),
        crypto=Crypto(
            ring_degree=parameters.ring_degree,
            modulus_bits=parameters.modulus_bits,
            guard_bits=parameters.guard_bits,
            value_bits=parameters.value_bits,
            security_bits=parameters.security_bits,
        ),
        checks=_checks(run_directory, config, homes),
    )


def train_plan(config: ExperimentConfig) -> PackingPlan:
    """Return the packing plan of a training round, with the parameters that the agreement derives."""
    terms = config.terms

    def advised(values: int) -> CkksParameters:
        return advise(
            sites=config.federation.sites,
            value_bits=terms.crypto.value_bits,
            values=values,
            security_bits=terms.crypto.security_bits,
        ).parameters

    most_values = max(packing_plan(kind, terms, advised(1)).values for kind in RoundKind)
    return packing_plan(RoundKind.TRAIN, terms, advised(most_values))


def _site_result(home: Path) -> SiteResult:
    result = json.loads((home / "result.json").read_text(encoding="utf-8"))
    return SiteResult(
        train_records=result["records"]["train"],
        test_records=result["records"]["test"],
        scores=Comparison(local=_scores(result["local"]), federated=_scores(result["federated"])),
    )


def _scores(metrics: dict[str, Any]) -> Scores:
    return Scores(auc=metrics["auc"], accuracy=metrics["accuracy"], brier=metrics["brier"], n=metrics["records"])


def _pooled(homes: Sequence[Path]) -> Comparison:
    """Score all sites' held-out patients together."""
    columns = np.concatenate([_score_columns(home / "scores.csv") for home in homes], axis=0)
    labels = columns[:, 0].astype(np.int8)
    return Comparison(local=_measured(labels, columns[:, 1]), federated=_measured(labels, columns[:, 2]))


def _score_columns(path: Path) -> npt.NDArray[np.float64]:
    """Read labels, local and federated scores, shape (patients, 3)."""
    header, _, body = path.read_text(encoding="utf-8").partition("\n")
    if header.strip() != SCORES_HEADER:
        raise MalformedError(f"header of {path}", expected=SCORES_HEADER, got="another")
    return np.loadtxt(body.splitlines(), delimiter=",", ndmin=2, dtype=np.float64)


def _measured(labels: npt.NDArray[np.int8], scores: npt.NDArray[np.float64]) -> Scores:
    metrics = Metrics.of(labels, scores)
    return Scores(auc=metrics.auc, accuracy=metrics.accuracy, brier=metrics.brier, n=metrics.records)


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


def _checks(run_directory: Path, config: ExperimentConfig, homes: Sequence[Path]) -> Checks:
    paths = [home / "models" / "last.safetensors" for home in homes]
    if not paths or not all(path.exists() for path in paths):
        return Checks(max_abs_difference_from_plaintext=None, sites_bit_identical=None)
    models = [_shared_model(path, config) for path in paths]
    difference = None
    if config.federation.verify:
        from scripts.twin import plaintext_model  # noqa: PLC0415 - trains again; only when asked for

        difference = float(np.max(np.abs(models[0] - plaintext_model(config, run_directory))))
    first = models[0]
    identical = all((model.dtype, model.tobytes()) == (first.dtype, first.tobytes()) for model in models)
    return Checks(max_abs_difference_from_plaintext=difference, sites_bit_identical=identical)


def _shared_model(path: Path, config: ExperimentConfig) -> npt.NDArray[np.float64]:
    """Return a site's last model as one vector, in the order of the model's tensors."""
    tensors = load_file(path)
    return np.concatenate([tensors[name].reshape(-1) for name in config.model.tensor_shapes(len(config.data.features))])
