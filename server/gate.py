"""The only door between hospitals and the SuperLink: passes on a short list of calls, and answers nothing else.

Flower's SuperLink has one port for everything. Whoever reaches it can start runs, that is, run code, without any
authentication; so it listens on loopback, and this is what listens to the world. Flower itself authenticates each call
that is passed on by the node's key.

A node that asks for messages while there is none would sleep for three seconds, whatever comes meanwhile. So the gate
asks in its place until there is one, or for some seconds: a round then takes a fraction of the time.

Trust: runs at the provider, on the public network. It sees what passes: ciphertexts, sizes, names, times.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator
from http import HTTPStatus
from pathlib import Path
from typing import Final, TypeVar

import h11
import httpx
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Router
from starlette.types import Receive, Scope, Send

from server.public_port import MOST_CONNECTIONS, BodyTooLargeError, bounded_body, serve

ROUTES: Final = frozenset(
    f"/v1/fleet/{call}".encode()
    for call in (
        "activate-node",
        "deactivate-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "get-run",
        "get-fab",
        "push-object",
        "pull-object",
        "confirm-message-received",
    )
)
"""What hospitals' nodes call. Not among them: registering and unregistering, which the provider's people do."""

PULL: Final = b"/v1/fleet/pull-messages"
HEALTH: Final = b"/health"

LARGEST_BODY_BYTES: Final = (5 << 20) + (64 << 10)
"""The largest call carries one chunk of an array, 5 MiB, with some names around it."""

LARGEST_PULL_BYTES: Final = 64 << 10
"""A call for messages carries a number, and stays in memory while there is none."""

REQUEST_SECONDS: Final = 120.0
"""How long a call may take in all until its answer begins; Flower's nodes wait 30 s for each piece of one."""

ANSWER_SECONDS: Final = 120.0
"""How long the whole answer may take after that; a chunk then travels at 50 kB/s at least."""

PULL_SECONDS: Final = 20.0
"""How long a node waits for a message before it is told that there is none; Flower's nodes give up after 30 s."""

HEALTH_SECONDS: Final = 2.0
_SHORTEST_PAUSE_SECONDS: Final = 0.1
_LONGEST_PAUSE_SECONDS: Final = 1.0
_PAUSE_SECONDS_PER_NODE: Final = 0.02
_SUPERLINK_SECONDS: Final = 30.0

# Shorter than the SuperLink's five seconds, and longer than the nodes': a connection that its other end is about to
# close must not be used for one call more.
_INNER_KEEPALIVE_SECONDS: Final = 3.0

_REQUEST_HEADERS: Final = frozenset(
    {
        b"accept",
        b"content-type",
        b"flwr-public-key",
        b"flwr-signature",
        b"flwr-timestamp",
        b"flwr-package-name",
        b"flwr-package-version",
        b"flwr-component-name",
    }
)
_ANSWER_HEADERS: Final = frozenset({b"content-length", b"content-type", b"flwr-version-incompatibility-message"})
"""What travels on; connection headers, X-Forwarded-* and all others end here."""


AnyResponse = TypeVar("AnyResponse", bound=Response)


class Gate:
    """An ASGI application that passes calls on.

    Args:
        superlink: Sends to the SuperLink; its base URL is the SuperLink's.
        largest_body_bytes: Longest request body that is passed on.
        request_seconds: Longest time until an answer begins.
        answer_seconds: Longest time for the rest of the answer.
        pull_seconds: How long a node that asks for messages waits for one.
    """

    def __init__(
        self,
        superlink: httpx.AsyncClient,
        *,
        largest_body_bytes: int = LARGEST_BODY_BYTES,
        request_seconds: float = REQUEST_SECONDS,
        answer_seconds: float = ANSWER_SECONDS,
        pull_seconds: float = PULL_SECONDS,
    ) -> None:
        self._superlink = superlink
        self._largest_body_bytes = largest_body_bytes
        self._request_seconds = request_seconds
        self._answer_seconds = answer_seconds
        self._pull_seconds = pull_seconds
        self._waiting = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        async with contextlib.AsyncExitStack() as call:
            answer = await self._answer(Request(scope, receive), call)
            # a node that does not take its answer holds a connection to the SuperLink only for so long
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._answer_seconds):
                    await answer(scope, receive, send)

    async def _answer(self, request: Request, call: contextlib.AsyncExitStack) -> Response:
        # the path as it came, undecoded: what is not exactly one of the list is nothing
        path = request.scope["raw_path"]
        if request.scope["query_string"]:
            return _nothing(HTTPStatus.NOT_FOUND)
        if (request.method, path) == ("GET", HEALTH):
            return _nothing(HTTPStatus.OK if await self._is_healthy() else HTTPStatus.SERVICE_UNAVAILABLE)
        if request.method == "POST" and path in ROUTES:
            return self._refusal(request, path.decode()) or await self._answer_call(request, path.decode(), call)
        return _nothing(HTTPStatus.NOT_FOUND)

    def _refusal(self, request: Request, path: str) -> Response | None:
        """Return the answer to a call whose head says already that it will not be passed on."""
        if {"content-length", "transfer-encoding"} <= set(request.headers):
            # where its body ends is told twice, and two servers may believe different words (RFC 9112, 6.1)
            return Response(status_code=HTTPStatus.BAD_REQUEST, headers={"connection": "close"})
        length = request.headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._largest_body(path):
            return _nothing(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        return None

    async def _answer_call(self, request: Request, path: str, call: contextlib.AsyncExitStack) -> Response:
        try:
            async with asyncio.timeout(self._request_seconds):
                if path.encode() == PULL:
                    return await self._wait_for_message(request)
                return await self._pass_on(request, path, call)
        except BodyTooLargeError:
            return _nothing(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        except TimeoutError:
            return _nothing(HTTPStatus.GATEWAY_TIMEOUT)
        except (httpx.HTTPError, h11.ProtocolError, ClientDisconnect):  # httpx lets h11's own pass while it sends
            # nodes try again after this one; the site's people see "retrying", and nothing is lost
            return _nothing(HTTPStatus.SERVICE_UNAVAILABLE)

    async def _pass_on(self, request: Request, path: str, call: contextlib.AsyncExitStack) -> Response:
        headers = _passed_headers(request)
        headers += [(b"content-length", length) for name, length in request.headers.raw if name == b"content-length"]
        body = bounded_body(request, self._largest_body(path))
        inner = self._superlink.build_request("POST", path, headers=headers, content=body)
        answer = await self._superlink.send(inner, stream=True)
        call.push_async_callback(answer.aclose)
        if answer.is_redirect:  # Flower's nodes would follow it
            return _nothing(HTTPStatus.NOT_FOUND)
        return _passed(answer, StreamingResponse(answer.aiter_raw(), status_code=answer.status_code))

    async def _wait_for_message(self, request: Request) -> Response:
        """Ask for a message until there is one, the node has gone, or the time is up."""
        chunks = bounded_body(request, self._largest_body(PULL.decode()))
        headers, body = _passed_headers(request), b"".join([chunk async for chunk in chunks])
        deadline = time.monotonic() + self._pull_seconds
        pause = _SHORTEST_PAUSE_SECONDS
        self._waiting += 1
        try:
            while True:
                # a message that is handed out is not handed out again: one that has gone must not be asked for
                if await request.is_disconnected():
                    return _nothing(HTTPStatus.SERVICE_UNAVAILABLE)
                answer = await self._superlink.post(PULL.decode(), headers=headers, content=body)
                if answer.is_redirect:
                    return _nothing(HTTPStatus.NOT_FOUND)
                if answer.status_code != HTTPStatus.OK or answer.content or time.monotonic() >= deadline:
                    return _passed(answer, Response(answer.content, status_code=answer.status_code))
                # many nodes ask no more often together than a few
                await asyncio.sleep(max(pause, self._waiting * _PAUSE_SECONDS_PER_NODE))
                pause = min(1.5 * pause, _LONGEST_PAUSE_SECONDS)
        finally:
            self._waiting -= 1

    def _largest_body(self, path: str) -> int:
        return min(LARGEST_PULL_BYTES, self._largest_body_bytes) if path.encode() == PULL else self._largest_body_bytes

    async def _is_healthy(self) -> bool:
        try:
            answer = await self._superlink.get("/health", timeout=HEALTH_SECONDS)
        except httpx.HTTPError:
            return False
        return answer.status_code == HTTPStatus.OK


def _passed_headers(request: Request) -> list[tuple[bytes, bytes]]:
    return [pair for pair in request.headers.raw if pair[0] in _REQUEST_HEADERS]


def _passed(answer: httpx.Response, response: AnyResponse) -> AnyResponse:
    response.raw_headers = [pair for pair in answer.headers.raw if pair[0].lower() in _ANSWER_HEADERS]
    return response


def _nothing(status: HTTPStatus) -> Response:
    """Return an answer that tells no more than its status."""
    return Response(status_code=status)


def gate_app(superlink_url: str, trusted: ssl.SSLContext) -> Router:
    """Make the application.

    Args:
        superlink_url: Where the SuperLink listens, https and on loopback.
        trusted: Knows the SuperLink's certificate.
    """
    superlink = httpx.AsyncClient(
        base_url=superlink_url,
        verify=trusted,
        trust_env=False,  # a proxy of the house is not asked for this machine
        follow_redirects=False,
        headers={"accept-encoding": "identity"},  # bytes travel as they are
        timeout=_SUPERLINK_SECONDS,
        # as many as on the public side, or slow calls of strangers would take those of all hospitals
        limits=httpx.Limits(max_connections=MOST_CONNECTIONS, keepalive_expiry=_INNER_KEEPALIVE_SECONDS),
    )

    @contextlib.asynccontextmanager
    async def lifespan(app: Router) -> AsyncIterator[None]:
        del app
        async with superlink:
            yield

    return Router(default=Gate(superlink), redirect_slashes=False, lifespan=lifespan)  # it routes nothing itself


def main() -> None:
    """Serve until asked to end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--listen", required=True, help="address of the public network")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--certificate", required=True, help="PEM file, shown to the public network")
    parser.add_argument("--key", required=True, help="PEM file")
    parser.add_argument("--superlink", required=True, help="https URL on loopback")
    parser.add_argument("--superlink-authority", required=True, help="PEM file that vouches for the SuperLink")
    arguments = parser.parse_args()
    trusted = ssl.create_default_context(cafile=arguments.superlink_authority)
    serve(
        gate_app(arguments.superlink, trusted),
        host=arguments.listen,
        port=arguments.port,
        certificate=Path(arguments.certificate),
        key=Path(arguments.key),
    )


if __name__ == "__main__":
    main()
