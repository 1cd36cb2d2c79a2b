"""A site in a process of its own, which dies by SIGKILL where a test says so.

Trust: tests only. The process is the hospital's: it answers over a vault, and only the vault outlives it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from itertools import count
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from flwr.app import Message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.supercore.task_identity import TaskIdentity

import clients.node.answering
from clients.node.answering import answer
from clients.run.site import Site
from clients.secrets.vault import Vault
from protocol.envelope import Request

RUN_ID: Final = 1

_END_SECONDS: Final = 10.0
# forks of a process that has loaded everything, also what torch loads when it trains first, start at once and share it
_PROCESSES: Final = get_context("forkserver")
_PROCESSES.set_forkserver_preload(["clients.node.answering", "torch.fx.experimental.symbolic_shapes"])


class SiteProcess:
    """A started process; it takes one message at a time.

    Args:
        vault: The site's vault.
        node: The node that the process is.

    Attributes:
        connection: Readable when there is a reply, or when the process is dead.
    """

    def __init__(self, vault: Path, node: int) -> None:
        self.connection, theirs = _PROCESSES.Pipe()
        self._process = _PROCESSES.Process(target=_serve, args=(theirs, vault, node), daemon=True)
        self._process.start()
        theirs.close()  # the process's own end is to be the only one, so that its death is seen

    def hand(self, message: Message, *, dies_before: int | None = None) -> None:
        """Give the process a message to handle.

        Args:
            message: The message.
            dies_before: None: the process lives; 0: it dies before it handles the message; n: before its n-th step on
                disk, or, when it takes fewer, before the reply leaves.
        """
        self.connection.send((message_to_proto(message).SerializeToString(), dies_before))

    def reply(self) -> Message:
        """Wait for the reply.

        Raises:
            EOFError: The process is dead.
        """
        return message_from_proto(ProtoMessage.FromString(self.connection.recv_bytes()))

    def end(self) -> int:
        """Kill the process if it lives, and return its exit code."""
        self._process.kill()
        self._process.join(_END_SECONDS)
        exit_code = self._process.exitcode
        self._process.close()
        self.connection.close()
        return exit_code


def _serve(connection: Connection, vault: Path, node: int) -> None:
    clients.node.answering._write_report = lambda site, run: (
        None
    )  # it takes longer than all the rest, and nobody waits for it
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = RUN_ID, 0, node
    while True:
        try:
            data, dies_before = connection.recv()
        except EOFError:  # the test is over
            return
        if dies_before is not None:
            _die_before(dies_before)
        message = message_from_proto(ProtoMessage.FromString(data))
        request = Request(message.metadata.message_type)
        content = answer(request, message.content, Vault(vault), lambda: Site.of(Vault(vault)))
        reply = Message(content, reply_to=message)
        if dies_before is not None:
            _die()
        connection.send_bytes(message_to_proto(reply).SerializeToString())


def _die_before(step: int) -> None:
    if step == 0:
        _die()
    steps = count(1)

    def mortal(function: Callable[..., object]) -> Callable[..., object]:
        def take_step(*args: object, **kwargs: object) -> object:
            if next(steps) == step:
                _die()
            return function(*args, **kwargs)

        return take_step

    Vault.write, Vault.append, Vault.delete = mortal(Vault.write), mortal(Vault.append), mortal(Vault.delete)
    Path.replace = mortal(Path.replace)  # in the middle of a write


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
