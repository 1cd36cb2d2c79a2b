"""Two experiments, shortened, as real Flower simulations: SuperLink, ServerApp, ClientApps in Ray."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from safetensors.numpy import load_file

from scripts.environment import program

_KEPT_IN_A_ROUND = (("cohorts/round-{:05d}", "cwc"), ("states/round-{:05d}", "mac"), ("sums/round-{:05d}", "cwa"))

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


def simulated(directory: Path, *overrides: str) -> tuple[Path, subprocess.CompletedProcess[str]]:
    command = [program("cipherward"), "run", "strategy.rounds=2", *overrides, f"hydra.run.dir={directory}"]
    return directory, subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    return simulated(tmp_path_factory.mktemp("simulation") / "run", "federation.sites=4")


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
    opening = {"run.id", "agreement.json", "session.cwk", "secrets.cws"}
    rounds = {f"{kind}.{suffix}" for kind, suffix in _KEPT_IN_A_ROUND}
    messages = {name.format(number) for name in rounds for number in range(4)}
    assert provider == {".lock", "events.jsonl", "report.html", "cohorts", "states", "sums", *opening, *messages}
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


@pytest.mark.simulation
def test_a_run_that_was_killed_is_gone_on_with_and_ends_as_if_nothing_had_happened(finished, tmp_path):
    directory = tmp_path / "run"
    command = [program("cipherward"), "run", "strategy.rounds=2", "federation.sites=4", f"hydra.run.dir={directory}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (directory / "provider/sums/round-00001.cwa").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()

    done = subprocess.run(
        [program("cipherward"), "resume", str(directory)], capture_output=True, text=True, timeout=250, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "round 1/2" not in done.stdout
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert summary["agreement"] == {"max_abs_difference_from_plaintext": 0.0, "sites_bit_identical": True}
    for site in summary["sites"]:
        model = load_file(directory / "sites" / site / "models/last.safetensors")
        uninterrupted = load_file(finished[0] / "sites" / site / "models/last.safetensors")
        assert {name: tensor.tobytes() for name, tensor in model.items()} == {
            name: tensor.tobytes() for name, tensor in uninterrupted.items()
        }


@pytest.mark.simulation
def test_four_real_hospitals_end_with_a_model_and_a_report_each(tmp_path):
    directory, process = simulated(tmp_path / "run", "experiment=heart_disease")

    assert process.returncode == 0, process.stdout + process.stderr
    hospitals = ["cleveland", "hungarian", "switzerland", "va"]
    assert [line.split()[0] for line in process.stdout.splitlines() if line.startswith(tuple(hospitals))] == hospitals
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["sites"] == hospitals
    assert {name: site["records"] for name, site in summary["metrics"]["sites"].items()} == {
        "cleveland": {"train": 227, "test": 76},
        "hungarian": {"train": 220, "test": 74},
        "switzerland": {"train": 92, "test": 31},
        "va": {"train": 150, "test": 50},
    }
    assert summary["agreement"] == {"max_abs_difference_from_plaintext": 0.0, "sites_bit_identical": True}
    assert len({(directory / "sites" / name / "models/last.safetensors").read_bytes() for name in hospitals}) == 4
    reports = sorted(str(path.relative_to(directory)) for path in directory.rglob("report.html"))
    assert reports == ["provider/report.html", *(f"sites/{name}/report.html" for name in hospitals)]
