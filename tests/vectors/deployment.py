"""A provider in processes of its own on loopback, and hospitals' nodes that reach it through its gate.

Everything that is started ends with its context, also when a test fails.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from next_agreement import next_agreement

from clients.run.membership import AGREEMENT
from clients.run.upload_journal import JOURNAL
from clients.secrets.enrolment import CARD
from clients.secrets.identity import Identity
from protocol.agreement import SiteId
from protocol.enrolment import EnrolmentCard, signed_bytes
from scripts.environment import project_root
from scripts.events import PROVIDER_EVENTS, read_events
from scripts.provider.directory import ProviderDirectory
from scripts.simulation.twin import run_cohorts, run_learners, train_plain
from scripts.superlink import free_port
from server.record import is_worked_on

CIPHERWARD = [sys.executable, "-c", "from scripts.cli import main; main()"]
HOST = "localhost"
START_SECONDS = 90.0


def wait_until(condition: Callable[[], bool], patience_seconds: float = START_SECONDS) -> bool:
    deadline = time.monotonic() + patience_seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return condition()


def child_environment(**variables: str) -> dict[str, str]:
    paths = [variables.pop("PYTHONPATH", ""), str(project_root()), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        **variables,
    }


@dataclass
class Hospital:
    """One hospital, as far as the provider sees it."""

    name: str
    identity: Identity = field(default_factory=Identity.generate)
    node_key: EllipticCurvePrivateKey = field(default_factory=lambda: generate_private_key(SECP384R1()))

    def enrolment(self) -> EnrolmentCard:
        card = self.identity.card(SiteId(self.name))
        line = self.node_key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
        return EnrolmentCard(card=card, node_key=line, signature=self.identity.sign(signed_bytes(card, line)).hex())

    def write_card(self, directory: Path) -> Path:
        path = directory / f"{self.name}.card.json"
        path.write_bytes(self.enrolment().to_bytes())
        return path

    def write_node_key(self, directory: Path) -> Path:
        path = directory / f"{self.name}.node.key"
        path.write_bytes(self.node_key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
        path.chmod(0o600)
        return path


@dataclass
class ProviderProcess:
    """`cipherward provider start` on a directory, and the commands beside it."""

    directory: ProviderDirectory
    port: int
    process: subprocess.Popen[str] | None = None

    @property
    def output(self) -> Path:
        return self.directory.path / "start.err"

    def command(self, *arguments: str, seconds: float = 120.0) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*CIPHERWARD, *arguments],
            env=child_environment(CIPHERWARD_PROVIDER=str(self.directory.path)),
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def start(self, *arguments: str) -> None:
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [*CIPHERWARD, "provider", "start", *arguments],
                env=child_environment(CIPHERWARD_PROVIDER=str(self.directory.path)),
                stderr=output,
                stdin=subprocess.DEVNULL,
                text=True,
            )
        assert wait_until(lambda: self.said("ready") or self.process.poll() is not None)
        assert self.said("ready"), self.output.read_text()

    def said(self, word: str) -> bool:
        return word in self.output.read_text()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)

    def processes(self) -> list[psutil.Process]:
        """Return all that was started on this directory, found by its environment."""
        return _marked(f"CIPHERWARD_RUNS={self.directory.runs}")

    def program(self, word: str) -> psutil.Process:
        """Return the one process that runs a program, not its supervisor."""
        return _program(self.processes(), word)


@contextlib.contextmanager
def provider_process(directory: Path, *, host: str = HOST) -> Iterator[ProviderProcess]:
    """Found a provider on loopback; whatever is started of it is gone at the end."""
    port = free_port()
    provider = ProviderProcess(ProviderDirectory(directory), port)
    done = provider.command("provider", "init", "--host", host, "--port", str(port), "--listen", "127.0.0.1")
    assert done.returncode == 0, done.stderr
    try:
        yield provider
    finally:
        if provider.process is not None and provider.process.poll() is None:
            provider.process.terminate()
            try:
                provider.process.wait(60)
            except subprocess.TimeoutExpired:
                provider.process.kill()
                provider.process.wait()
        for process in provider.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()


@dataclass
class SiteProcess:
    """`cipherward site start` on a vault, with all that it starts."""

    vault: Path
    provider: ProviderProcess
    process: subprocess.Popen[str] | None = None

    @property
    def name(self) -> str:
        return self.vault.name

    @property
    def output(self) -> Path:
        return self.provider.directory.path.parent / f"{self.name}.err"

    @property
    def connection(self) -> list[str]:
        return ["--provider", f"{HOST}:{self.provider.port}", "--ca", str(self.provider.directory.tls.authority)]

    def environment(self, **variables: str) -> dict[str, str]:
        return child_environment(CIPHERWARD_VAULT=str(self.vault), **variables)

    def start(self, **variables: str) -> None:
        with self.output.open("a") as output:
            self.process = subprocess.Popen(
                [*CIPHERWARD, "site", "start", *self.connection],
                env=self.environment(**variables),
                stderr=output,
                stdin=subprocess.DEVNULL,
                text=True,
            )

    def check(self, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*CIPHERWARD, "site", "check", *self.connection],
            env=self.environment(**variables) | {"COLUMNS": "400"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def said(self, word: str) -> bool:
        return word in self.output.read_text()

    def lines(self, word: str) -> list[str]:
        """Return the lines with a word that people at this site have been told, without their times."""
        return [line.split(" ", 1)[1] for line in self.output.read_text().splitlines() if word in line]

    def processes(self) -> list[psutil.Process]:
        """Return all that was started on this vault, found by its environment."""
        return _marked(f"CIPHERWARD_VAULT={self.vault}")

    def supernode(self) -> psutil.Process:
        return _program(self.processes(), "flower-supernode")

    def forks(self) -> psutil.Process:
        """Return the server that the processes which answer messages are forked from; they are its children."""
        servers = [process for process in self.processes() if "forkserver" in " ".join(process.cmdline())]
        return min(servers, key=psutil.Process.create_time)

    def kill(self) -> None:
        """End it by `kill -9`; what it has started notices."""
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """End all of it, whatever state it is in."""
        for number in (signal.SIGCONT, signal.SIGKILL):
            for process in self.processes():
                with contextlib.suppress(psutil.Error):
                    process.send_signal(number)
        if self.process is not None:
            self.process.wait()
        wait_until(lambda: not self.processes(), 10)


def _marked(variable: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError):
            if variable.encode() in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0"):
                found.append(process)
    return found


def _program(processes: list[psutil.Process], word: str) -> psutil.Process:
    found = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            if any(word in part for part in words) and not any("supervisor.py" in part for part in words):
                found.append(process)
    assert len(found) == 1, (word, found)
    return found[0]


@dataclass
class Deployment:
    """A provider and sites in processes of their own, on the vaults of a consortium."""

    founded: Any
    """The consortium, a `Federation` of conftest; another one on the same vaults after a new agreement."""
    provider: ProviderProcess
    sites: list[SiteProcess]

    def renew(self, **changes: object) -> None:
        """Have all sites pin a new agreement, which carries a new run."""
        sites = len(self.founded.everyone)
        self.founded = next_agreement(self.founded, sites=sites, start_from=None, **changes)

    def submit(self, *overrides: str) -> str:
        """Submit a run, and return its name."""
        done = self.provider.command(*self._submission, "--no-wait", *overrides)
        assert done.returncode == 0, done.stderr
        name = self.provider.directory.run_names()[-1]
        assert name in done.stdout
        return name

    @contextlib.contextmanager
    def submitted(self) -> Iterator[tuple[str, subprocess.Popen[str]]]:
        """Submit a run and follow it in another process, as people do; yields its name and that process."""
        earlier = set(self.provider.directory.run_names())
        with subprocess.Popen(
            [*CIPHERWARD, *self._submission],
            env=child_environment(CIPHERWARD_PROVIDER=str(self.provider.directory.path)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                assert wait_until(lambda: len(self.provider.directory.run_names()) > len(earlier))
                (name,) = set(self.provider.directory.run_names()) - earlier
                yield name, process
            finally:
                process.kill()

    @property
    def _submission(self) -> list[str]:
        return ["submit", "--agreement", str(self.founded.vault(0).path(AGREEMENT))]

    def is_worked_on(self, name: str) -> bool:
        return is_worked_on(self.provider.directory.runs / name / PROVIDER_EVENTS.parent)

    def resume(self, name: str) -> subprocess.CompletedProcess[str]:
        return self.provider.command("submit", "--resume", name, seconds=280)

    def is_online(self) -> bool:
        """Return whether all sites are connected."""
        status = json.loads(self.provider.command("provider", "status", "--json").stdout)
        return {site["status"] for site in status["sites"]} == {"online"}

    def events(self, name: str) -> list[dict]:
        return read_events(self.provider.directory.runs / name / PROVIDER_EVENTS)

    def kinds(self, name: str) -> list[str]:
        return [event["event"] for event in self.events(name)]

    def wait_for(self, name: str, kind: str, count: int = 1, seconds: float = 200.0) -> None:
        assert wait_until(lambda: self.kinds(name).count(kind) >= count, seconds), self.story(name)

    def finish(self, name: str) -> None:
        """Wait for a run's end, which has to be a good one."""
        assert wait_until(lambda: {"finished", "failed", "paused"} & set(self.kinds(name)[-1:]), 200), self.story(name)
        assert self.kinds(name)[-1] == "finished", self.story(name)
        assert wait_until(lambda: not self.is_worked_on(name))

    def story(self, name: str) -> str:
        """Return what happened, for whoever reads why a test failed."""
        said = [f"{path}\n{path.read_text()}" for path in self.provider.directory.path.parent.glob("*.err")]
        return "\n".join([*map(str, self.events(name)), self.provider.output.read_text(), *said])

    def uploads(self, position: int) -> list[int]:
        """Return the rounds in which an update has left a site, of the last run that it uploaded in."""
        entries = [entry for entry in self.founded.vault(position).lines(JOURNAL) if "cohort" in entry]
        return [entry["round"] for entry in entries if entry["run"] == entries[-1]["run"]]

    def cohorts(self, name: str) -> list[list[int]]:
        """Return each round's cohort, by the sums that the provider keeps."""
        return run_cohorts(self.provider.directory.run(name), self.founded.agreement)

    def twin(self, name: str) -> list[np.ndarray]:
        """Return the models that the sites would have if the provider had added in the clear what it added."""
        learners = run_learners(self.founded.directory, self.founded.agreement)
        return list(train_plain(self.founded.agreement, learners, self.cohorts(name)).values())

    def check_models(self, name: str) -> None:
        """Check that every site's final model is its twin's, bit for bit."""
        for position, values in enumerate(self.twin(name)):
            np.testing.assert_array_equal(self.founded.values(position), values)


@contextlib.contextmanager
def deployment(founded: Any, home: Path) -> Iterator[Deployment]:
    """Start a provider, admit a consortium's sites, and start them on their vaults."""
    with contextlib.ExitStack() as stack:
        provider = stack.enter_context(provider_process(home / "provider"))
        provider.start()
        vaults = [founded.vault(position).directory for position in founded.everyone]
        done = provider.command("provider", "admit", *(str(vault / CARD) for vault in vaults))
        assert done.returncode == 0, done.stderr
        sites = [SiteProcess(vault, provider) for vault in vaults]
        for site in sites:
            stack.callback(site.end)
            site.start()
        deployed = Deployment(founded, provider, sites)
        assert wait_until(deployed.is_online, 4 * START_SECONDS), [site.output.read_text() for site in sites]
        yield deployed
