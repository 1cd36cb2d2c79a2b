"""Take messages from the hospital's own SuperNode, and give it the answers.

Flower's own executor would install the run's bundle and start its ClientApp. This one stands in its place (SuperNode's
`--isolation process`) and takes no more of the bundle than its bytes: what runs is what the hospital has installed.

Source: flwr.supernode.runtime.run_clientapp and flwr.supercore.superexec.run_superexec of the pinned Flower.
Trust: site only. It talks to 127.0.0.1; what it takes comes from the provider.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from typing import Final, Self, TypeAlias

import httpx
from flwr.app import Context, Message, RecordDict
from flwr.proto.runtime_pb2 import AcquireTaskRequest, SendTaskHeartbeatRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.protobuf.client import ProtobufClientInterceptor
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

from clients.secrets.secret import SecretBytes

_ACQUIRE: Final = frozenset({"/flwr.proto.Runtime/AcquireTask"})
_COMPLETED, _FAILED = "completed", "failed"
_LOOK_SECONDS: Final = 2.0
_Pulled: TypeAlias = tuple[Message, Context, bytes]
UNREACHABLE: Final = (httpx.HTTPError, RuntimeError)
"""What taking and answering raise while the SuperNode is away or starts again, or has something that is no message."""

_log = logging.getLogger("flwr.cipherward.site")


class Task:
    """One message, and where its answer goes.

    Attributes:
        message: The message.
        run_config: The run's config.
        bundle: The run's bundle.
    """

    def __init__(self, client: RuntimeHttpClient, message: Message, context: Context, bundle: bytes) -> None:
        self._client = client
        self._context = context
        self.message = message
        self.run_config = context.run_config
        self.bundle = bundle

    def answer(self, content: RecordDict) -> None:
        """Give the SuperNode the answer, which it passes on."""
        push_message(self._client, Message(content, reply_to=self.message), self._context)


class SuperNode:
    """A running SuperNode's Runtime API; a context manager.

    Args:
        address: Its "127.0.0.1:PORT".
        secret: What its `--superexec-auth-secret-file` holds, so that no other program of this machine takes messages.
    """

    def __init__(self, address: str, secret: SecretBytes) -> None:
        self._address = address
        auth = SuperExecAuthHttpInterceptor(master_secret=secret.reveal(), protected_methods=_ACQUIRE)
        self._client = self._connect([auth])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    @contextmanager
    def take(self) -> Iterator[Task | None]:
        """Take the message that waits longest, if there is one; it is done when the context is left.

        Raises:
            httpx.HTTPError, RuntimeError: `UNREACHABLE`.
        """
        client = self._acquire()
        while client is not None:
            context, outcome, newer = None, _FAILED, None
            try:
                with _kept(client):
                    pulled, newer = self._pulled(client)
                    if pulled is not None:
                        message, context, bundle = pulled
                        yield Task(client, message, context, bundle)
                        outcome = _COMPLETED
            finally:
                push_task_output(client=client, context=context, sub_status=outcome, details="")
                client.close()
            if pulled is not None:
                return
            client = newer
        yield None

    def _acquire(self) -> RuntimeHttpClient | None:
        claim = self._client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP]))
        if not (claim.HasField("task") and claim.token):
            return None
        return self._connect([RuntimeTokenHttpInterceptor(claim.token)])

    def _pulled(self, client: RuntimeHttpClient) -> tuple[_Pulled | None, RuntimeHttpClient | None]:
        """Wait for a message to have come whole, or for a newer one.

        A SuperNode takes in one message at a time. Where it gives one up in the middle, because its run is over, it
        leaves the claim behind: there is a newer message then, and this one's rest will never come.

        Returns:
            The message, or None and the newer one's client.
        """
        pool = ThreadPoolExecutor(1)
        try:
            pulling = pool.submit(_pull, client)
            while not wait([pulling], _LOOK_SECONDS).done:
                if (newer := self._acquire()) is not None:
                    return None, newer
            return pulling.result(), None
        finally:
            pool.shutdown(wait=False)  # what still waits there ends when its client is closed

    def _connect(self, interceptors: list[ProtobufClientInterceptor]) -> RuntimeHttpClient:
        return RuntimeHttpClient.from_server_address(
            server_address=self._address,
            insecure=True,  # loopback
            root_certificates=None,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr-clientapp"), *interceptors],
        )


@contextmanager
def _kept(client: RuntimeHttpClient) -> Iterator[None]:
    """Keep a message from being given up: a SuperNode that hears nothing for a minute answers in the site's stead.

    From when it is taken: that answer would be one more than there are messages, and each that follows late by one.
    """

    def keep() -> bool:
        with suppress(*UNREACHABLE):
            client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
        return True  # Flower's own sender would end the process when the message is not wanted any more

    sender = HeartbeatSender(keep)
    sender.start()
    try:
        yield
    finally:
        sender.stop()


def _pull(client: RuntimeHttpClient) -> _Pulled:
    try:
        message, context, _, bundle = pull_task_input(client)
    except UNREACHABLE:
        raise
    except Exception as error:  # Flower's parsers raise anything at the provider's bytes; no text of theirs is told
        _log.error("what the provider sent is no message: %s", type(error).__name__)
        raise RuntimeError("no message") from None
    return message, context, bundle.content
