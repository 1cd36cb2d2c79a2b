"""A provider's processes: what is killed comes back, and nothing outlives the one who started it."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import tempfile
from pathlib import Path

import psutil
import pytest
from deployment import Hospital, provider_process, wait_until

import scripts.provider.service
from scripts.long_log import LONGEST_LOG_BYTES
from scripts.provider.service import Service, is_open

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes by their environment")


@pytest.fixture
def provider(tmp_path):
    with provider_process(tmp_path / "provider") as process:
        yield process


def is_served(provider) -> bool:
    return is_open(provider.directory, provider.directory.settings())


def kill(process: psutil.Process) -> None:
    process.kill()
    psutil.wait_procs([process], timeout=10)


def test_a_killed_superlink_and_a_killed_gate_come_back_where_they_were(provider, tmp_path):
    provider.start("--log-json")
    assert provider.command("provider", "admit", str(Hospital("basel").write_card(tmp_path))).returncode == 0
    port = (provider.directory.inner_tls.directory / "port").read_text()

    kill(provider.program("flower-superlink"))
    assert wait_until(lambda: provider.said("the SuperLink has ended"))
    assert wait_until(lambda: is_served(provider))
    kill(provider.program("server.gate"))
    assert wait_until(lambda: provider.said("the gate has ended"))
    assert wait_until(lambda: is_served(provider))

    assert (provider.directory.inner_tls.directory / "port").read_text() == port
    status = json.loads(provider.command("provider", "status", "--json").stdout)
    assert status["sites"] == [{"name": "basel", "status": "never seen", "since": ""}]
    assert provider.stop(signal.SIGINT) == 0
    assert provider.processes() == []
    events = [json.loads(line) for line in provider.output.read_text().splitlines()]
    assert [event["event"] for event in events] == ["ready", "ended", "ended", "stopped"]
    assert f"localhost:{provider.port}" in events[0]["text"]


def test_nothing_outlives_a_killed_provider_and_the_next_start_works(provider):
    provider.start()
    second = provider.command("provider", "start")
    assert second.returncode == 1
    assert "a provider runs on" in second.stderr
    assert is_served(provider)

    provider.stop(signal.SIGKILL)
    provider.start()  # at once: it waits for what is left of the first

    assert is_served(provider)
    assert len(provider.processes()) <= 7
    assert provider.stop() == 0
    assert provider.processes() == []


def test_a_port_that_another_program_has_is_named(provider):
    with socket.create_server(("127.0.0.1", provider.port)):
        done = provider.command("provider", "start")

    assert done.returncode == 1
    assert f"port {provider.port}" in done.stderr
    assert "--port" in done.stderr
    assert provider.processes() == []


def test_a_log_that_grows_long_begins_anew_and_its_writer_goes_on(tmp_path):
    log = tmp_path / "long.log"
    log.write_bytes(b"x" * (LONGEST_LOG_BYTES + 1))
    service = Service(
        name="writer",
        command=["/bin/sh", "-c", "echo before; read line; sleep 1; echo after; sleep 60"],
        environment=os.environ,
        log=log,
        held=os.open(tmp_path / "held", os.O_CREAT | os.O_RDWR),
    )
    service.start()
    try:
        service.watch(lambda event, text: None)
        assert (tmp_path / "long.previous.log").stat().st_size > LONGEST_LOG_BYTES
        assert wait_until(lambda: b"after" in log.read_bytes())
        assert log.stat().st_size < 100
    finally:
        service.end()


def test_what_cannot_be_started_again_now_is_tried_again_later(tmp_path, monkeypatch):
    told, supervised = [], scripts.provider.service.supervised
    service = Service(
        name="gate",
        command=["/bin/sh", "-c", "exit 1"],
        environment=os.environ,
        log=tmp_path / "short.log",
        held=os.open(tmp_path / "held", os.O_CREAT | os.O_RDWR),
    )

    def fail(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")

    def watched(event):
        service.watch(lambda name, text: told.append((name, text)))
        return event in [name for name, _ in told]

    service.start()
    try:
        (tmp_path / "tmp").mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
        monkeypatch.setattr(scripts.provider.service, "supervised", fail)
        assert wait_until(lambda: watched("not-started"), 30)
        assert not list((tmp_path / "tmp").iterdir())
        assert told[-1][1] == "the gate cannot be started: Too many open files; this is tried again in 2 s"

        monkeypatch.setattr(scripts.provider.service, "supervised", supervised)
        told.clear()
        assert wait_until(lambda: watched("ended"), 30)  # it was started, and ends at once again
    finally:
        service.end()
