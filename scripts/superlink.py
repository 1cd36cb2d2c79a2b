"""Start a Flower SuperLink of one's own for a simulation.

`flwr run` would start a SuperLink by itself, but a shared one: on a fixed port, with the environment of whoever came
first, alive for ever. Each simulation gets its own instead, on a free port, in a directory that goes when it ends.

Trust: runs at the simulation's observer.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from protocol.errors import RunFailedError
from scripts.environment import core_count, program, simulation_environment
from scripts.flower_commands import FlowerCommands, RunId, readable_tail, write_connection
from scripts.supervisor import supervised

LOG_NAME: Final = "superlink.log"
HOST: Final = "127.0.0.1"
START_SECONDS: Final = 60.0
_START_ATTEMPTS: Final = 3


class SuperLink:
    """A running SuperLink in simulation mode.

    Attributes:
        commands: Talk to it.
    """

    def __init__(self, *, process: subprocess.Popen[bytes], commands: FlowerCommands, log: Path) -> None:
        self.commands = commands
        self._process = process
        self._log = log

    @property
    def is_alive(self) -> bool:
        """Whether the SuperLink still runs."""
        return self._process.poll() is None

    def submit(self, project: Path, run_config: dict[str, str], *, sites: int, client_cpus: float) -> RunId:
        """Start a run of a Flower project.

        Args:
            project: Directory with the project's pyproject.toml.
            run_config: Values for keys of the project's run config.
            sites: Number of simulated sites.
            client_cpus: Cores that one simulated site takes while it works; it decides how many work at once.

        Raises:
            RunFailedError: Flower refused the project or its configuration.
        """
        federation = {
            "num-supernodes": sites,
            "client-resources-num-cpus": client_cpus,
            "init-args-num-cpus": core_count(),
        }
        return self.commands.submit(project, run_config, federation=federation)

    def log_tail(self, lines: int = 20) -> str:
        """Return the last lines of the SuperLink's own log."""
        return readable_tail(self._log.read_text(encoding="utf-8", errors="replace"), lines)


@contextlib.contextmanager
def running_superlink(run_directory: Path) -> Iterator[SuperLink]:
    """Run a SuperLink for one simulation; it and all that it starts end with the context.

    Args:
        run_directory: Absolute path; the log goes to `logs/` in it.

    Yields:
        The SuperLink, ready for runs.

    Raises:
        RunFailedError: It did not start; the text has the end of its log.
    """
    log = run_directory / "logs" / LOG_NAME
    log.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        for _ in range(_START_ATTEMPTS):  # between choosing a port and using it, another program may take it
            superlink = stack.enter_context(_started(run_directory, log, free_port()))
            if superlink is not None:
                yield superlink
                return
            stack.close()
        end = readable_tail(log.read_text(encoding="utf-8", errors="replace"), 20)
        raise RunFailedError(f"the Flower SuperLink did not start; the end of {log}:\n{end}")


@contextlib.contextmanager
def _started(run_directory: Path, log: Path, port: int) -> Iterator[SuperLink | None]:
    # In /tmp whatever TMPDIR says: Ray keeps sockets below, and the path of a socket has at most 103 characters.
    home = Path(tempfile.mkdtemp(prefix="cipherward-", dir="/tmp"))
    write_connection(home, f"{HOST}:{port}", None)
    environment = simulation_environment(home, run_directory)
    command = [program("flower-superlink"), "--insecure", "--simulation", "--host", HOST, "--port", str(port)]
    with supervised(command, environment=environment, directory=home, log=log) as process:
        deadline = time.monotonic() + START_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            if is_healthy(port):
                yield SuperLink(process=process, commands=FlowerCommands(environment), log=log)
                return
            time.sleep(0.1)
        yield None


def free_port() -> int:
    """Return a port of loopback that nothing listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def is_healthy(port: int, trusted: ssl.SSLContext | None = None) -> bool:
    """Return whether a SuperLink answers.

    Args:
        port: On loopback.
        trusted: Knows its certificate; None for one without TLS.
    """
    if trusted is None:
        connection = http.client.HTTPConnection(HOST, port, timeout=1.0)
    else:
        connection = http.client.HTTPSConnection(HOST, port, timeout=1.0, context=trusted)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
