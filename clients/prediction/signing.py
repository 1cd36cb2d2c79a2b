"""Sign requests to the prediction service, as RFC 9421 has it, with the client's enrolled identity.

Trust: runs at the client; the private key stays inside its identity.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta

import httpx
from http_message_signatures import HTTPMessageSigner
from http_message_signatures.algorithms import ED25519

from clients.secrets.identity import Identity
from protocol.prediction.signed_requests import LABEL, NONCE_BYTES, TAG, WINDOW_SECONDS, covered_components

_SIGNER = HTTPMessageSigner(signature_algorithm=ED25519)


def sign_request(request: httpx.Request, identity: Identity, name: str, body: bytes | None) -> None:
    """Sign a request in place; it can be sent once, within a minute.

    Args:
        request: The request, with its body's content type if it has a body.
        identity: Who signs.
        name: The client's name, as on its card.
        body: The request's body; None if it has none.
    """
    created = datetime.now(UTC)
    prepared = _SIGNER.prepare(
        request,
        key_id=name,
        created=created,
        expires=created + timedelta(seconds=WINDOW_SECONDS),
        nonce=os.urandom(NONCE_BYTES).hex(),
        tag=TAG,
        label=LABEL,
        covered_component_ids=covered_components(has_body=body is not None),
        body=body,
    )
    _SIGNER.apply(request, prepared, identity.sign(prepared.signature_base))
