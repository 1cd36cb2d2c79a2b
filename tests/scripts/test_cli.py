from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from protocol.errors import ConfigurationError, FederationError
from scripts.complaint import print_complaint
from scripts.environment import project_root, simulation_environment

CIPHERWARD = [sys.executable, "-c", "from scripts.cli import main; main()"]


def cipherward(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CIPHERWARD, *arguments], cwd=project_root(), capture_output=True, text=True, timeout=120, check=False
    )


def test_help_names_every_command() -> None:
    done = cipherward("--help")
    assert done.returncode == 0
    for command in ("run", "summary", "agreement", "site", "check", "test", "bench"):
        assert f" {command} " in done.stdout


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys, scripts.cli\n"
        "print([name for name in ('torch', 'hydra', 'flwr', 'sklearn', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=project_root(), capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_help_for_run_lists_what_can_be_chosen() -> None:
    done = cipherward("run", "--help")
    assert done.returncode == 0
    assert "crypto: compact, default, precise" in done.stdout


def test_the_composed_configuration_can_be_printed_without_a_run(tmp_path: Path) -> None:
    done = cipherward("run", "strategy.rounds=3", "--cfg", "job", f"hydra.run.dir={tmp_path}/run")
    assert done.returncode == 0
    assert "rounds: 3" in done.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("strategy.roundz=3", "strategy.roundz"),
        ("strategy.rounds=many", "strategy.rounds"),
        ("federation.sites=1", "federation.sites"),
        ("model=forest", "model/forest"),
        ("federation.client_cpus=64", "federation.client_cpus"),
    ],
)
def test_a_wrong_override_stops_before_anything_starts(tmp_path: Path, override: str, named: str) -> None:
    done = cipherward("run", override, f"hydra.run.dir={tmp_path}/run")
    assert done.returncode == 1
    assert named in done.stderr
    assert "Traceback" not in done.stderr
    assert "starting" not in done.stdout
    assert not (tmp_path / "run" / "logs").exists()


def test_a_multirun_with_a_failed_job_fails(tmp_path: Path) -> None:
    done = cipherward("run", "-m", "federation.sites=1,0", f"hydra.sweep.dir={tmp_path}/sweep")
    assert done.returncode == 1
    assert "federation.sites = 1 is outside" in done.stderr
    assert "federation.sites = 0 is outside" in done.stderr


def test_a_run_directory_is_not_used_twice(tmp_path: Path) -> None:
    (tmp_path / "sites").mkdir()
    done = cipherward("run", f"hydra.run.dir={tmp_path}")
    assert done.returncode == 1
    assert f"{tmp_path} holds another run" in done.stderr


def test_summary_of_a_directory_without_a_run_fails_in_one_line(tmp_path: Path) -> None:
    done = cipherward("summary", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr == f"cipherward: {tmp_path} holds no run that got as far as an agreement\n"


def test_an_unknown_command_is_a_usage_error() -> None:
    assert cipherward("fly").returncode == 2


def test_a_complaint_is_one_indented_block_with_its_notes(capsys: pytest.CaptureFixture[str]) -> None:
    error = FederationError("the run failed:\nsite-b refused")
    error.add_note("run directory: /runs/1")
    print_complaint(error)
    assert capsys.readouterr().err == "cipherward: the run failed:\n  site-b refused\n  run directory: /runs/1\n"


def test_a_proxy_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NO_PROXY", "internal.example")
    environment = simulation_environment(tmp_path / "home", tmp_path / "run")
    assert environment["NO_PROXY"] == "internal.example,127.0.0.1"
    assert environment["PATH"].startswith(str(Path(sys.executable).parent))
    assert environment["CIPHERWARD_RUN_DIRECTORY"] == str(tmp_path / "run")


def test_an_installation_without_its_checkout_is_told_how_to_get_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("scripts.environment.__file__", str(tmp_path / "scripts" / "environment.py"))
    with pytest.raises(ConfigurationError, match="pip install -e"):
        project_root()
