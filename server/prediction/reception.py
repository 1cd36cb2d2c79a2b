"""Let signed requests in: whose it is, whether it may come now, and its body, in this order.

A stranger's request is refused by its head; nobody's body is read for longer or further than its address takes.

Trust: runs at the provider, on what comes from the public network.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final

from fastapi.openapi.models import APIKey, APIKeyIn
from fastapi.security.base import SecurityBase
from starlette.requests import Request

from protocol.prediction.signed_requests import BINARY, TAG, WINDOW_SECONDS, covered_components
from server.prediction.client_registry import AdmittedClient, ClientRegistry
from server.prediction.limits import HeldBytes, RequestRates
from server.prediction.observed import served
from server.prediction.problems import Cause, ProblemError
from server.prediction.signatures import Signatures, SignedRequest
from server.public_port import BodyTooLargeError, bounded_body

BODY_SECONDS: Final = 30.0
"""How long a body may take, and longer only if enough of it has come."""

LEAST_BYTES_PER_SECOND: Final = 1_000_000
"""So many bytes earn a second more."""

_MOST_DIGITS: Final = 18
_DESCRIPTION: Final = (
    "HTTP message signature (RFC 9421), ed25519, by the signing key of the client's enrolment card. It covers "
    f"{', '.join(covered_components(has_body=True))}, the last two if there is a body, whose SHA-256 is in "
    f"Content-Digest (RFC 9530). Parameters: created, expires (at most {WINDOW_SECONDS} s later), keyid (the client's "
    f'name), nonce (32 hex digits), tag="{TAG}".'
)

HEAD_CAUSES: Final = (
    Cause.UNSIGNED,
    Cause.BAD_SIGNATURE,
    Cause.OUTSIDE_WINDOW,
    Cause.REPLAYED,
    Cause.MISDIRECTED,
    Cause.OVER_RATE,
    Cause.ANOTHER_BODY,
    Cause.TOO_LARGE,
    Cause.REQUEST,
    Cause.INTERNAL,
)
"""Why any signed request may be refused."""

BODY_CAUSES: Final = (Cause.CONTENT_TYPE, Cause.SLOW, Cause.CUT_OFF, Cause.REFUSED_BODY, Cause.OVER_SHARE, Cause.BUSY)
"""Why one with a body may be refused as well."""


class Visitor:
    """An admitted client with one request, whose body has not been read.

    Args:
        client: Who it is.
        request: What it wants.
        read: Reads a body of at most so many bytes, which are counted for as long as they are needed.
    """

    def __init__(
        self, *, client: AdmittedClient, request: Request, read: Callable[[int], AbstractAsyncContextManager[bytes]]
    ) -> None:
        self.client = client
        self.request = request
        self._read = read

    @asynccontextmanager
    async def body(self, largest: int) -> AsyncIterator[bytes]:
        """Read the body of a request that has one.

        Raises:
            ProblemError: CONTENT_TYPE, TOO_LARGE, SLOW, ANOTHER_BODY or BUSY.
        """
        if self.request.headers.get("content-type") != BINARY:
            raise ProblemError(Cause.CONTENT_TYPE)
        async with self._read(largest) as body:
            yield body

    async def no_body(self) -> None:
        """Make sure that a request has none.

        Raises:
            ProblemError: TOO_LARGE.
        """
        async with self._read(0):
            pass


class Reception(SecurityBase):
    """A FastAPI dependency that lets signed requests in; it is also what the API's description says of signing.

    Args:
        registry: Knows who is admitted.
        signatures: Verifies.
        body_seconds: How long a body may take at any rate.
    """

    def __init__(self, registry: ClientRegistry, signatures: Signatures, body_seconds: float = BODY_SECONDS) -> None:
        self.scheme_name = "signature"
        # OpenAPI has no word for signatures; this says at least in which header field they are
        self.model = APIKey.model_validate({"in": APIKeyIn.header, "name": "Signature", "description": _DESCRIPTION})
        self._registry = registry
        self._signatures = signatures
        self._rates = RequestRates()
        self._held = HeldBytes()
        self._body_seconds = body_seconds

    async def __call__(self, request: Request) -> Visitor:
        """Let a request in by its head.

        Raises:
            ProblemError: For one of HEAD_CAUSES.
        """
        signed = self._signatures.check_head(request)
        client = self._registry.find(signed.client)
        if client is None:  # expelled in this moment
            raise ProblemError(Cause.BAD_SIGNATURE)
        served(request).client = client.name
        self._rates.count(client)
        self._signatures.use_once(signed)

        def read(largest: int) -> AbstractAsyncContextManager[bytes]:
            return self._read(request, signed, client.name, largest)

        return Visitor(client=client, request=request, read=read)

    @asynccontextmanager
    async def _read(self, request: Request, signed: SignedRequest, client: str, largest: int) -> AsyncIterator[bytes]:
        length = request.headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > _MOST_DIGITS or int(length) > largest:
            raise ProblemError(Cause.TOO_LARGE)
        chunks: list[bytes] = []
        size, end = 0, asyncio.get_running_loop().time() + self._body_seconds
        try:
            try:
                async with asyncio.timeout_at(end) as limit:
                    async for chunk in bounded_body(request, largest):
                        self._held.take(client, len(chunk), body=size + len(chunk))
                        chunks.append(chunk)
                        size += len(chunk)
                        limit.reschedule(end + size / LEAST_BYTES_PER_SECOND)
            except BodyTooLargeError:
                raise ProblemError(Cause.TOO_LARGE) from None
            except TimeoutError:
                raise ProblemError(Cause.SLOW) from None
            body = b"".join(chunks)
            chunks.clear()
            self._signatures.check_body(signed, body)
            yield body
        finally:
            self._held.give_back(client, size)
