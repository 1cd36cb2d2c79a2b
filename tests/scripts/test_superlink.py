from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from protocol.errors import FederationError
from scripts.flower_commands import RunId, readable_tail
from scripts.superlink import LOG_NAME, running_superlink


def servers(run_directory: Path) -> list[psutil.Process]:
    """Processes that were told to log into this run's directory."""
    marker = f"CIPHERWARD_RUN_DIRECTORY={run_directory}".encode()
    found = []
    for process in psutil.process_iter():
        try:
            if marker in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0"):
                found.append(process)
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes by their environment")
def test_a_superlink_answers_refuses_nonsense_and_is_gone_at_the_end(tmp_path: Path) -> None:
    with running_superlink(tmp_path) as superlink:
        assert superlink.is_alive
        assert len(servers(tmp_path)) >= 2
        with pytest.raises(FederationError, match="flwr list failed"):
            superlink.commands.status(RunId("17"))
        with pytest.raises(FederationError, match="flwr run failed"):
            superlink.submit(tmp_path, {"hydra": "a: 'b'\n"}, sites=3, client_cpus=1)
        assert "Starting Flower SuperLink" in superlink.log_tail(100)
    assert not superlink.is_alive
    assert servers(tmp_path) == []


def test_a_superlink_that_does_not_start_shows_its_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("scripts.superlink.free_port", lambda: 70_000)
    with pytest.raises(FederationError, match="between 1 and 65535"), running_superlink(tmp_path):
        pytest.fail("it must not start")
    assert (tmp_path / "logs" / LOG_NAME).exists()


def test_logs_are_shown_without_colours() -> None:
    assert readable_tail("one\n\x1b[91mERROR \x1b[0m: two\nthree", 2) == "ERROR : two\nthree"


def test_two_at_once_do_not_meet(tmp_path: Path) -> None:
    with running_superlink(tmp_path / "a") as first:
        with running_superlink(tmp_path / "b") as second:
            assert second.is_alive
        assert first.is_alive
        assert not second.is_alive
