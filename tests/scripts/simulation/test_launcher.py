from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from conf import ExperimentConfig, compose
from protocol.errors import ConfigurationError, DataError, FederationError, RunPausedError
from scripts.simulation.launcher import check_simulation, simulate

PROJECT = """
[project]
name = "provider-that-ends"
version = "0.1.0"
license = "Apache-2.0"

[tool.flwr.app]
publisher = "cipherward"

[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "clients.app:app"

[tool.flwr.app.config]
hydra = ""
terms = ""
"""

SERVER_APP = """
import json, os, time
from pathlib import Path
from flwr.serverapp import ServerApp
import conf

app = ServerApp()

@app.main()
def main(grid, context):
    log = Path(os.environ["CIPHERWARD_RUN_DIRECTORY"], "provider", "events.jsonl")
    log.parent.mkdir()
    def write(event, **fields):
        with log.open("a") as file:
            file.write(json.dumps({"event": event, "time": time.time(), **fields}) + "\\n")
    write("started", rounds=conf.from_run_config(context.run_config).strategy.rounds, sites=len(grid.get_node_ids()))
    {ending}
"""


@pytest.fixture
def config() -> ExperimentConfig:
    return compose(["strategy.rounds=7", "federation.sites=3"])


def run(ending: str, config: ExperimentConfig, home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Simulate with a provider that ends in its own way; return what was shown."""
    project = home / "project"
    for package in ("server", "clients"):
        (project / package).mkdir(parents=True)
        (project / package / "__init__.py").touch()
    (project / "pyproject.toml").write_text(PROJECT)
    (project / "server" / "app.py").write_text(SERVER_APP.replace("{ending}", ending))
    (project / "clients" / "app.py").write_text("from flwr.clientapp import ClientApp\napp = ClientApp()\n")
    monkeypatch.setattr("scripts.simulation.launcher.project_root", lambda: project)
    shown = io.StringIO()
    simulate(config, home / "run", Console(file=shown))
    return shown.getvalue()


@pytest.mark.simulation
def test_a_run_that_finishes_is_followed_to_its_end(
    config: ExperimentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = run("write('finished', states_identical=True)", config, tmp_path, monkeypatch)
    assert "waiting for 3 sites" in shown
    assert "finished" in shown
    assert '"rounds": 7' in (tmp_path / "run" / "provider" / "events.jsonl").read_text()


@pytest.mark.simulation
@pytest.mark.parametrize(
    ("ending", "error", "reason"),
    [
        ("write('failed', reason='site-b refused')", FederationError, "the run failed: site-b refused"),
        ("write('paused', reason='no upload')", RunPausedError, "the run is paused: no upload"),
        ("raise ValueError('a provider without words')", FederationError, "a provider without words"),
    ],
)
def test_a_run_that_does_not_finish_says_why_and_where_its_logs_are(
    ending: str, error: type[FederationError], reason: str,
    config: ExperimentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    with pytest.raises(error, match=reason) as caught:
        run(ending, config, tmp_path, monkeypatch)
    log = tmp_path / "run" / "logs" / "run.log"
    assert caught.value.__notes__ == [
        f"log: {log}",
        f"run directory: {tmp_path / 'run'}",
        f"to go on with it: cipherward resume {tmp_path / 'run'}",
    ]
    assert "Starting Flower Simulation" in log.read_text()


def test_hospitals_of_few_patients_are_refused_before_anything_starts() -> None:
    with pytest.raises(DataError, match=r"hospital-\d: fewer than privacy\.smallest_events = 5"):
        check_simulation(compose(["privacy.smallest_events=5"]))


def test_noise_without_room_is_refused_before_anything_starts() -> None:
    check_simulation(compose(["privacy=noise"]))
    with pytest.raises(ConfigurationError, match=r"noise_multiplier = 5000: .* raise crypto\.value_bits"):
        check_simulation(compose(["privacy=noise", "privacy.noise_multiplier=5000", "crypto=compact"]))


def test_more_cores_than_there_are_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.simulation.launcher.core_count", lambda: 2)
    check_simulation(compose(["federation.client_cpus=2"]))
    with pytest.raises(ConfigurationError, match="client_cpus = 3 is more than this machine's 2"):
        check_simulation(compose(["federation.client_cpus=3"]))
