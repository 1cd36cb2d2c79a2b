"""The default experiment, shortened, as a real Flower simulation: SuperLink, ServerApp, ClientApps in Ray."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import psutil
import pytest

from scripts.environment import program

KEYS = {
    "status", "rounds", "sites", "model.parameters",
    "metrics.global.auc", "metrics.global.accuracy", "metrics.global.brier", "metrics.global.n",
    "traffic.up_bytes_per_site_per_round", "traffic.down_bytes_per_site_per_round", "traffic.up_bytes_per_value",
    "seconds.total", "seconds.train", "seconds.encrypt", "seconds.aggregate", "seconds.decrypt",
    "crypto.ring_degree", "crypto.modulus_bits", "crypto.guard_bits", "crypto.value_bits", "crypto.security_bits",
    "agreement.max_abs_difference_from_plaintext", "agreement.sites_bit_identical",
}  # fmt: skip


def leaves(tree: object, path: str = "") -> set[str]:
    if not isinstance(tree, dict):
        return {path}
    return set().union(*(leaves(branch, f"{path}.{name}" if path else name) for name, branch in tree.items()))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    directory = tmp_path_factory.mktemp("simulation") / "run"
    command = [program("cipherward"), "run", "strategy.rounds=2", "federation.sites=4", f"hydra.run.dir={directory}"]
    return directory, subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)


@pytest.mark.simulation
def test_a_simulation_completes_and_names_its_directory_last(finished):
    directory, process = finished
    assert process.returncode == 0, process.stdout + process.stderr
    assert process.stdout.rstrip().splitlines()[-1] == str(directory)


@pytest.mark.simulation
def test_the_summary_has_every_key_and_the_model_is_the_plaintext_twins(finished):
    directory, _ = finished
    summary = json.loads((directory / "summary.json").read_text())
    assert leaves(summary) >= KEYS
    assert summary["status"] == "completed"
    assert summary["sites"] == [f"hospital-{number}" for number in (1, 2, 3, 4)]
    for site in summary["sites"]:
        for model in ("local", "federated"):
            assert set(summary["metrics"]["sites"][site][model]) == {"auc", "accuracy", "brier", "n"}
    assert summary["agreement"] == {"max_abs_difference_from_plaintext": 0.0, "sites_bit_identical": True}


@pytest.mark.simulation
def test_provider_and_sites_hold_what_is_theirs(finished):
    directory, _ = finished
    provider = {str(path.relative_to(directory / "provider")) for path in (directory / "provider").rglob("*")}
    assert provider == {"events.jsonl", "sums", *(f"sums/round-{number:05d}.cwa" for number in range(4))}
    for home in (directory / "sites").glob("hospital-*"):
        assert {path.name for path in (home / "models").iterdir()} == {
            f"{m}.safetensors" for m in ("best", "last", "local")
        }
        assert not list(home.glob("runs/*/*.secret"))


@pytest.mark.simulation
def test_nothing_is_left_running(finished):
    directory, _ = finished
    variable = f"CIPHERWARD_RUN_DIRECTORY={directory}".encode()
    left = []
    for process in psutil.process_iter():
        try:
            if variable in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0"):
                left.append(process.name())
        except OSError:
            continue
    assert left == []
