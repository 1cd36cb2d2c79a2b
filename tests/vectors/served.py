"""A prediction service for tests of its clients: the real evaluation, in this process or behind a real TLS server."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import uvicorn
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from http_message_signatures import HTTPMessageVerifier, MappingKeyResolver
from http_message_signatures.algorithms import ED25519
from published import Published
from safetensors.numpy import save
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from clients.prediction.service import ListedModel
from protocol.agreement import SiteCard
from protocol.errors import ServiceError
from protocol.prediction.description import ModelDescription
from protocol.prediction.messages import QueryHeader, key_id
from protocol.prediction.model_file import MODEL_FORMAT, TrainedModel
from protocol.prediction.publication import Publication
from protocol.prediction.signed_requests import TAG, covered_components
from server.prediction.evaluation import answer_with, check_public_key, encrypted_model, read_publication
from server.tls import Authority, TlsFiles

REFUSED = {"type": "urn:cipherward:problem:unknown-key", "title": "This client has no such public key here."}


@dataclass
class InProcessService:
    """The methods of a client's `PredictionService`, answered by the server's own evaluation; one client.

    Attributes:
        sent: What came, as method and size.
        answered: What is made of an answer before it goes out.
    """

    name: str = "clinic"
    published: dict[str, tuple[ModelDescription, object]] = field(default_factory=dict)
    allowed: dict[str, tuple[str, ...]] = field(default_factory=dict)
    keys: dict[bytes, bytes] = field(default_factory=dict)
    sent: list[tuple[str, int]] = field(default_factory=list)
    answered: Callable[[bytes], bytes] = lambda answer: answer

    def offer(self, model: Published) -> None:
        self.published[model.description.name] = (model.description, model.model)

    def models(self):
        return tuple(
            ListedModel(name=name, digest=given.digest.hex(), form=given.form, owner=given.owner)
            for name, (given, _) in self.published.items()
        )

    def describe(self, name):
        if name not in self.published:
            raise ServiceError("There is no model of this name that this client may use.", status=404)
        return self.published[name][0]

    def registered_keys(self):
        return tuple(key.hex() for key in self.keys)

    def register_key(self, public_key):
        check_public_key(public_key)
        self.sent.append(("register", len(public_key)))
        self.keys[key_id(public_key)] = public_key

    def delete_key(self, identifier):
        if self.keys.pop(identifier, None) is None:
            raise ServiceError(REFUSED["title"], status=404, cause="unknown-key")

    def publish(self, description, weights, allowed=()):
        if description.name in self.published:
            raise ServiceError("The name is taken.", status=409, cause="name-taken")
        read_publication(Publication(description=description, allowed=tuple(allowed), weights=weights).to_bytes())
        self.published[description.name] = (description, encrypted_model(description, weights))
        self.allowed[description.name] = tuple(allowed)

    def withdraw(self, name):
        if self.published.pop(name, None) is None:
            raise ServiceError("There is no model of this name.", status=404, cause="unknown-model")

    def predict(self, name, query):
        self.sent.append(("predict", len(query)))
        description, model = self.published[name]
        return self.answered(answer_with(model, description, self.keys[QueryHeader.of(query).key], query))


@dataclass
class Server:
    """A service behind TLS on this machine, which checks signatures.

    Attributes:
        service: What answers.
        requests: Method, path, and the signature's parameters of each request that came.
        refuse: Returns what is answered in the service's stead, None for the service's own answer.
    """

    service: InProcessService
    cards: dict[str, SiteCard]
    requests: list[tuple[str, str, dict]] = field(default_factory=list)
    refuse: Callable[[Request], Response | None] = lambda request: None
    address: str = ""
    authority: Path = Path()

    async def answer(self, request: Request) -> Response:
        body = await request.body()
        keys = {
            name: Ed25519PublicKey.from_public_bytes(bytes.fromhex(card.signing_key))
            for name, card in self.cards.items()
        }
        verifier = HTTPMessageVerifier(
            signature_algorithm=ED25519, key_resolver=MappingKeyResolver(public_keys=keys, private_keys={})
        )
        message = _Message(request.method, str(request.url), dict(request.headers.items()))
        (result,) = verifier.verify(message, expect_tag=TAG, require_components=covered_components(has_body=bool(body)))
        if body:
            verifier.verify_body(message, [result], body)
        self.requests.append((request.method, request.url.path, result.parameters))
        return self.refuse(request) or self._own_answer(request, body)

    def _own_answer(self, request: Request, body: bytes) -> Response:
        service, place = self.service, request.path_params
        try:
            match (request.method, request.url.path.split("/")[2], place):
                case "GET", "models", {"name": name}:
                    return Response(service.describe(name).to_bytes())
                case "GET", "models", _:
                    return Response(json.dumps({"models": [asdict(listed) for listed in service.models()]}))
                case "GET", "keys", _:
                    return Response(json.dumps({"keys": service.registered_keys()}))
                case "PUT", "keys", _:
                    service.register_key(body)
                case "DELETE", "keys", {"key": key}:
                    service.delete_key(bytes.fromhex(key))
                case "PUT", "models", _:
                    given = Publication.from_bytes(body)
                    service.publish(given.description, given.weights, given.allowed)
                case "DELETE", "models", {"name": name}:
                    service.withdraw(name)
                case "POST", "models", {"name": name}:
                    return Response(service.predict(name, body))
        except ServiceError as error:
            urn = f"urn:cipherward:problem:{error.cause}"
            return problem(error.status, {"type": urn, "title": error.title, "status": error.status})
        return Response(status_code=204)


@dataclass
class _Message:
    method: str
    url: str
    headers: dict


def problem(status: int, document: object, **headers: str) -> Response:
    headers = {name.replace("_", "-"): text for name, text in headers.items()}
    return Response(json.dumps(document), status, headers, "application/problem+json")


@contextmanager
def running(server: Server, directory: Path, host: str = "127.0.0.1") -> Iterator[Server]:
    """Run a server at a free port of this machine, with a certificate for `host`."""
    files = TlsFiles(directory=directory)
    authority = Authority.generate()
    authority.write(files)
    authority.issue(files, (host,))
    methods = ["GET", "PUT", "POST", "DELETE"]
    paths = ["/v1/models", "/v1/models/{name}", "/v1/models/{name}/predictions", "/v1/keys", "/v1/keys/{key}"]
    app = Starlette(routes=[Route(path, server.answer, methods=methods) for path in paths])
    config = uvicorn.Config(
        app,
        port=0,
        ssl_certfile=files.certificate,
        ssl_keyfile=files.key,
        ws="none",
        lifespan="off",
        log_level="critical",
    )
    listening = uvicorn.Server(config)
    thread = threading.Thread(target=listening.run)
    thread.start()
    try:
        while not listening.started:
            assert thread.is_alive()
            time.sleep(0.01)
        server.address = f"127.0.0.1:{listening.servers[0].sockets[0].getsockname()[1]}"
        server.authority = files.authority
        yield server
    finally:
        listening.should_exit = True
        thread.join()


def model_file(trained: TrainedModel) -> bytes:
    """Return a model's file as training writes it into a vault."""
    tensors = {**trained.tensors, "standardisation.mean": trained.mean, "standardisation.deviation": trained.deviation}
    purpose = {
        "data": asdict(trained.data),
        "inputs": [given.name for given in trained.data.inputs],
        "model": asdict(trained.model),
    }
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    return save(contiguous, {MODEL_FORMAT: json.dumps(purpose)})
