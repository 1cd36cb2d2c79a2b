"""Start a Flower SuperLink of one's own, and run the Flower commands that talk to it.

`flwr run` would start a SuperLink by itself, but a shared one: on a fixed port, with the environment of whoever came
first, alive for ever. Each simulation gets its own instead, on a free port, in a directory that goes when it ends.

Trust: runs at the simulation's observer.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NewType

from protocol.errors import RunFailedError
from scripts.environment import core_count, program, simulation_environment
from scripts.supervisor import supervised

RunId = NewType("RunId", str)

CONNECTION: Final = "cipherward"
LOG_NAME: Final = "superlink.log"
_HOST: Final = "127.0.0.1"
_START_SECONDS: Final = 60.0
_START_ATTEMPTS: Final = 3
_COMMAND_SECONDS: Final = 120.0
_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowerStatus:
    """What Flower says about a run.

    Attributes:
        text: For example "running" or "finished:completed".
        details: What went wrong, in Flower's words.
    """

    text: str
    details: str

    @property
    def is_finished(self) -> bool:
        """Whether nothing of the run goes on."""
        return self.text.startswith("finished")

    @property
    def is_completed(self) -> bool:
        """Whether the ServerApp returned without an error."""
        return self.text == "finished:completed"


class SuperLink:
    """A running SuperLink in simulation mode."""

    def __init__(self, *, process: subprocess.Popen[bytes], environment: Mapping[str, str], log: Path) -> None:
        self._process = process
        self._environment = environment
        self._log = log

    @property
    def is_alive(self) -> bool:
        """Whether the SuperLink still runs."""
        return self._process.poll() is None

    def submit(self, project: Path, *, sites: int, client_cpus: float, configuration: str) -> RunId:
        """Start a run of a Flower project.

        Args:
            project: Directory with the project's pyproject.toml.
            sites: Number of simulated sites.
            client_cpus: Cores that one simulated site takes while it works; it decides how many work at once.
            configuration: The composed configuration as YAML text.

        Raises:
            RunFailedError: Flower refused the project or its configuration.
        """
        overrides = Path(self._environment["FLWR_HOME"], "overrides.toml")
        # A JSON string without escaped non-ASCII is a TOML string, but for DEL, which YAML escapes.
        overrides.write_text(f"hydra = {json.dumps(configuration, ensure_ascii=False)}\n", encoding="utf-8")
        federation = {
            "num-supernodes": sites,
            "client-resources-num-cpus": client_cpus,
            "init-args-num-cpus": core_count(),
        }
        answer = self._ask(
            "run", str(project), CONNECTION, "--run-config", str(overrides),
            "--federation-config", " ".join(f"{key}={value}" for key, value in federation.items()),
        )  # fmt: skip
        return RunId(answer["run-id"])

    def status(self, run: RunId) -> FlowerStatus:
        """Ask how a run stands; takes about two seconds of a core.

        Raises:
            RunFailedError: The SuperLink does not answer.
        """
        row = self._ask("list", CONNECTION, "--run-id", run)["runs"][0]
        return FlowerStatus(text=row["status"], details=row["status-details"])

    def run_log(self, run: RunId) -> str:
        """Return what ServerApp and ClientApps logged so far."""
        return self._run("log", run, CONNECTION, "--show").stdout

    def log_tail(self, lines: int = 20) -> str:
        """Return the last lines of the SuperLink's own log."""
        return readable_tail(self._log.read_text(encoding="utf-8", errors="replace"), lines)

    def _ask(self, *arguments: str) -> dict[str, Any]:
        done = self._run(*arguments, "--format", "json")
        try:
            answer: dict[str, Any] = json.loads(done.stdout)
        except ValueError:
            answer = {"success": False, "error-message": done.stdout + done.stderr}
        if not answer.get("success"):
            reason = str(answer.get("error-message", done.stderr)).strip()
            raise RunFailedError(f"flwr {arguments[0]} failed:\n{readable_tail(reason, 20)}")
        return answer

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                [program("flwr"), *arguments],
                env=dict(self._environment),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_COMMAND_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise RunFailedError(f"flwr {arguments[0]} gave no answer in {_COMMAND_SECONDS:.0f} s") from None


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
            superlink = stack.enter_context(_started(run_directory, log, _free_port()))
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
    (home / "config.toml").write_text(
        f'[superlink.{CONNECTION}]\naddress = "{_HOST}:{port}"\ninsecure = true\n', encoding="utf-8"
    )
    environment = simulation_environment(home, run_directory)
    command = [program("flower-superlink"), "--insecure", "--simulation", "--host", _HOST, "--port", str(port)]
    with supervised(command, environment=environment, directory=home, log=log) as process:
        deadline = time.monotonic() + _START_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            if _is_healthy(port):
                yield SuperLink(process=process, environment=environment, log=log)
                return
            time.sleep(0.1)
        yield None


def readable_tail(text: str, lines: int) -> str:
    """Return the last lines of a log, without the colours that Flower writes into files too."""
    return "\n".join(_COLOUR.sub("", text).splitlines()[-lines:])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _is_healthy(port: int) -> bool:
    connection = http.client.HTTPConnection(_HOST, port, timeout=1.0)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
