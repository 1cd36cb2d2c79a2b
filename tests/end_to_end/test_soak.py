"""A deployed federation runs for many rounds: nothing grows but the records of what happened.

`SOAK_ROUNDS=200` in the environment makes it long.
"""

from __future__ import annotations

import contextlib
import os
import time

import psutil
import pytest

from conf import compose
from scripts.events import PROVIDER_EVENTS, read_events
from scripts.local.federation import LocalFederation
from scripts.provider.submission import compose_agreed, submit_new
from scripts.received_files import read_agreement

pytestmark = [pytest.mark.xdist_group("deployment"), pytest.mark.simulation, pytest.mark.slow]

ROUNDS = int(os.environ.get("SOAK_ROUNDS", "20"))
SETTLED = ROUNDS // 2
MOST = {"bytes of memory": 8 << 20, "open files": 3, "bytes on disk": 1 << 20}
PROGRAMS = {
    "SuperLink": "flower-superlink",
    "gate": "server.gate",
    "ServerApp": "flwr-serverapp",
    "SuperNode": "flower-supernode",
    "site": "site start",
}


@pytest.fixture
def federation(tmp_path):
    up = LocalFederation(directory=tmp_path / "federation")
    up.found(compose([f"strategy.rounds={ROUNDS}", "federation.sites=3", "federation.partition=iid"]))
    up.up()
    yield up
    up.down()


def processes(federation):
    """Return the long-lived processes of a federation, by program and id."""
    found = {}
    for process in federation.keeper().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            words = " ".join(process.cmdline())
            if "supervisor.py" in words or "forkserver" in words:
                continue
            for name, program in PROGRAMS.items():
                if program in words:
                    found[f"{name} {process.pid}"] = process
    return found


def use(federation):
    """Return what each process and each directory holds at the moment."""
    held = {}
    for name, process in processes(federation).items():
        with contextlib.suppress(psutil.Error):
            held[f"{name}: bytes of memory"] = process.memory_info().rss
            held[f"{name}: open files"] = process.num_fds()
    for vault in federation.vaults:
        held[f"{vault.name}: bytes on disk"] = size(vault, "events.jsonl", "metrics.jsonl", "journal.jsonl", "logs")
    provider = federation.provider
    held["provider: bytes on disk"] = size(provider.path, "events.jsonl", "sums", "cohorts", "states", "logs")
    return held


def size(directory, *records):
    """Return the bytes below a directory, without the records that a run is to leave."""
    total = 0
    for path in directory.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file() and not set(records) & set(path.relative_to(directory).parts):
                total += path.stat().st_size
    return total


def wait_for_round(federation, run, number):
    log = federation.provider.run(run) / PROVIDER_EVENTS
    deadline = time.monotonic() + 60 * ROUNDS
    while time.monotonic() < deadline:
        done = [event for event in read_events(log) if event["event"] in {"round", "failed", "paused"}]
        assert not done or done[-1]["event"] == "round", done[-1]
        if done and done[-1]["round"] >= number:
            return
        time.sleep(0.2)
    pytest.fail(f"round {number} did not come")


@pytest.mark.timeout(120 + 60 * ROUNDS)
def test_nothing_grows_but_the_records(federation):
    run, _ = submit_new(federation.provider, compose_agreed(read_agreement(federation.agreement), []))
    wait_for_round(federation, run, SETTLED)
    before = use(federation)
    wait_for_round(federation, run, ROUNDS)
    after = use(federation)

    grown = {name: after[name] - number for name, number in before.items() if name in after}
    print(*(f"{name}: {before[name]:,} + {more:,}" for name, more in sorted(grown.items())), sep="\n")
    assert {name.split()[0] for name in before} >= {"SuperLink", "gate", "ServerApp", "SuperNode", "site"}
    assert {name for name in before if not name.startswith("site ")} <= set(after)
    assert {name: more for name, more in grown.items() if more > MOST[name.rpartition(": ")[2]]} == {}
