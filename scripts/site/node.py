"""Take part from one hospital: run its SuperNode, and answer what it takes in.

Trust: runs at the hospital, on its vault.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flwr.supercore.error import ApiErrorCode

from clients.node.message_process import UNMADE, preload
from clients.node.reachability import check_provider
from clients.node.responder import Responder, Response, reason_of
from clients.node.supernode import UNREACHABLE, SuperNode
from clients.run.membership import Place
from clients.secrets.enrolment import CARD, NODE_KEY
from clients.secrets.secret import SecretBytes
from protocol.errors import ConfigurationError
from scripts.alone import alone
from scripts.environment import flower_environment, program
from scripts.event_lines import Tell
from scripts.flower_commands import readable_tail
from scripts.long_log import shorten_log
from scripts.superlink import HOST, free_port
from scripts.supervisor import supervised

LOG: Final = Path("logs", "supernode.log")
_SECRET_BYTES: Final = 32
_POLL_SECONDS: Final = 0.2
_RESTART_SECONDS: Final = 5.0
_NOT_ACTIVATED: Final = f"[code: {ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED:d}]"
"""Flower's word for a node that the SuperLink does not know, or still takes for online."""

_LINES: Final = 100
"""Of the SuperNode's log, at its end, in which the reason of that end is looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """Where the provider is.

    Attributes:
        provider: Its "HOST:PORT".
        ca: The certificate authority that its certificate is checked against, a PEM file.
    """

    provider: str
    ca: Path


def start_site(place: Place, identity: SecretBytes | None, connection: Connection, tell: Tell) -> None:
    """Take part until the process is ended.

    Args:
        place: The site.
        identity: The site's identity if it is kept under a passphrase, else None.
        connection: Where the provider is.
        tell: Told what happens.

    Raises:
        ConfigurationError: Another process takes part with this vault.
    """
    vault = place.vault.directory
    log = vault / LOG
    with alone(vault / ".started", f"this site has been started already, by another process on {vault}"):
        if trouble := _trouble(connection):
            tell("trouble", trouble)
        with suppress(*UNMADE):  # the first message has to start that server, then
            preload()
        while True:
            begin = log.stat().st_size if log.exists() else 0
            try:
                with _supernode(vault, connection) as (process, supernode):
                    tell("started", f"{place.name} connects to {connection.provider}")
                    _respond(process, Responder(vault, identity, supernode), log, tell)
                # Flower's own words for a wrong clock are those for a node that it does not know
                said = log.read_bytes()
                since = said[begin if begin < len(said) else 0 :]  # shorter, if it was begun anew
                reason = _trouble(connection) or said_last(since.decode(errors="replace"))
            except (FileNotFoundError, PermissionError):
                raise  # the vault is gone, or not ours: that does not pass
            except UNMADE as error:  # files, memory or disk that others have taken may be free again
                reason = f"this machine lacks something: {reason_of(error)}"
            tell("supernode-ended", f"the SuperNode ended, and is started again: {reason}")
            time.sleep(_RESTART_SECONDS)


def _trouble(connection: Connection) -> str:
    """Return why no site of this machine gets to the provider, the clock included; empty if nothing is known."""
    try:
        check_provider(connection.provider, connection.ca)
    except ConfigurationError as error:
        return str(error)
    return ""


def said_last(text: str) -> str:
    """Return in one line why a SuperNode ended.

    Args:
        text: What it logged. What it says while it ends is no reason: an error before that is.
    """
    _, found, error = readable_tail(text, _LINES).rpartition("ERROR :")
    if _NOT_ACTIVATED in error:
        return (
            f"not admitted yet: send this site's card ({CARD} in the vault) to the provider, whose people admit it; a "
            "node that was killed is let in again within a minute"
        )
    return " ".join(error.partition("\n\n")[0].split()) if found else "it was killed, or ended without a word"


def _respond(process: subprocess.Popen[bytes], responder: Responder, log: Path, tell: Tell) -> None:
    while process.poll() is None:
        shorten_log(log)
        try:
            response = responder.respond()
        except UNREACHABLE:  # it has not started yet, or has just ended
            response = None
        if response is None:
            time.sleep(_POLL_SECONDS)
        else:
            tell("answered", _sentence(response), request=response.request, seconds=round(response.seconds, 3))


def _sentence(response: Response) -> str:
    if response.death:
        return f"{response.request}: {response.death}"
    return f"{response.request}: {'refused' if response.is_refused else 'answered'} in {response.seconds:.2f} s"


@contextmanager
def _supernode(vault: Path, connection: Connection) -> Iterator[tuple[subprocess.Popen[bytes], SuperNode]]:
    log = vault / LOG
    log.parent.mkdir(mode=0o700, exist_ok=True)
    secret, port = SecretBytes(os.urandom(_SECRET_BYTES)), free_port()
    with ExitStack() as stack:
        home = Path(tempfile.mkdtemp(prefix="cipherward-site-"))
        stack.callback(shutil.rmtree, home, ignore_errors=True)  # the supervisor does, too, if it comes to that
        secret_file = home / "executor.secret"
        secret_file.touch(mode=0o600)
        secret_file.write_bytes(secret.reveal())
        command = [
            program("flower-supernode"),
            "--superlink", connection.provider,
            "--root-certificates", str(connection.ca),
            "--auth-supernode-private-key", str(vault / NODE_KEY),
            "--isolation", "process", "--superexec-auth-secret-file", str(secret_file),
            "--host", HOST, "--port", str(port),
        ]  # fmt: skip
        process = stack.enter_context(
            supervised(command, environment=flower_environment(home), directory=home, log=log)
        )
        yield process, stack.enter_context(SuperNode(f"{HOST}:{port}", secret))
