"""A whole federation on this machine's loopback, to try it: a provider and its hospitals, each a process of its own.

What people do in a real consortium, enrol, agree, pin, admit, is done for them; all the rest is real: TLS, the gate,
node keys, a vault for each site.

Trust: whoever runs it sees every site's secrets, as with a simulation.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

import conf
from clients.run.membership import AGREEMENT
from clients.secrets.enrolment import CARD
from clients.simulation import check_hospitals, found_consortium
from conf import ExperimentConfig
from protocol.errors import ConfigurationError, RunFailedError
from scripts.alone import alone
from scripts.environment import program
from scripts.event_lines import Tell
from scripts.provider.directory import ProviderDirectory, ProviderSettings, write_whole
from scripts.provider.status import site_overviews
from scripts.simulation.launcher import EXPERIMENT
from scripts.superlink import HOST, START_SECONDS, free_port
from scripts.supervisor import supervised

_HOST_NAME: Final = "localhost"
_KEEPER: Final = "keeper.json"
_READY: Final = "ready"
_LOG: Final = Path("logs", "local.log")
_POLL_SECONDS: Final = 0.2
_UP_SECONDS: Final = 180.0
_DOWN_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalFederation:
    """Files of a federation on this machine.

    Attributes:
        directory: Where all of it is; absolute.
    """

    directory: Path

    @property
    def provider(self) -> ProviderDirectory:
        """The provider's directory."""
        return ProviderDirectory(self.directory / "provider")

    @property
    def agreement(self) -> Path:
        """The agreement that all sites have pinned."""
        return self.directory / AGREEMENT

    @property
    def vaults(self) -> list[Path]:
        """The sites' vaults, in roster order."""
        return sorted(path.parent for path in (self.directory / "sites").glob(f"*/{CARD}"))

    def found(self, experiment: ExperimentConfig) -> None:
        """Make provider and sites, with one agreement between them.

        Raises:
            ConfigurationError: The directory is not empty, or the patients cannot be dealt out so.
            DataError: A file breaks the schema, or a hospital has too few patients.
        """
        if self.directory.exists() and any(self.directory.iterdir()):
            raise ConfigurationError(f"{self.directory} is not empty; nothing in it is overwritten")
        tables = check_hospitals(experiment)
        settings = ProviderSettings(hosts=(_HOST_NAME,), listen=HOST, port=free_port())
        self.provider.found(settings, None)
        found_consortium(self.directory / "sites", tables, experiment.terms)
        self.agreement.write_bytes((self.vaults[0] / AGREEMENT).read_bytes())
        (self.directory / EXPERIMENT).write_text(conf.to_yaml(experiment), encoding="utf-8")

    def is_founded(self) -> bool:
        """Return whether `found` has come to its end here."""
        return (self.directory / EXPERIMENT).exists()

    def keeper(self) -> psutil.Process | None:
        """Return the process that keeps the federation up, if it is up."""
        try:
            kept = json.loads((self.directory / _KEEPER).read_text(encoding="utf-8"))
            process = psutil.Process(kept["pid"])
            return process if _is_alive(process) and process.create_time() == kept["started"] else None
        except (OSError, ValueError, psutil.Error):
            return None

    def up(self) -> None:
        """Start provider and sites in the background, and wait until they are connected.

        Raises:
            ConfigurationError: They are up already.
            RunFailedError: They did not start; the text has the end of the log.
        """
        if self.keeper() is not None:
            raise ConfigurationError(f"the federation in {self.directory} is up already")
        log = self.directory / _LOG
        log.parent.mkdir(exist_ok=True)
        keeper = _spawn(["local", "keep", "--directory", str(self.directory)], log)
        deadline = time.monotonic() + _UP_SECONDS
        while not self._is_ready(keeper.pid):
            if not _is_alive(keeper) or time.monotonic() > deadline:
                if _is_alive(keeper):  # one that has ended by itself may have met another
                    self.down()
                end = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])
                raise RunFailedError(f"the federation did not come up; the end of {log}:\n{end}")
            time.sleep(_POLL_SECONDS)

    def down(self) -> None:
        """End everything that `up` has started; nothing happens if nothing runs."""
        keeper = self.keeper()
        if keeper is not None:
            keeper.send_signal(signal.SIGTERM)
            try:
                keeper.wait(_DOWN_SECONDS)
            except psutil.TimeoutExpired:
                keeper.kill()  # what it has started notices, and ends too
        (self.directory / _KEEPER).unlink(missing_ok=True)

    def keep(self, tell: Tell, stop: threading.Event) -> None:
        """Run provider and sites until told to stop; then end them.

        Raises:
            ConfigurationError: Another process does.
            RunFailedError: The provider did not start, or a site did not connect.
        """
        with self.kept(), contextlib.ExitStack() as stack:
            stack.enter_context(self._process("provider", ["provider", "start", "--directory", self.provider.path]))
            _wait(self.provider.is_running, stop, START_SECONDS, "the provider did not start")
            tell("provider", "the provider runs")
            cards = [vault / CARD for vault in self.vaults]
            subprocess.run(
                [program("cipherward"), "provider", "admit", *cards, "--directory", self.provider.path], check=True
            )
            settings = self.provider.settings()
            line = ["--provider", settings.address, "--ca", self.provider.tls.authority]
            for vault in self.vaults:
                stack.enter_context(self._process(vault.name, ["site", "start", "--vault", vault, *line]))
            _wait(self._are_sites_online, stop, _UP_SECONDS, "not all sites have connected")
            (self.directory / _READY).write_text(str(os.getpid()), encoding="utf-8")
            tell("ready", f"{len(cards)} sites are connected")
            stop.wait()

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Be the only keeper, and leave word of who that is, so that `down` finds it whatever becomes of `up`.

        Raises:
            ConfigurationError: Another process is.
        """
        with alone(self.directory / ".keeper.lock", f"the federation in {self.directory} is up already"):
            kept = {"pid": os.getpid(), "started": psutil.Process().create_time()}
            write_whole(self.directory / _KEEPER, json.dumps(kept).encode())
            yield

    def _is_ready(self, keeper: int) -> bool:
        try:
            return (self.directory / _READY).read_text(encoding="utf-8") == str(keeper)
        except FileNotFoundError:
            return False

    def _are_sites_online(self) -> bool:
        return all(site.status == "online" for site in site_overviews(self.provider))

    @contextlib.contextmanager
    def _process(self, name: str, arguments: Sequence[object]) -> Iterator[None]:
        with supervised(
            [program("cipherward"), *map(str, arguments)],
            environment=os.environ,
            directory=Path(tempfile.mkdtemp(prefix="cipherward-")),
            log=self.directory / _LOG.with_name(f"{name}.log"),
        ):
            yield


def _is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _spawn(arguments: Sequence[str], log: Path) -> psutil.Process:
    """Start a command of ours that outlives this process; nobody here waits for its end."""
    command = [program("cipherward"), *arguments]
    with log.open("ab") as output, Path(os.devnull).open("rb") as nothing:
        redirections = [
            (os.POSIX_SPAWN_DUP2, nothing.fileno(), 0),
            (os.POSIX_SPAWN_DUP2, output.fileno(), 1),
            (os.POSIX_SPAWN_DUP2, output.fileno(), 2),
        ]
        pid = os.posix_spawn(command[0], command, os.environ, file_actions=redirections, setsid=True)
    return psutil.Process(pid)


def _wait(condition: Callable[[], bool], stop: threading.Event, seconds: float, failure: str) -> None:
    deadline = time.monotonic() + seconds
    while not stop.is_set() and not condition():
        if time.monotonic() > deadline:
            raise RunFailedError(failure)
        stop.wait(_POLL_SECONDS)
