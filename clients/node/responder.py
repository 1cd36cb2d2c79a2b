"""Answer what the SuperNode takes in, one message after the other, for as long as the hospital takes part.

Trust: site only.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from flwr.app import RecordDict
from flwr.common.serde import recorddict_to_proto

from clients.node.message_process import UNMADE, MessageProcess, Question
from clients.node.supernode import SuperNode, Task
from clients.secrets.secret import SecretBytes
from clients.secrets.vault import Vault
from protocol.envelope import Request, is_refusal, pack_refusal


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """What became of one message.

    Attributes:
        request: What was asked, as the message says.
        seconds: From taking it to giving the answer.
        is_refused: Whether the answer is the refusal; why is in the vault's log.
        death: What became of a process that should have answered and did not; else empty.
    """

    request: str
    seconds: float
    is_refused: bool
    death: str


class Responder:
    """Answers messages to one site.

    Args:
        vault: The site's vault.
        identity: The site's identity if it is kept under a passphrase, else None.
        supernode: The hospital's SuperNode.
    """

    def __init__(self, vault: Path, identity: SecretBytes | None, supernode: SuperNode) -> None:
        self._vault = vault
        self._identity = identity
        self._supernode = supernode

    def respond(self) -> Response | None:
        """Answer the message that waits longest; None if none waits.

        Raises:
            httpx.HTTPError, RuntimeError: `clients.node.supernode.UNREACHABLE`.
        """
        with self._supernode.take() as task:
            if task is None:
                return None
            started = time.monotonic()
            reply, death = self._reply(task)
            task.answer(reply)
        return Response(
            request=task.message.metadata.message_type,
            seconds=time.monotonic() - started,
            is_refused=is_refusal(reply),
            death=death,
        )

    def _reply(self, task: Task) -> tuple[RecordDict, str]:
        kind = task.message.metadata.message_type
        if kind not in tuple(Request) or task.message.has_error():
            return pack_refusal(), ""
        question = Question(
            request=Request(kind),
            content=recorddict_to_proto(task.message.content).SerializeToString(),
            run_config=dict(task.run_config),
            bundle=task.bundle,
        )
        try:
            with MessageProcess(self._vault, self._identity, question) as process:
                reply = process.answer()
        except UNMADE as error:  # the next message may find what this one lacked
            reply, death = None, f"no process could be made to answer it: {reason_of(error)}"
        else:
            death = f"the process that answered it ended by itself, exit code {process.exit_code}"
        if reply is not None:
            return reply, ""
        with suppress(OSError):  # a full disk is no reason to leave the provider without an answer
            Vault(self._vault).record("died", request=kind, text=death)
        return pack_refusal(), death


def reason_of(error: OSError | EOFError) -> str:
    """Return the system's own words for what failed, without a path."""
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else type(error).__name__
