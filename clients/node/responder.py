"""Answer what the SuperNode takes in, one message after the other, for as long as the hospital takes part.

Trust: site only.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from flwr.app import RecordDict
from flwr.common.serde import recorddict_to_proto

from clients.node.message_process import MessageProcess, Question
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
        exit_code: Of a process that died of the message, else 0.
    """

    request: str
    seconds: float
    is_refused: bool
    exit_code: int


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
            reply, exit_code = self._reply(task)
            task.answer(reply)
        return Response(
            request=task.message.metadata.message_type,
            seconds=time.monotonic() - started,
            is_refused=is_refusal(reply),
            exit_code=exit_code,
        )

    def _reply(self, task: Task) -> tuple[RecordDict, int]:
        kind = task.message.metadata.message_type
        if kind not in tuple(Request) or task.message.has_error():
            return pack_refusal(), 0
        question = Question(
            request=Request(kind),
            content=recorddict_to_proto(task.message.content).SerializeToString(),
            run_config=dict(task.run_config),
            bundle=task.bundle,
        )
        with MessageProcess(self._vault, self._identity, question) as process:
            reply = process.answer()
        if reply is not None:
            return reply, 0
        with suppress(OSError):  # a full disk is no reason to leave the provider without an answer
            Vault(self._vault).record("died", request=kind, exit_code=process.exit_code)
        return pack_refusal(), process.exit_code
