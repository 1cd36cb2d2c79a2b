"""Answer each message in a process of its own, which ends with the answer.

So the hospital's secrets are in memory only while a message is answered, memory goes back with the process, and one
that is killed takes nothing along. The processes are forks of a server that has everything loaded already.

Trust: site only. What a message holds comes from the provider, and is looked at in that process only.
"""

from __future__ import annotations

import multiprocessing
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from flwr.app import RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict

from clients.run.pinned_run import RunConfig, check_pinned
from clients.secrets.identity import Identity
from clients.secrets.secret import SecretBytes
from clients.secrets.vault import Vault
from protocol.envelope import Request

if TYPE_CHECKING:
    from clients.run.site import Site

_PROCESSES: Final = multiprocessing.get_context("forkserver")
_END_SECONDS: Final = 1.0
_PRELOADED: Final = ("clients.node.answering", "torch.fx.experimental.symbolic_shapes")
"""The second is what torch loads when it trains first."""

UNMADE: Final = (OSError, EOFError)
"""What making a process raises where files, memory or processes have run out, or the server that forks has just died;
all of it may pass, and that server is started again with the next process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A message as it is handed to the process.

    Attributes:
        request: What is asked.
        content: The message's content, a serialised RecordDict.
        run_config: The run's config.
        bundle: The run's bundle.
    """

    request: Request
    content: bytes
    run_config: RunConfig
    bundle: bytes


class MessageProcess:
    """A process that answers one message; a context manager, which ends it.

    Args:
        vault: The site's vault.
        identity: The site's identity if it is kept under a passphrase, else None.
        question: The message.

    Attributes:
        exit_code: The process's exit code, once the context is left; 0 before.

    Raises:
        OSError, EOFError: `UNMADE`.
    """

    def __init__(self, vault: Path, identity: SecretBytes | None, question: Question) -> None:
        self.exit_code = 0
        self._connection, theirs = _PROCESSES.Pipe()
        with ExitStack() as unless_made:
            unless_made.callback(self._connection.close)
            with theirs:  # the process's own end is to be the only one, so that its death is seen
                self._process = _PROCESSES.Process(target=_answer, args=(theirs, str(vault)), daemon=True)
                self._process.start()
            unless_made.pop_all()
        with suppress(ConnectionError):  # a process that is dead already gives no answer, which is all there is to it
            self._connection.send_bytes(b"" if identity is None else identity.reveal())
            self._connection.send(question)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.join(_END_SECONDS)  # one that has answered, or is dead, ends by itself
        self._process.kill()
        self._process.join()
        self.exit_code = self._process.exitcode or 0
        self._process.close()
        self._connection.close()

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid or 0

    def answer(self) -> RecordDict | None:
        """Wait for the answer; None if the process died without one."""
        try:
            data = self._connection.recv_bytes()
        except (EOFError, ConnectionError):
            return None
        return recorddict_from_proto(ProtoRecordDict.FromString(data))


def preload() -> None:
    """Start the server that the processes are forked from, so that the first message does not wait for it."""
    _PROCESSES.set_forkserver_preload(list(_PRELOADED))
    process = _PROCESSES.Process(target=_nothing)
    process.start()
    process.join()


def _nothing() -> None:
    pass


def _answer(connection: Connection, vault: str) -> None:
    from clients.node.answering import answer  # noqa: PLC0415 - loads torch and SEAL, which the parent does without

    identity = connection.recv_bytes()
    question: Question = connection.recv()
    reply = answer(
        question.request,
        recorddict_from_proto(ProtoRecordDict.FromString(question.content)),
        Vault(Path(vault)),
        lambda: _site_of(Vault(Path(vault)), SecretBytes(identity) if identity else None, question),
    )
    connection.send_bytes(recorddict_to_proto(reply).SerializeToString())


def _site_of(vault: Vault, identity: SecretBytes | None, question: Question) -> Site:
    from clients.run.site import Site  # noqa: PLC0415 - as above

    site = Site.of(vault, None if identity is None else Identity.from_secret(identity))
    check_pinned(site.membership.agreement, question.run_config, question.bundle)
    return site
