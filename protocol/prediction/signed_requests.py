"""What a signed request to the prediction service is: both sides read it here.

Requests carry HTTP message signatures (RFC 9421) by the Ed25519 key of the client's enrolment card, and those with a
body its SHA-256 as Content-Digest (RFC 9530). TLS hides them; the signature says whose they are.

Trust: public; there is no key here.
"""

from __future__ import annotations

from typing import Final

TAG: Final = "cipherward-prediction"
"""Signed with every request: a signature made for anything else is none here."""

LABEL: Final = "cipherward"
"""Under which the header fields hold the signature; it is not signed, and says nothing."""

WINDOW_SECONDS: Final = 60
"""Longest time from `created` to `expires`."""

CLOCK_LEEWAY_SECONDS: Final = 5
"""How much the clocks of client and service may differ."""

ANSWER_SECONDS: Final = 150
"""Longest time from a request's end to its answer: the service refuses what waits or takes longer."""

PARAMETERS: Final = frozenset({"created", "expires", "keyid", "nonce", "tag"})
"""What a signature states of itself, all of it; `keyid` is the client's name. `alg`, ed25519, may be there as well."""

NONCE_BYTES: Final = 16
"""A nonce is that many random bytes, in lower-case hex, and is used once."""

BINARY: Final = "application/octet-stream"
"""Content type of every body that is sent to the service."""

_COMPONENTS: Final = ("@method", "@target-uri")
_COMPONENTS_OF_A_BODY: Final = ("content-type", "content-digest")


def covered_components(*, has_body: bool) -> tuple[str, ...]:
    """Return what a request's signature covers, at least: method and address, and a body's type and digest."""
    return _COMPONENTS + _COMPONENTS_OF_A_BODY if has_body else _COMPONENTS
