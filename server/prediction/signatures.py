"""Check who signed a request, that it is fresh, and that it has not come before.

A signature is good for at most a minute. Its nonce is remembered for as long, in memory only: what was signed before
the service started is refused altogether, so that a restart forgets nothing that could come again.

Trust: runs at the provider; public keys only.
"""

from __future__ import annotations

import heapq
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from http_message_signatures import HTTPMessageVerifier, HTTPSignatureKeyResolver, InvalidSignature, VerifyResult
from http_message_signatures.algorithms import ED25519
from starlette.requests import Request

from protocol.agreement import SiteCard
from protocol.prediction.signed_requests import (
    CLOCK_LEEWAY_SECONDS,
    NONCE_BYTES,
    PARAMETERS,
    TAG,
    WINDOW_SECONDS,
    covered_components,
)
from server.prediction.problems import Cause, ProblemError

_SIGNATURE_INPUT: Final = "signature-input"
_SIGNATURE: Final = "signature"
_LONGEST_FIELD: Final = 2048
"""Characters of either header field: one signature, not a list of hundreds to be tried."""

_NONCE: Final = re.compile(rf"[0-9a-f]{{{2 * NONCE_BYTES}}}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedRequest:
    """A request whose head an admitted client signed, just now and for the first time.

    Attributes:
        client: The client's name.
        head: What was signed.
        verified: The signature and what it covers.
    """

    client: str
    head: RequestHead
    verified: VerifyResult


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestHead:
    """A request without its body, as signatures see it: the address undecoded.

    Attributes:
        method: Such as GET.
        url: Absolute.
        headers: All field lines, in their order.
    """

    method: str
    url: str
    headers: HeaderLines

    @classmethod
    def of(cls, request: Request) -> RequestHead:
        """Take it from a request."""
        scope = request.scope
        path, query = scope["raw_path"].decode("latin-1"), scope["query_string"].decode("latin-1")
        url = f"{request.url.scheme}://{request.headers.get('host', '')}{path}" + (f"?{query}" if query else "")
        return cls(method=request.method, url=url, headers=HeaderLines(request.headers.items()))


class HeaderLines(list[tuple[str, str]]):
    """Header fields as the library reads them."""

    def items(self) -> list[tuple[str, str]]:
        """Return name and value of each line."""
        return self


class Signatures:
    """Verifies requests' signatures.

    Args:
        card_of: Returns an admitted client's card, None if there is no such client.
        hosts: Names of this service, in lower case: a request that was signed for another is not for this one.
        started: When the service started; seconds since 1970.
    """

    def __init__(self, card_of: Callable[[str], SiteCard | None], *, hosts: frozenset[str], started: float) -> None:
        self._hosts = hosts
        self._nonces = Nonces()
        # a client's clock may have been ahead when it signed for the service that ran before
        self.earliest: Final = started + CLOCK_LEEWAY_SECONDS
        self._verifier = _Verifier(_Cards(card_of), self.earliest)

    def check_head(self, request: Request) -> SignedRequest:
        """Check everything but the body; whoever does not get past this sends none.

        Raises:
            ProblemError: UNSIGNED, BAD_SIGNATURE, OUTSIDE_WINDOW or MISDIRECTED.
        """
        head = RequestHead.of(request)
        fields = [request.headers.getlist(name) for name in (_SIGNATURE_INPUT, _SIGNATURE)]
        if not all(fields):
            raise ProblemError(Cause.UNSIGNED)
        if any(sum(map(len, lines)) > _LONGEST_FIELD for lines in fields):
            raise ProblemError(Cause.BAD_SIGNATURE)
        if (request.url.hostname or "").lower() not in self._hosts:
            raise ProblemError(Cause.MISDIRECTED)
        has_body = "transfer-encoding" in request.headers or request.headers.get("content-length", "0") != "0"
        try:
            (verified,) = self._verifier.verify(
                head,
                max_age=timedelta(seconds=WINDOW_SECONDS),
                expect_tag=TAG,
                require_components=covered_components(has_body=has_body),
            )
        except _OutsideWindowError:
            raise ProblemError(Cause.OUTSIDE_WINDOW) from None
        except (InvalidSignature, ValueError):  # ValueError: there are two of them
            raise ProblemError(Cause.BAD_SIGNATURE) from None
        return SignedRequest(client=str(verified.parameters["keyid"]), head=head, verified=verified)

    def use_once(self, signed: SignedRequest) -> None:
        """Take a request, which is refused from now on.

        Raises:
            ProblemError: REPLAYED.
        """
        # and a second: what was verified a moment ago, at the very end of its time, is looked for now
        expires = int(signed.verified.parameters["expires"]) + CLOCK_LEEWAY_SECONDS + 1
        if not self._nonces.use(signed.client, str(signed.verified.parameters["nonce"]), expires):
            raise ProblemError(Cause.REPLAYED)

    def check_body(self, signed: SignedRequest, body: bytes) -> None:
        """Check that a body is the one whose digest was signed.

        Raises:
            ProblemError: ANOTHER_BODY.
        """
        try:
            self._verifier.verify_body(signed.head, [signed.verified], body)
        except InvalidSignature:
            raise ProblemError(Cause.ANOTHER_BODY) from None


@dataclass(slots=True)
class Nonces:
    """Nonces of requests that could come again; how many there are, the rate limits bound."""

    _used: set[tuple[str, str]] = field(default_factory=set)
    _by_expiry: list[tuple[float, tuple[str, str]]] = field(default_factory=list)

    def use(self, client: str, nonce: str, expires: float) -> bool:
        """Remember a client's nonce until it expires, seconds since 1970; return whether it is new."""
        now = time.time()
        while self._by_expiry and self._by_expiry[0][0] < now:
            self._used.discard(heapq.heappop(self._by_expiry)[1])
        if (client, nonce) in self._used:
            return False
        self._used.add((client, nonce))
        heapq.heappush(self._by_expiry, (expires, (client, nonce)))
        return True

    def __len__(self) -> int:
        return len(self._used)


class _OutsideWindowError(InvalidSignature):
    """The signature is not valid at this time."""


class _Cards(HTTPSignatureKeyResolver):
    def __init__(self, card_of: Callable[[str], SiteCard | None]) -> None:
        self._card_of = card_of

    def resolve_public_key(self, key_id: str) -> Ed25519PublicKey | None:
        card = self._card_of(key_id)
        return None if card is None else Ed25519PublicKey.from_public_bytes(bytes.fromhex(card.signing_key))

    def resolve_private_key(self, key_id: str) -> Ed25519PrivateKey:
        raise KeyError(key_id)


class _Verifier(HTTPMessageVerifier):
    max_clock_skew = timedelta(seconds=CLOCK_LEEWAY_SECONDS)

    def __init__(self, cards: HTTPSignatureKeyResolver, earliest: float) -> None:
        super().__init__(signature_algorithm=ED25519, key_resolver=cards)
        self._earliest = earliest

    def validate_created_and_expires(self, sig_input: Any, max_age: timedelta | None = None) -> None:
        """Check a signature's parameters before anything else."""
        parameters = dict(sig_input.params)
        if set(parameters) - {"alg"} != PARAMETERS or not _NONCE.fullmatch(str(parameters["nonce"])):
            raise InvalidSignature("parameters")
        created, expires = int(parameters["created"]), int(parameters["expires"])
        if not 0 < expires - created <= WINDOW_SECONDS or created < self._earliest:
            raise _OutsideWindowError
        try:
            super().validate_created_and_expires(sig_input, max_age)  # type: ignore[no-untyped-call]  # has no hints
        except InvalidSignature:
            raise _OutsideWindowError from None
