"""Listen to the public network: HTTP/1.1 over TLS, for so many connections, and not for longer than it takes.

Trust: runs at the provider, on the public network; sees what passes.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Final

import uvicorn
from starlette.requests import Request
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

HEAD_SECONDS: Final = 15.0
"""How long a connection may take until it has said what it wants."""

MOST_CONNECTIONS: Final = 1024
OPEN_FILES: Final = 1 << 16
"""More than that many sockets a stranger hardly opens in the minute after which one that says nothing is closed."""

_KEEPALIVE_SECONDS: Final = 15
_CLOSING_SECONDS: Final = 2
_NOT_STARTED: Final = 3

READING_SECONDS: Final = 60.0
"""How long the other end may take to read what is left of an answer when its connection is closed."""


class BodyTooLargeError(Exception):
    """A request's body goes on past the limit."""


async def bounded_body(request: Request, largest: int) -> AsyncGenerator[bytes]:
    """Pass on a request's body as it comes, of announced length or not.

    Raises:
        BodyTooLargeError: It has more bytes than the largest.
        ClientDisconnect: It breaks off.
    """
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > largest:
            raise BodyTooLargeError
        yield chunk


class Line(H11Protocol):
    """A connection that is closed if no call comes on it: uvicorn itself waits for ever for the first, or for its end.

    h11 also bounds a call's head, at 64 KiB.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """Wait for the first call."""
        super().connection_made(transport)
        self._wait_for_call()

    def on_response_complete(self) -> None:
        """Wait for the next one."""
        super().on_response_complete()
        self._wait_for_call()

    def _wait_for_call(self) -> None:
        self.loop.call_later(HEAD_SECONDS, self._close_if_idle_since, self.cycle)

    def _close_if_idle_since(self, last: RequestResponseCycle | None) -> None:
        if self.cycle is last and (last is None or last.response_complete):
            self.transport.close()
            # closing waits until everything is read; who does not read would keep the connection for ever
            self.loop.call_later(READING_SECONDS, self.transport.abort)


def public_config(app: ASGIApp, *, host: str, port: int, certificate: Path, key: Path) -> uvicorn.Config:
    """Return how an application is served to the world.

    Args:
        app: The application.
        host: Address to listen on.
        port: Port to listen on; 0 for any.
        certificate: PEM file with the chain.
        key: PEM file.
    """
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        ssl_certfile=certificate,
        ssl_keyfile=key,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        http=Line,
        ws="none",
        limit_concurrency=MOST_CONNECTIONS,
        timeout_keep_alive=_KEEPALIVE_SECONDS,
        timeout_graceful_shutdown=_CLOSING_SECONDS,
        log_level="warning",
    )


def allow_open_files() -> None:
    """Raise this process's limit of open files: a connection that never speaks TLS is one, and is not counted here."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def serve(app: ASGIApp, *, host: str, port: int, certificate: Path, key: Path) -> None:
    """Serve until asked to end, by SIGINT or SIGTERM.

    Args:
        app: The application.
        host: Address to listen on.
        port: Port to listen on.
        certificate: PEM file with the chain.
        key: PEM file.
    """
    allow_open_files()
    server = uvicorn.Server(public_config(app, host=host, port=port, certificate=certificate, key=key))
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn has ended as asked, and raises the signal once more
        server.run()
    if not server.started:
        sys.exit(_NOT_STARTED)
