from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from clients.data.table_file import TableFile
from clients.learning.epsilon import epsilon_of
from clients.run.membership import AGREEMENT, TABLE
from conf import compose
from protocol.agreement import Agreement, SiteCard
from protocol.errors import ConfigurationError, MalformedError
from protocol.packing import RoundKind
from protocol.privacy_terms import PrivacyTerms
from scripts.events import RunStatus
from scripts.simulation.observer import summarise
from scripts.simulation.summary import Scores

SITES = ("site-a", "site-b", "site-c")
MODEL = np.arange(31, dtype=np.float64) / 7


@pytest.fixture
def agreement() -> Agreement:
    keys = {name: digit * 64 for name, digit in zip(SITES, "abc", strict=True)}
    cards = [SiteCard(name=name, signing_key=key, exchange_key=key) for name, key in keys.items()]
    terms = compose(["strategy.rounds=2", "federation.sites=3"]).terms
    return Agreement(roster=tuple(cards), terms=terms, code_digest="0" * 64, secret_digest="0" * 64)


@pytest.fixture
def run_directory(tmp_path: Path, agreement: Agreement) -> Path:
    """A run whose every number is known."""
    write_events(tmp_path / "provider", provider_events())
    write_site(tmp_path, "site-a", "1,0.4,0.9\n0,0.6,0.2\n", factor=1)
    write_site(tmp_path, "site-b", "1,0.7,0.8\n0,0.3,0.1\n", factor=2)
    write_site(tmp_path, "site-c", "1,0.6,0.7\n1,0.2,0.3\n", factor=3, auc=None)
    for name in SITES:
        (tmp_path / "sites" / name / AGREEMENT).write_bytes(agreement.to_bytes())
        save_table(tmp_path / "sites" / name / TABLE, agreement)
    return tmp_path


def save_table(path: Path, agreement: Agreement) -> None:
    """Write six patients whose first feature is high exactly if they are ill, and nothing else is known."""
    data = agreement.terms.data
    rows = [[label, *[""] * (len(data.columns) - 1), label] for label in "010101"]
    path.write_bytes(TableFile(name="data.csv", rows=rows, lines=[2, 3, 4, 5, 6, 7]).to_bytes(data))


def write_events(home: Path, events: list[dict[str, Any]]) -> None:
    home.mkdir(parents=True, exist_ok=True)
    (home / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


def provider_events() -> list[dict[str, Any]]:
    kinds = ["statistics", "train", "train", "evaluate"]
    rounds = [
        {
            "event": "round", "time": 101.0 + number, "round": number, "kind": kind, "cohort": list(SITES),
            "left_out": [], "up_bytes": 1000 * (number + 1), "down_bytes": 100 * (number + 1),
            "seconds": {"ready": 0.5, "upload": 0.25, "aggregate": 0.125, "total": 0.875},
        }
        for number, kind in enumerate(kinds)
    ]  # fmt: skip
    return [
        {"event": "started", "time": 100.0, "rounds": 2, "sites": 3},
        {"event": "joined", "time": 100.5, "sites": list(SITES)},
        {"event": "opened", "time": 100.7},
        *rounds,
        {"event": "finished", "time": 107.5, "states_identical": True},
    ]


def write_site(run_directory: Path, name: str, scores: str, *, factor: int, auc: float | None = 0.5) -> None:
    home = run_directory / "sites" / name
    (home / "models").mkdir(parents=True)
    metrics = {"auc": auc, "accuracy": 0.5, "brier": 0.25, "records": 2}
    result = {
        "site": name, "records": {"train": 10 * factor, "test": 2}, "local": metrics,
        "federated": {**metrics, "accuracy": 1.0}, "federated_sums": {"loss": 0.1},
    }  # fmt: skip
    (home / "result.json").write_text(json.dumps(result))
    (home / "scores.csv").write_text("label,local,federated\n" + scores)
    events = [
        {"event": kind, "time": 1.0, "round": number, "seconds": seconds * factor}
        for number in (1, 2)
        for kind, seconds in (("trained", 1.0), ("sealed", 0.5), ("released", 0.25), ("joined", 9.0))
    ]
    write_events(home, events)
    save_model(home, MODEL, factor)
    save_local_model(home, slope=-1 if name == "site-b" else 1)


def save_model(home: Path, model: np.ndarray, own: int) -> None:
    tensors = {"output.weight": model[None, :30], "output.bias": model[30:], "a site's own": np.full(3, own)}
    save_file(
        {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, home / "models/last.safetensors"
    )


def save_local_model(home: Path, slope: int) -> None:
    """Write a model that looks at the first feature alone."""
    tensors = {"output.weight": slope * np.eye(1, 30), "output.bias": np.zeros(1)}
    common = {"standardisation.mean": np.zeros(30), "standardisation.deviation": np.ones(30)}
    save_file(tensors | common, home / "models/local.safetensors")


def test_a_local_model_is_also_judged_on_everybodys_patients(run_directory: Path) -> None:
    results = summarise(run_directory, verify=False).results
    assert {name: result.local_everywhere.auc for name, result in results.items()} == {
        "site-a": 1.0,
        "site-b": 0.0,
        "site-c": 1.0,
    }
    assert results["site-a"].local_everywhere.n == 6  # two held out at each of three sites


def test_the_summary_has_the_numbers_of_the_run(run_directory: Path, agreement: Agreement) -> None:
    summary = summarise(run_directory, verify=False).as_json()
    assert summary["status"] == "completed"
    assert summary["rounds"] == 2
    assert summary["sites"] == list(SITES)
    assert summary["model"] == {"parameters": 31}
    assert summary["seconds"] == {"total": 7.5, "train": 4.0, "encrypt": 2.0, "aggregate": 0.5, "decrypt": 1.0}
    assert summary["traffic"]["up_bytes_per_site_per_round"] == 2500
    assert summary["traffic"]["down_bytes_per_site_per_round"] == 250
    assert summary["traffic"]["up_bytes_per_value"] == 2500 / agreement.plan(RoundKind.TRAIN).values
    assert summary["crypto"] == {
        "ring_degree": 2048, "modulus_bits": 32, "guard_bits": 7, "value_bits": 24, "security_bits": 128,
    }  # fmt: skip
    assert summary["privacy"] is None
    assert summary["agreement"] == {"max_abs_difference_from_plaintext": None, "sites_bit_identical": True}


def test_a_run_with_noise_has_an_epsilon_and_no_twin(run_directory: Path, agreement: Agreement) -> None:
    privacy = PrivacyTerms(noise_multiplier=10.0)
    noisy = replace(agreement, terms=replace(agreement.terms, privacy=privacy))
    for name in SITES:
        (run_directory / "sites" / name / AGREEMENT).write_bytes(noisy.to_bytes())

    summary = summarise(run_directory, verify=True).as_json()

    assert summary["privacy"] == {"epsilon": epsilon_of(noisy.terms), "delta": 1e-5}
    assert summary["agreement"]["max_abs_difference_from_plaintext"] is None


def test_site_metrics_are_the_sites_own(run_directory: Path) -> None:
    metrics = summarise(run_directory, verify=False).as_json()["metrics"]["sites"]
    assert list(metrics) == list(SITES)
    del metrics["site-b"]["local_everywhere"]
    assert metrics["site-b"] == {
        "records": {"train": 20, "test": 2},
        "local": {"auc": 0.5, "accuracy": 0.5, "brier": 0.25, "n": 2},
        "federated": {"auc": 0.5, "accuracy": 1.0, "brier": 0.25, "n": 2},
    }
    assert metrics["site-c"]["federated"]["auc"] is None


def test_global_metrics_pool_all_held_out_patients(run_directory: Path) -> None:
    pooled = summarise(run_directory, verify=False).pooled
    assert pooled is not None
    # federated: positives .9 .8 .7 .3, negatives .2 .1; local: positives .4 .7 .6 .2, negatives .6 .3
    assert pooled.federated == Scores(auc=1.0, accuracy=5 / 6, brier=pytest.approx(0.68 / 6), n=6)
    assert pooled.local == Scores(auc=4.5 / 8, accuracy=3 / 6, brier=pytest.approx(1.70 / 6), n=6)


def test_only_labels_of_one_kind_give_no_auc(run_directory: Path) -> None:
    for name in SITES:
        (run_directory / "sites" / name / "scores.csv").write_text("label,local,federated\n1,0.5,0.75\n")
    pooled = summarise(run_directory, verify=False).pooled
    assert pooled is not None
    assert pooled.federated == Scores(auc=None, accuracy=1.0, brier=0.0625, n=3)


def test_a_model_that_differs_in_one_bit_is_seen(run_directory: Path) -> None:
    other = MODEL.copy()
    other[3] = np.nextafter(other[3], 1)
    save_model(run_directory / "sites" / "site-c", other, 3)
    assert summarise(run_directory, verify=False).checks.sites_bit_identical is False


def test_the_largest_difference_from_the_plaintext_twin_is_told(
    run_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shifted(directory: Path) -> dict[str, np.ndarray]:
        assert directory == run_directory
        return dict.fromkeys(SITES, MODEL) | {"site-b": MODEL + np.where(np.arange(31) == 30, -0.25, 0.125)}

    monkeypatch.setattr("scripts.simulation.observer.plaintext_models", shifted)
    assert summarise(run_directory, verify=True).checks.max_abs_difference_from_plaintext == 0.25


def test_a_paused_run_is_summed_up_as_far_as_it_went(run_directory: Path) -> None:
    events = [*provider_events()[:5], {"event": "paused", "time": 103.0, "reason": "no upload by site-b"}]
    write_events(run_directory / "provider", events)
    for name in SITES:
        for file in ("result.json", "scores.csv", "models/last.safetensors"):
            (run_directory / "sites" / name / file).unlink()
    summary = summarise(run_directory, verify=False)
    assert summary.outcome.status is RunStatus.PAUSED
    assert summary.rounds == 1
    assert (summary.pooled, dict(summary.results)) == (None, {})
    assert summary.as_json()["metrics"] == {"global": None, "global_local": None, "typical_local": None, "sites": {}}
    assert summary.checks.sites_bit_identical is None


def test_a_run_that_only_started_has_no_traffic(run_directory: Path) -> None:
    write_events(run_directory / "provider", provider_events()[:1])
    summary = summarise(run_directory, verify=True)
    assert summary.outcome.status is RunStatus.INCOMPLETE
    assert summary.traffic is None
    assert summary.as_json()["traffic"] is None


def test_the_written_summary_is_what_was_summed_up(run_directory: Path) -> None:
    summary = summarise(run_directory, verify=False)
    summary.write(run_directory)
    assert json.loads((run_directory / "summary.json").read_text()) == summary.as_json()


def test_scores_in_another_layout_are_refused(run_directory: Path) -> None:
    (run_directory / "sites" / "site-a" / "scores.csv").write_text("label,federated,local\n1,0.5,0.5\n")
    with pytest.raises(MalformedError, match=r"scores\.csv"):
        summarise(run_directory, verify=False)


def test_a_directory_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=str(tmp_path)):
        summarise(tmp_path, verify=False)
