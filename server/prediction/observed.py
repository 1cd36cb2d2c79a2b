"""Watch each request from its head to the end of its answer, for the log and the metrics.

Trust: runs at the provider; sees bodies pass, and keeps their lengths.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.prediction.served_log import ServedRequest

_KEY = "served"


def served(request: Request) -> ServedRequest:
    """Return what is known of a request that is being answered, to be filled in."""
    found = request.scope["state"][_KEY]
    assert isinstance(found, ServedRequest)  # noqa: S101 - `Observed` has put it there
    return found


class Observed:
    """An ASGI application around another one.

    Args:
        app: Answers.
        tell: Told of each request when it is over.
    """

    def __init__(self, app: ASGIApp, *, tell: Sequence[Callable[[ServedRequest], None]]) -> None:
        self._app = app
        self._tell = tell

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, and tell of it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = ServedRequest(time=time.time())
        scope.setdefault("state", {})[_KEY] = request
        started = time.perf_counter()

        async def counted_receive() -> Message:
            message = await receive()
            request.bytes_in += len(message.get("body", b""))
            return message

        async def counted_send(message: Message) -> None:
            request.status = message.get("status", request.status)
            request.bytes_out += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, counted_receive, counted_send)
        finally:
            route = scope.get("route")
            if route is not None and scope["method"] in route.methods:
                request.call = f"{scope['method']} {route.path}"
            request.seconds = time.perf_counter() - started
            for each in self._tell:
                each(request)
