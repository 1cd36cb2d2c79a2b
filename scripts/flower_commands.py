"""Run the Flower commands that talk to a SuperLink.

Trust: runs beside the SuperLink, on the same machine: at the simulation's observer, or at the provider.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NewType

from protocol.errors import RunFailedError
from scripts.environment import program

RunId = NewType("RunId", str)
NodeId = NewType("NodeId", str)

_CONNECTION: Final = "cipherward"
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


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowerNode:
    """What Flower says about a registered node.

    Attributes:
        status: "registered" (never seen), "online", "offline" or "unregistered".
        online_since: When it came last, as text in UTC.
        offline_since: When it went last, as text in UTC.
    """

    status: str
    online_since: str
    offline_since: str


class FlowerCommands:
    """Flower's command line, and one SuperLink that it talks to.

    Args:
        environment: The commands' whole environment; `FLWR_HOME` names the directory that `write_connection` wrote to.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    def submit(self, project: Path, run_config: Mapping[str, str], *, federation: Mapping[str, object]) -> RunId:
        """Start a run of a Flower project.

        Args:
            project: Directory with the project's pyproject.toml.
            run_config: Values for keys of the project's run config.
            federation: Settings of a simulation; empty for a deployment.

        Raises:
            RunFailedError: Flower refused the project or its configuration.
        """
        overrides = Path(self._environment["FLWR_HOME"], "overrides.toml")
        # A JSON string without escaped non-ASCII is a TOML string, but for DEL, which YAML escapes.
        lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in run_config.items()]
        overrides.write_text("".join(lines), encoding="utf-8")
        settings = " ".join(f"{key}={value}" for key, value in federation.items())
        answer = self._ask(
            "run", str(project), _CONNECTION, "--run-config", str(overrides),
            *(["--federation-config", settings] if settings else []),
        )  # fmt: skip
        return RunId(answer["run-id"])

    def status(self, run: RunId) -> FlowerStatus:
        """Ask how a run stands; takes about two seconds of a core.

        Raises:
            RunFailedError: The SuperLink does not answer.
        """
        row = self._ask("list", _CONNECTION, "--run-id", run)["runs"][0]
        return FlowerStatus(text=row["status"], details=row["status-details"])

    def run_log(self, run: RunId) -> str:
        """Return what ServerApp and ClientApps logged so far."""
        return self._run("log", run, _CONNECTION, "--show").stdout

    def register(self, public_key: Path, name: str) -> NodeId:
        """Register a node, so that the SuperLink lets it in.

        Args:
            public_key: File with the node's OpenSSH public key.
            name: What Flower shows for it.

        Raises:
            RunFailedError: The SuperLink does not answer, or has registered this key before.
        """
        return NodeId(str(self._ask("supernode", "register", str(public_key), _CONNECTION, "--name", name)["node-id"]))

    def unregister(self, node: NodeId) -> None:
        """Unregister a node: the SuperLink refuses it from now on, and its key for ever.

        Raises:
            RunFailedError: The SuperLink does not answer, or knows no such node.
        """
        self._ask("supernode", "unregister", node, _CONNECTION)

    def nodes(self) -> dict[NodeId, FlowerNode]:
        """Return all nodes that were ever registered.

        Raises:
            RunFailedError: The SuperLink does not answer.
        """
        return {
            NodeId(row["node-id"]): FlowerNode(
                status=row["status"], online_since=row["online-at"], offline_since=row["offline-at"]
            )
            for row in self._ask("supernode", "list", _CONNECTION)["nodes"]
        }

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


def write_connection(home: Path, address: str, authority: Path | None) -> None:
    """Tell Flower's commands where the SuperLink is.

    Args:
        home: What `FLWR_HOME` names.
        address: Host and port.
        authority: Absolute path of the certificate that vouches for the SuperLink; None for one without TLS.
    """
    trust = "insecure = true" if authority is None else f"root-certificates = {json.dumps(str(authority))}"
    text = f"[superlink.{_CONNECTION}]\naddress = {json.dumps(address)}\n{trust}\n"
    (home / "config.toml").write_text(text, encoding="utf-8")


def readable_tail(text: str, lines: int) -> str:
    """Return the last lines of a log, without the colours that Flower writes into files too."""
    return "\n".join(_COLOUR.sub("", text).splitlines()[-lines:])
