"""A prediction service on a test's directory, clients with real enrolment cards, and their signed requests.

Trust: tests only; every key here is public.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pretended_evaluation
from consortium import fixed_bytes
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, derive_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from http_message_signatures import HTTPMessageSigner, HTTPSignatureKeyResolver
from http_message_signatures.algorithms import ED25519

from protocol.agreement import SiteCard
from protocol.data_terms import ColumnTerms, DataTerms, LabelTerms
from protocol.enrolment import EnrolmentCard, signed_bytes
from protocol.prediction.description import ModelDescription
from protocol.prediction.messages import PublicKey, QueryHeader, key_id
from protocol.prediction.parameters import LINEAR
from protocol.prediction.publication import Publication
from protocol.prediction.signed_requests import BINARY, LABEL, TAG, covered_components
from protocol.prediction.wire import Header
from protocol.terms import ModelTerms
from server.prediction.app import service_app
from server.prediction.client_registry import Allowance
from server.prediction.parts import ServiceParts
from server.prediction.service import service_parts
from server.prediction.service_directory import ServiceDirectory

BASE = "https://predict.example"
LONG_AGO = 3600.0


@dataclass(frozen=True, kw_only=True)
class Client:
    """Someone with an identity, admitted or not."""

    name: str = "cleveland"
    secret: str = ""

    @property
    def signing_key(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(fixed_bytes("signer-" + self.name + self.secret))

    @property
    def enrolment(self) -> EnrolmentCard:
        card = SiteCard(
            name=self.name,
            signing_key=self.signing_key.public_key().public_bytes_raw().hex(),
            exchange_key=fixed_bytes("exchange-" + self.name).hex(),
        )
        public = derive_private_key(76, SECP384R1()).public_key()
        node_key = public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
        return EnrolmentCard(
            card=card, node_key=node_key, signature=self.signing_key.sign(signed_bytes(card, node_key)).hex()
        )

    @property
    def public_key(self) -> bytes:
        return public_key_of(self.name)


def public_key_of(name: str, number: int = 0, end: bytes = b"") -> bytes:
    """Return bytes that begin as a public key does."""
    return Header(magic=PublicKey.MAGIC, parameters=LINEAR.number).to_bytes() + f"{name}-{number}".encode() + end


class Signing(httpx.Auth):
    """Signs httpx requests; whatever is given differs from what a good client does.

    Args:
        client: Who signs.
        age: Seconds since the signature was created.
        lifetime: From then to its end.
        nonce: Hex; drawn anew for each request if None.
        tag: What it is for.
        leave_out: Components that are not covered.
    """

    requires_request_body = True

    def __init__(
        self,
        client: Client,
        *,
        age: float = 0.0,
        lifetime: int = 60,
        nonce: str | None = None,
        tag: str | None = TAG,
        leave_out: tuple[str, ...] = (),
    ) -> None:
        self._client = client
        self._age = age
        self._lifetime = lifetime
        self._nonce = nonce
        self._tag = tag
        self._leave_out = leave_out

    def auth_flow(self, request: httpx.Request) -> Iterator[httpx.Request]:
        self.sign(request)
        yield request

    def sign(self, request: httpx.Request) -> None:
        body = request.content or None
        created = int(time.time() - self._age)
        components = covered_components(has_body=body is not None)
        HTTPMessageSigner(signature_algorithm=ED25519, key_resolver=_Key(self._client)).sign(
            request,
            key_id=self._client.name,
            created=datetime.fromtimestamp(created, UTC),
            expires=datetime.fromtimestamp(created + self._lifetime, UTC),
            nonce=os.urandom(16).hex() if self._nonce is None else self._nonce,
            label=LABEL,
            tag=self._tag,
            covered_component_ids=[name for name in components if name not in self._leave_out],
            body=None if "content-digest" in self._leave_out else body,
        )


class _Key(HTTPSignatureKeyResolver):
    def __init__(self, client: Client) -> None:
        self._client = client

    def resolve_private_key(self, key_id: str) -> Ed25519PrivateKey:
        return self._client.signing_key


DATA = DataTerms(
    name="small",
    columns=(ColumnTerms(name="age", centre=55.0, scale=10.0), ColumnTerms(name="pressure", centre=130.0, scale=20.0)),
    label=LabelTerms(name="ill", negative=("no",), positive=("yes",)),
)


def described(name: str = "plain", *, owner: str = "", key: bytes = b"", weights: str = "00" * 32) -> ModelDescription:
    """Return the description of a small model, encrypted if there is a key."""
    return ModelDescription(
        name=name,
        data=DATA,
        model=ModelTerms(),
        mean=(54.0, 131.0),
        deviation=(9.0, 17.0),
        form="encrypted" if key else "plain",
        parameters=LINEAR.name,
        owner=owner,
        key=key_id(key).hex() if key else "",
        weights=weights,
    )


def query_for(description: ModelDescription, key: bytes, *, patients: int = 3, end: bytes = b"") -> bytes:
    """Return bytes that begin as a query does."""
    header = Header(
        magic=QueryHeader.MAGIC,
        parameters=LINEAR.number,
        count=patients,
        model=description.digest,
        key=key_id(key),
        request=os.urandom(16),
    )
    return header.to_bytes() + os.urandom(200) + end


@dataclass
class Service:
    """A service in this process, and what clients reach it with."""

    directory: ServiceDirectory
    parts: ServiceParts
    http: httpx.AsyncClient

    async def ask(self, client: Client, method: str, path: str, **arguments) -> httpx.Response:
        """Send a signed request; `signing` holds what its signature differs in."""
        signing = Signing(client, **arguments.pop("signing", {}))
        headers = {"content-type": BINARY} if arguments.get("content") else {}
        return await self.http.request(method, path, auth=signing, headers=headers, **arguments)

    async def predict(self, client: Client, query: bytes, name: str = "plain", **arguments) -> httpx.Response:
        return await self.ask(client, "POST", f"/v1/models/{name}/predictions", content=query, **arguments)

    def admit(self, client: Client, *, with_key: bool = True, **allowance: int) -> Client:
        self.parts.registry.admit(client.enrolment, Allowance(**allowance))
        if with_key:
            found = self.parts.registry.find(client.name)
            self.parts.registry.put_key(found, key_id(client.public_key).hex(), client.public_key)
        return client

    def publish(self, description: ModelDescription) -> ModelDescription:
        self.parts.store.publish(description, {"model.safetensors": b"weights"})
        return description

    def served(self) -> str:
        return self.directory.log.read_text(encoding="utf-8")


@asynccontextmanager
async def running(
    path: Path, *, started: float | None = None, workers: int = 1, **worker_limits
) -> AsyncIterator[Service]:
    """Run a service without a network, with the pretended evaluation."""
    directory = ServiceDirectory(path=path)
    parts, _ = service_parts(
        directory,
        hosts=["predict.example"],
        started=time.time() - LONG_AGO if started is None else started,
        workers=workers,
        evaluation=pretended_evaluation,
    )
    for name, value in worker_limits.items():
        owner = parts.workers._turns if name in ("most_waiting", "queue_seconds") else parts.workers
        setattr(owner, f"_{name}", value)
    app = service_app(parts)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url=BASE) as http:
        yield Service(directory, parts, http)


def publication_of(
    client: Client, name: str = "own", *, allowed: tuple[str, ...] = (), end: bytes = b""
) -> Publication:
    """Return an encrypted model of a client's."""
    description = described(name, owner=client.name, key=client.public_key)
    return Publication(description=description, allowed=allowed, weights=b"weights" + end)
