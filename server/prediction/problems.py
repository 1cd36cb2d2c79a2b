"""Every refusal of the prediction service, in one table, and what turns them into problem details (RFC 9457).

The texts are fixed: an answer that depends on more than the cause would be an oracle. The details go to the local log.

Trust: what strangers get to read.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from enum import Enum
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from protocol.errors import ProtocolError
from server.prediction.observed import served

MEDIA_TYPE: Final = "application/problem+json"
_URN: Final = "urn:cipherward:problem:"
_CHALLENGE: Final = "Signature"
_logger = logging.getLogger(__name__)


class Cause(Enum):
    """Why a request was refused: the status, and the title that says it."""

    UNSIGNED = HTTPStatus.UNAUTHORIZED, "The request is not signed."
    BAD_SIGNATURE = HTTPStatus.UNAUTHORIZED, "The signature is not that of an admitted client over this request."
    OUTSIDE_WINDOW = HTTPStatus.UNAUTHORIZED, "The signature is not valid at this time: compare the clocks, sign anew."
    REPLAYED = HTTPStatus.CONFLICT, "This signed request has come before: sign anew."
    MISDIRECTED = HTTPStatus.MISDIRECTED_REQUEST, "This service has another name than the one in the request."
    OVER_RATE = HTTPStatus.TOO_MANY_REQUESTS, "Too many requests: try again later."
    OVER_SHARE = HTTPStatus.TOO_MANY_REQUESTS, "Too much of this client's is being worked on: wait for its answers."
    OVER_BUDGET = HTTPStatus.TOO_MANY_REQUESTS, "This is more patients than the client may still have scored today."
    BUSY = HTTPStatus.SERVICE_UNAVAILABLE, "Too much waits to be computed: try again later."

    NOT_FOUND = HTTPStatus.NOT_FOUND, "There is nothing at this address."
    METHOD = HTTPStatus.METHOD_NOT_ALLOWED, "This address does not take this method."
    REQUEST = HTTPStatus.UNPROCESSABLE_ENTITY, "The request does not have the form that the API's description gives."
    HTTP = HTTPStatus.BAD_REQUEST, "The request is not one that this service answers."
    CONTENT_TYPE = HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "The body's content type has to be application/octet-stream."
    TOO_LARGE = HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The body is larger than this address takes."
    SLOW = HTTPStatus.REQUEST_TIMEOUT, "The body did not come in time."
    CUT_OFF = HTTPStatus.BAD_REQUEST, "The body did not come to its end."
    ANOTHER_BODY = HTTPStatus.BAD_REQUEST, "The body is not the one whose digest was signed."
    REFUSED_BODY = HTTPStatus.BAD_REQUEST, "The body is not a message of this protocol, or was made for something else."

    UNKNOWN_MODEL = HTTPStatus.NOT_FOUND, "There is no model of this name that this client may use."
    FOREIGN_MODEL = HTTPStatus.CONFLICT, "The query was made for another model: get the model's description anew."
    UNKNOWN_KEY = HTTPStatus.NOT_FOUND, "This client has no such public key here."
    FOREIGN_KEY = HTTPStatus.CONFLICT, "The query was not made under a public key that is registered for this."
    ANOTHER_KEY = HTTPStatus.CONFLICT, "The public key is not the one that the address names."
    KEY_IN_USE = HTTPStatus.CONFLICT, "A model is encrypted under this key: delete the model first."
    TOO_MANY_KEYS = HTTPStatus.CONFLICT, "This client has as many public keys here as it may: delete one first."
    NAME_TAKEN = HTTPStatus.CONFLICT, "The name is taken; a model of one's own can be deleted first."
    NOT_OWNER = HTTPStatus.FORBIDDEN, "Only a model's owner may do this."
    TOO_MANY_MODELS = HTTPStatus.CONFLICT, "This client has as many models here as it may: delete one first."

    INTERNAL = HTTPStatus.INTERNAL_SERVER_ERROR, "The service could not answer."
    WORKER_LOST = HTTPStatus.SERVICE_UNAVAILABLE, "The computation was interrupted: try again."
    OVER_TIME = HTTPStatus.GATEWAY_TIMEOUT, "The computation took too long and was ended."

    @property
    def status(self) -> HTTPStatus:
        """The answer's status."""
        return self.value[0]

    @property
    def title(self) -> str:
        """The sentence that the client reads."""
        return self.value[1]

    @property
    def urn(self) -> str:
        """Names the cause for programs."""
        return _URN + self.name.lower().replace("_", "-")

    def response(self, headers: Mapping[str, str] | None = None) -> JSONResponse:
        """Return the answer."""
        document = {"type": self.urn, "title": self.title, "status": self.status.value}
        challenge = {"www-authenticate": _CHALLENGE} if self.status == HTTPStatus.UNAUTHORIZED else {}
        return JSONResponse(
            document, status_code=self.status, media_type=MEDIA_TYPE, headers={**challenge, **(headers or {})}
        )


class ProblemError(Exception):
    """A request that is refused.

    Args:
        cause: Why.
        retry_seconds: When it is worth another try.
    """

    def __init__(self, cause: Cause, *, retry_seconds: float | None = None) -> None:
        self.cause = cause
        self.headers = {} if retry_seconds is None else {"retry-after": str(max(1, round(retry_seconds + 0.5)))}
        super().__init__(cause.name)


_OF_STARLETTE: Final = {HTTPStatus.NOT_FOUND: Cause.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED: Cause.METHOD}


def install(app: FastAPI) -> None:
    """Make an application answer whatever goes wrong with a problem of the table."""

    async def answer(request: Request, error: Exception) -> JSONResponse:
        cause = cause_of(error)
        served(request).cause = cause.name
        return cause.response(error.headers if isinstance(error, (ProblemError, HTTPException)) else None)

    for kind in (ProblemError, HTTPException, RequestValidationError, ClientDisconnect, Exception):
        app.add_exception_handler(kind, answer)


def cause_of(error: Exception) -> Cause:
    """Return why a request failed, for whatever error."""
    match error:
        case ProblemError():
            return error.cause
        case HTTPException():
            return _OF_STARLETTE.get(HTTPStatus(error.status_code), Cause.HTTP)
        case RequestValidationError():
            return Cause.REQUEST
        case ClientDisconnect():
            return Cause.CUT_OFF
        case _:
            return Cause.INTERNAL


@contextlib.contextmanager
def refusing_bad_bodies() -> Iterator[None]:
    """Answer REFUSED_BODY where bytes from outside are read that are no message of the protocol."""
    try:
        yield
    except ProtocolError as error:
        _logger.info("a body was refused: %s", type(error).__name__)
        raise ProblemError(Cause.REFUSED_BODY) from None


def documented(*causes: Cause) -> dict[int | str, dict[str, Any]]:
    """Return these causes as OpenAPI has them: by status, with the titles that it can have."""
    by_status: dict[int | str, dict[str, Any]] = {}
    for cause in sorted(causes, key=lambda cause: cause.status):
        entry = by_status.setdefault(cause.status.value, {"description": "", "content": {MEDIA_TYPE: {}}})
        entry["description"] = f"{entry['description']}\n- `{cause.urn}`: {cause.title}".strip()
        urns = entry["content"][MEDIA_TYPE].setdefault("schema", _schema(cause.status))["properties"]["type"]["enum"]
        urns.append(cause.urn)
    return by_status


def _schema(status: HTTPStatus) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            "type": {"type": "string", "enum": []},
            "title": {"type": "string"},
            "status": {"const": status.value},
        },
        "required": ["type", "title", "status"],
        "additionalProperties": False,
    }
