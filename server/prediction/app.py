"""The prediction service's addresses, and what happens at each.

Trust: runs at the provider, on the public network. It passes ciphertexts from clients to workers and back; of patients
it learns how many there are.
"""

import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any, Final, TypeAlias

from fastapi import Depends, FastAPI
from fastapi import Path as InPath
from fastapi.responses import Response
from pydantic import BaseModel

from protocol.errors import ConfigurationError
from protocol.prediction.messages import QueryHeader, key_id, largest_query_bytes
from protocol.prediction.signed_requests import BINARY
from server.prediction.model_store import ModelStore, StoredModel
from server.prediction.observed import Observed, served
from server.prediction.parts import ServiceParts
from server.prediction.problems import Cause, ProblemError, documented, install, refusing_bad_bodies
from server.prediction.reception import BODY_CAUSES, HEAD_CAUSES, Visitor

LARGEST_KEY_BYTES: Final = 1 << 20
LARGEST_BODY_BYTES: Final = 96 << 20
"""Of a model or a query; a network of 30 inputs and 16 hidden units takes 92 MiB encrypted."""

ModelName: TypeAlias = Annotated[str, InPath(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$", description="A model's name.")]
KeyId: TypeAlias = Annotated[str, InPath(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the public key, hex.")]


class ModelEntry(BaseModel):
    """A model that may be used."""

    name: str
    digest: str
    form: str
    owner: str


class ModelList(BaseModel):
    """All of them."""

    models: list[ModelEntry]


class KeyList(BaseModel):
    """Ids of public keys."""

    keys: list[str]


def service_app(parts: ServiceParts, *, ready: Callable[[], Any] | None = None) -> FastAPI:
    """Make the application.

    Args:
        parts: What it works with; closed when it ends.
        ready: Awaited before the first request is taken.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        del app
        try:
            if ready is not None:
                await ready()
            yield
        finally:
            await parts.workers.close()
            parts.usage.close()
            parts.log.close()

    app = FastAPI(
        title="Cipherward prediction",
        summary="Scores encrypted records; sees neither record nor score.",
        version="1",
        lifespan=lifespan,
        docs_url=None,  # the page would load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    install(app)
    app.add_middleware(Observed, tell=(parts.log.write, parts.metrics.count))
    _add_health(app)
    _add_models(app, parts)
    _add_keys(app, parts)
    _add_predictions(app, parts)
    return app


def _add_health(app: FastAPI) -> None:
    @app.get("/health", status_code=204, response_class=Response)
    async def health() -> None:
        """Say that the service runs."""


def _add_models(app: FastAPI, parts: ServiceParts) -> None:
    store, workers, evaluation = parts.store, parts.workers, parts.evaluation
    Signed = Annotated[Visitor, Depends(parts.reception)]  # noqa: N806 - a type

    @app.get("/v1/models", responses=documented(*HEAD_CAUSES))
    async def models(visitor: Signed) -> ModelList:
        """List the models that the client may use."""
        await visitor.no_body()
        return ModelList(models=[_entry(model) for model in store.models() if model.is_for(visitor.client.name)])

    @app.get(
        "/v1/models/{name}",
        response_class=Response,
        responses={
            200: {"content": {"application/json": {"schema": {"type": "object"}}}},
            **documented(*HEAD_CAUSES, Cause.UNKNOWN_MODEL),
        },
    )
    async def description(visitor: Signed, name: ModelName) -> Response:
        """Describe a model: everything that a query needs; its SHA-256 digest is over these very bytes."""
        await visitor.no_body()
        model = _model_for(visitor, name, store)
        return Response(model.description.to_bytes(), media_type="application/json")

    @app.put(
        "/v1/models/{name}",
        status_code=201,
        response_class=Response,
        openapi_extra=_binary_body(),
        responses=documented(
            *HEAD_CAUSES, *BODY_CAUSES, Cause.NAME_TAKEN, Cause.TOO_MANY_MODELS, Cause.FOREIGN_KEY,
            Cause.WORKER_LOST, Cause.OVER_TIME,
        ),
    )  # fmt: skip
    async def publish(visitor: Signed, name: ModelName) -> None:
        """Publish an encrypted model of one's own; it never changes, and can be deleted."""
        client = visitor.client
        if name in store.names():
            raise ProblemError(Cause.NAME_TAKEN)
        if len(store.owned_by(client.name)) >= client.allowance.models:
            raise ProblemError(Cause.TOO_MANY_MODELS)
        async with visitor.body(LARGEST_BODY_BYTES) as body:
            publication = await workers.run(client.name, evaluation.read_publication, body)
            described = publication.description
            if (described.name, described.owner, described.is_encrypted) != (name, client.name, True):
                raise ProblemError(Cause.REFUSED_BODY)
            if parts.registry.key_file(client.name, described.key) is None:
                raise ProblemError(Cause.FOREIGN_KEY)
            served(visitor.request).model = name
            store.publish_encrypted(client, publication)
            still = parts.registry.find(client.name)
            if still is None or still.enrolment != client.enrolment:  # expelled while it was written
                with contextlib.suppress(ConfigurationError):  # whoever expels may have seen it
                    store.withdraw(name)
                raise ProblemError(Cause.BAD_SIGNATURE)

    @app.delete(
        "/v1/models/{name}",
        status_code=204,
        response_class=Response,
        responses=documented(*HEAD_CAUSES, Cause.UNKNOWN_MODEL, Cause.NOT_OWNER),
    )
    async def withdraw(visitor: Signed, name: ModelName) -> None:
        """Delete a model of one's own."""
        await visitor.no_body()
        if _model_for(visitor, name, store).description.owner != visitor.client.name:
            raise ProblemError(Cause.NOT_OWNER)
        store.withdraw(name)


def _add_keys(app: FastAPI, parts: ServiceParts) -> None:
    registry = parts.registry
    Signed = Annotated[Visitor, Depends(parts.reception)]  # noqa: N806 - a type

    @app.get("/v1/keys", responses=documented(*HEAD_CAUSES))
    async def keys(visitor: Signed) -> KeyList:
        """List the client's public keys."""
        await visitor.no_body()
        return KeyList(keys=registry.keys(visitor.client.name))

    @app.put(
        "/v1/keys/{key}",
        status_code=204,
        response_class=Response,
        openapi_extra=_binary_body(),
        responses=documented(
            *HEAD_CAUSES, *BODY_CAUSES, Cause.ANOTHER_KEY, Cause.TOO_MANY_KEYS, Cause.WORKER_LOST, Cause.OVER_TIME
        ),
    )
    async def register(visitor: Signed, key: KeyId) -> None:
        """Register a public key of the client's; once more makes no difference."""
        async with visitor.body(LARGEST_KEY_BYTES) as body:
            if key_id(body).hex() != key:
                raise ProblemError(Cause.ANOTHER_KEY)
            await parts.workers.run(visitor.client.name, parts.evaluation.check_public_key, body)
            registry.put_key(visitor.client, key, body)

    @app.delete(
        "/v1/keys/{key}",
        status_code=204,
        response_class=Response,
        responses=documented(*HEAD_CAUSES, Cause.UNKNOWN_KEY, Cause.KEY_IN_USE),
    )
    async def forget(visitor: Signed, key: KeyId) -> None:
        """Delete a public key of the client's."""
        await visitor.no_body()
        name = visitor.client.name
        if any(model.description.key == key for model in parts.store.owned_by(name)):
            raise ProblemError(Cause.KEY_IN_USE)
        registry.delete_key(name, key)


def _add_predictions(app: FastAPI, parts: ServiceParts) -> None:
    Signed = Annotated[Visitor, Depends(parts.reception)]  # noqa: N806 - a type

    @app.post(
        "/v1/models/{name}/predictions",
        response_class=Response,
        openapi_extra=_binary_body(),
        responses={
            200: {"content": {BINARY: {"schema": {"type": "string", "format": "binary"}}}},
            **documented(
                *HEAD_CAUSES, *BODY_CAUSES, Cause.UNKNOWN_MODEL, Cause.FOREIGN_MODEL, Cause.FOREIGN_KEY,
                Cause.OVER_BUDGET, Cause.WORKER_LOST, Cause.OVER_TIME,
            ),
        },
    )  # fmt: skip
    async def predict(visitor: Signed, name: ModelName) -> Response:
        """Answer a query: encrypted records in, encrypted scores out.

        Charged before it is worked on, and not while it waits. The same bytes may come again for ten minutes, four
        times, without another charge.
        """
        model = _model_for(visitor, name, parts.store)
        async with visitor.body(min(largest_query_bytes(model.description), LARGEST_BODY_BYTES)) as body:
            answer = await _answer(visitor, model, body, parts)
        return Response(answer, media_type=BINARY)


async def _answer(visitor: Visitor, model: StoredModel, body: bytes, parts: ServiceParts) -> bytes:
    client, description = visitor.client, model.description
    with refusing_bad_bodies():
        header = QueryHeader.of(body)
    if header.model != description.digest:
        raise ProblemError(Cause.FOREIGN_MODEL)
    key = header.key.hex()
    # a model under a key is only of use to queries under the same key
    owner = description.owner if description.is_encrypted else client.name
    key_file = parts.registry.key_file(owner, key)
    if key_file is None or description.key not in ("", key):
        raise ProblemError(Cause.FOREIGN_KEY)
    if not 1 <= header.patients <= description.parameter_set.patients:
        raise ProblemError(Cause.REFUSED_BODY)

    def charge() -> None:
        is_new = parts.usage.charge(
            client.name,
            description.name,
            description.parameter_set.charged(header.patients),
            query=hashlib.sha256(body).digest(),
            allowed=client.allowance.patients_per_day,
        )
        served(visitor.request).patients = header.patients if is_new else 0

    return await parts.workers.run(
        client.name, parts.evaluation.answer_query, before=charge, model=model.directory, key=key_file, query=body
    )


def _model_for(visitor: Visitor, name: str, store: ModelStore) -> StoredModel:
    model = store.model_for(visitor.client.name, name)
    served(visitor.request).model = name
    return model


def _entry(model: StoredModel) -> ModelEntry:
    description = model.description
    return ModelEntry(
        name=description.name, digest=description.digest.hex(), form=description.form, owner=description.owner
    )


def _binary_body() -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {BINARY: {"schema": {"type": "string", "format": "binary"}}}}}
