"""Serve a provider: a SuperLink on loopback and the gate before it, each started again whenever it ends.

Trust: runs at the provider; handles processes and opens nothing of a run.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import httpx

from protocol.errors import ConfigurationError, RunFailedError
from scripts.environment import program
from scripts.event_lines import Tell
from scripts.flower_commands import readable_tail
from scripts.long_log import shorten_log
from scripts.provider.directory import SETTINGS, ProviderDirectory, ProviderSettings
from scripts.superlink import HOST, LOG_NAME, START_SECONDS, free_port
from scripts.supervisor import supervised
from server.tls import check_certificates, days_left

GATE_LOG_NAME: Final = "gate.log"

_TICK_SECONDS: Final = 0.2
_SHORTEST_PAUSE_SECONDS: Final = 0.5
_LONGEST_PAUSE_SECONDS: Final = 30.0
_STEADY_SECONDS: Final = 60.0
_FEW_DAYS: Final = 30.0


class Service:
    """A command that is started again whenever it ends, after a pause that grows if it ends at once.

    Args:
        name: What people call it.
        command: Program and arguments.
        environment: The command's whole environment.
        log: File that gets what it prints.
        held: Descriptor that stays open until nothing of it is left.
    """

    def __init__(
        self, *, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path, held: int
    ) -> None:
        self.name = name
        self.log = log
        self._command = command
        self._environment = environment
        self._held = held
        self._running = contextlib.ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._pause = _SHORTEST_PAUSE_SECONDS
        self._due = 0.0

    def start(self) -> None:
        """Start it.

        Raises:
            OSError: This machine lacks files, memory or disk for it.
        """
        directory = Path(tempfile.mkdtemp(prefix="cipherward-"))
        try:
            self._process = self._running.enter_context(
                supervised(
                    self._command, environment=self._environment, directory=directory, log=self.log, held=(self._held,)
                )
            )
        except OSError:
            directory.rmdir()  # nobody else will
            raise
        self._started = time.monotonic()

    def watch(self, tell: Tell) -> None:
        """Start it again if it has ended, when the time has come; keep its log short."""
        if self._process is not None and self._process.poll() is not None:
            self._process = None
            self._running.close()
            self._put_off(is_steady=time.monotonic() - self._started > _STEADY_SECONDS)
            tell("ended", f"the {self.name} has ended and is started again in {self._pause:g} s; see {self.log}")
        if self._process is None and time.monotonic() >= self._due:
            try:
                self.start()
            except OSError as error:  # what others have taken of this machine may be free again
                self._put_off(is_steady=False)
                why = f"{error.strerror}; this is tried again in {self._pause:g} s"
                tell("not-started", f"the {self.name} cannot be started: {why}")
        shorten_log(self.log)

    def _put_off(self, *, is_steady: bool) -> None:
        self._pause = _SHORTEST_PAUSE_SECONDS if is_steady else min(2 * self._pause, _LONGEST_PAUSE_SECONDS)
        self._due = time.monotonic() + self._pause

    def end(self) -> None:
        """End it, with all that it has started."""
        self._process = None
        self._running.close()


def serve(directory: ProviderDirectory, tell: Tell, stop: threading.Event) -> None:
    """Serve until asked to stop; then end all that was started.

    Args:
        directory: The provider's.
        tell: Told what happens.
        stop: Set by whoever wants it to end.

    Raises:
        ConfigurationError: Another process serves this directory, the port is taken, or the certificate has ended.
        RunFailedError: The SuperLink or the gate did not start; the text has the end of its log.
    """
    settings = directory.settings()
    check_certificates(directory.tls, settings.hosts)
    if (days := days_left(directory.tls)) < _FEW_DAYS:
        tell("certificate", f"{directory.tls.certificate} ends in {days:.0f} days")
    with directory.served() as held:
        way_out = f"take another: `cipherward provider init --port`, in a new directory, or `port` in {SETTINGS}"
        check_port(settings.listen, settings.port, way_out=way_out)
        inner_port = free_port()
        directory.prepare_inner(inner_port)
        superlink, gate = _superlink(directory, inner_port, held), _gate(directory, settings, inner_port, held)
        with contextlib.ExitStack() as stack:
            for service in (superlink, gate):
                stack.callback(service.end)
                service.start()
            _wait_until_ready(directory, settings, (superlink, gate), stop)
            if not stop.is_set():
                tell("ready", _welcome(directory, settings))
            while not stop.wait(_TICK_SECONDS):
                for service in (superlink, gate):
                    service.watch(tell)
        tell("stopped", "the provider has stopped; all that it has started has ended")


def _superlink(directory: ProviderDirectory, port: int, held: int) -> Service:
    tls = directory.inner_tls
    command = [
        program("flower-superlink"), "--host", HOST, "--port", str(port),
        "--ssl-ca-certfile", str(tls.authority), "--ssl-certfile", str(tls.certificate), "--ssl-keyfile", str(tls.key),
        "--enable-supernode-auth", "--disable-runtime-dependency-installation", "--isolation", "subprocess",
        "--database", str(directory.database),
    ]  # fmt: skip
    return Service(
        name="SuperLink",
        command=command,
        environment=directory.environment,
        log=directory.logs / LOG_NAME,
        held=held,
    )


def _gate(directory: ProviderDirectory, settings: ProviderSettings, inner_port: int, held: int) -> Service:
    tls = directory.tls
    command = [
        # -P: a package named `server` in the working directory must not be taken for this one
        sys.executable, "-P", "-m", "server.gate", "--listen", settings.listen, "--port", str(settings.port),
        "--certificate", str(tls.certificate), "--key", str(tls.key),
        "--superlink", f"https://{HOST}:{inner_port}", "--superlink-authority", str(directory.inner_tls.authority),
    ]  # fmt: skip
    return Service(
        name="gate", command=command, environment=directory.environment, log=directory.logs / GATE_LOG_NAME, held=held
    )


def _wait_until_ready(
    directory: ProviderDirectory, settings: ProviderSettings, services: Sequence[Service], stop: threading.Event
) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not stop.is_set() and not is_open(directory, settings):
        if time.monotonic() > deadline:
            superlink, gate = services
            broken = gate if directory.is_running() else superlink
            end = readable_tail(broken.log.read_text(encoding="utf-8", errors="replace"), 20)
            raise RunFailedError(f"the {broken.name} did not start; the end of {broken.log}:\n{end}")
        stop.wait(_TICK_SECONDS)


def is_open(directory: ProviderDirectory, settings: ProviderSettings) -> bool:
    """Return whether the gate answers for a SuperLink that does."""
    try:
        trusted = ssl.create_default_context(cafile=str(directory.tls.authority))
        with httpx.Client(verify=trusted, trust_env=False, timeout=5.0) as client:
            answer = client.get(
                f"https://{_reachable(settings.listen)}:{settings.port}/health",
                extensions={"sni_hostname": settings.hosts[0]},
            )
    except (httpx.HTTPError, OSError):
        return False
    return answer.is_success


def _reachable(listen: str) -> str:
    """Return an address under which this machine reaches what listens on another."""
    anywhere = {"0.0.0.0": HOST, "::": "[::1]"}  # noqa: S104 - compared, not listened on
    return anywhere.get(listen, f"[{listen}]" if ":" in listen else listen)


def check_port(listen: str, port: int, *, way_out: str) -> None:
    """Refuse a port that another program has, before anything is started.

    Args:
        listen: Address.
        port: Port.
        way_out: What a person may do beside ending that program.

    Raises:
        ConfigurationError: Says why nothing can listen there.
    """
    family = socket.AF_INET6 if ":" in listen else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the gate does, after a restart
        try:
            probe.bind((listen, port))
        except OSError as error:
            raise ConfigurationError(
                f"cannot listen on {listen}, port {port}: {error.strerror}; end what listens there, or {way_out}"
            ) from None


def _welcome(directory: ProviderDirectory, settings: ProviderSettings) -> str:
    return (
        f"ready for hospitals at {settings.address}; they need {directory.tls.authority}, and you their cards: "
        f"`cipherward provider admit CARD... --directory {directory.path}` in another terminal"
    )
