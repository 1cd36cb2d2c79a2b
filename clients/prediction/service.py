"""Talk to the prediction service: queries and keys up, encrypted scores down; never a score.

Every request is signed by the client's identity, and a repeated one anew. A query is repeated to the bit, for which the
service does not charge, and not at all if its answer does not come in time. What comes back is bounded before it is in
memory; of a refusal a person reads the service's title, if it is one line of text, and nothing else.

Trust: runs at the client. What it is given to send is encrypted or public; no method takes records or scores.
"""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn, Self, TypeVar

import httpx
from pydantic import TypeAdapter, ValidationError
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt

from clients.prediction.refusals import AgainError, bounded, certificate_error, refusal, seconds_to_wait
from clients.prediction.signing import sign_request
from clients.secrets.enrolment import read_card
from clients.secrets.identity import Identity
from clients.secrets.vault import Vault
from protocol.errors import ConfigurationError, MalformedError, SecretMaterialError, ServiceError
from protocol.prediction.description import MAX_DESCRIPTION_BYTES, ModelDescription, check_model_name
from protocol.prediction.messages import key_id
from protocol.prediction.publication import Publication
from protocol.prediction.signed_requests import ANSWER_SECONDS, BINARY

MAX_ANSWER_BYTES: Final = 1 << 20
"""Of a prediction; the longest there is has six polynomials of 8192 residues below two primes, 590 kB."""

MAX_LIST_BYTES: Final = 1 << 20
MAX_PROBLEM_BYTES: Final = 8 << 10

_ATTEMPTS: Final = 5
_CONNECT_SECONDS, _PAUSE_SECONDS, _ANSWER_SECONDS = 10.0, 60.0, 180.0
_COMPUTED_SECONDS = ANSWER_SECONDS + 30.0  # until an answer begins that the service had to compute
_List = TypeVar("_List")


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedModel:
    """A model that the client may use.

    Attributes:
        name: Its name.
        digest: Of its description, hex.
        form: "plain" or "encrypted".
        owner: Who published it; empty for the provider.
    """

    name: str
    digest: str
    form: str
    owner: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _ModelList:
    models: tuple[ListedModel, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _KeyList:
    keys: tuple[str, ...]


class PredictionService:
    """A prediction service, as one of its clients sees it; may be used by several threads.

    Args:
        address: HOST:PORT.
        authority: PEM file of the authority of its certificate; None for the machine's own ones.
        identity: The client's, which signs.
        name: The client's name, as on its card.

    Raises:
        ConfigurationError: The address or the file is none.
    """

    def __init__(self, address: str, authority: Path | None, identity: Identity, name: str) -> None:
        self.name = name
        self._address = address
        self._identity = identity
        host = address.removeprefix("https://")
        if not host or "/" in host:
            raise ConfigurationError(f"{address!r} is no HOST:PORT")
        try:
            self._http = httpx.Client(
                base_url=f"https://{host}",
                verify=_context(authority),
                follow_redirects=False,
                headers={"accept-encoding": "identity"},  # a compressed answer could be of any size
            )
        except httpx.InvalidURL:
            raise ConfigurationError(f"{address!r} is no HOST:PORT") from None

    @classmethod
    def from_vault(cls, vault: Vault, identity: Identity, address: str, authority: Path | None) -> Self:
        """Return the service for an enrolled client.

        Raises:
            ConfigurationError: The vault has no card, or the address or the authority's file is none.
        """
        return cls(address, authority, identity, read_card(vault).card.name)

    def models(self) -> tuple[ListedModel, ...]:
        """Return the models that the client may use."""
        return _parsed(self._get("/v1/models", MAX_LIST_BYTES), _MODEL_LIST).models

    def describe(self, name: str) -> ModelDescription:
        """Return a model's description.

        Raises:
            MalformedError: The service gave none, or another model's.
        """
        check_model_name(name)
        description = ModelDescription.from_bytes(self._get(f"/v1/models/{name}", MAX_DESCRIPTION_BYTES))
        if description.name != name:
            raise MalformedError("model description", expected="that of the model asked for", got="another")
        return description

    def registered_keys(self) -> tuple[str, ...]:
        """Return the ids of the client's public keys, hex."""
        return _parsed(self._get("/v1/keys", MAX_LIST_BYTES), _KEY_LIST).keys

    def register_key(self, public_key: bytes) -> None:
        """Register a public key; once more makes no difference."""
        self._send("PUT", f"/v1/keys/{key_id(public_key).hex()}", public_key)

    def delete_key(self, identifier: bytes) -> None:
        """Have the service forget a public key, given by its id."""
        self._send("DELETE", f"/v1/keys/{identifier.hex()}", is_done=lambda error: error.cause == "unknown-key")

    def publish(self, description: ModelDescription, weights: bytes, allowed: Iterable[str] = ()) -> None:
        """Publish an encrypted model.

        Args:
            description: Of the model.
            weights: The encrypted weights, as a message.
            allowed: Names of clients that may use it beside its owner.
        """
        publication = Publication(description=description, allowed=tuple(allowed), weights=weights)

        def is_done(error: ServiceError) -> bool:
            with contextlib.suppress(ServiceError):  # it is somebody else's
                return error.cause == "name-taken" and self.describe(description.name).digest == description.digest
            return False

        self._send("PUT", f"/v1/models/{description.name}", publication.to_bytes(), is_done=is_done)

    def withdraw(self, name: str) -> None:
        """Delete a model of the client's own from the service."""
        check_model_name(name)
        self._send("DELETE", f"/v1/models/{name}", is_done=lambda error: error.cause == "unknown-model")

    def predict(self, name: str, query: bytes) -> bytes:
        """Have a query answered.

        Args:
            name: The model's.
            query: Encrypted records, as a message.

        Returns:
            Encrypted scores, as a message that has not been checked.
        """
        check_model_name(name)
        return self._send("POST", f"/v1/models/{name}/predictions", query, most=MAX_ANSWER_BYTES)

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"PredictionService({self._address}, as {self.name})"

    def __reduce__(self) -> NoReturn:
        raise SecretMaterialError("a client of the prediction service holds its identity, which must not leave")

    def _get(self, path: str, most: int) -> bytes:
        return self._send("GET", path, most=most)

    def _send(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        most: int = MAX_PROBLEM_BYTES,
        is_done: Callable[[ServiceError], bool] | None = None,
    ) -> bytes:
        """Send a request until it is answered.

        Args:
            method: Of HTTP.
            path: At the service.
            body: If it has one.
            most: Longest answer.
            is_done: Whether a refusal says that an earlier try, whose answer was lost, has done what was asked.
        """
        lost = False

        def once() -> bytes:
            nonlocal lost
            try:
                return self._send_once(method, path, body, most)
            except AgainError as again:
                lost = lost or again.is_lost
                raise
            except ServiceError as error:
                if lost and is_done is not None and is_done(error):
                    return b""
                raise

        retrying = Retrying(
            retry=retry_if_exception_type(AgainError),
            stop=stop_after_attempt(_ATTEMPTS),
            wait=seconds_to_wait,
            reraise=True,
        )
        try:
            return retrying(once)
        except AgainError as last:
            raise last.error from None

    def _send_once(self, method: str, path: str, body: bytes | None, most: int) -> bytes:
        headers = {} if body is None else {"content-type": BINARY}
        pause = _PAUSE_SECONDS if body is None else _COMPUTED_SECONDS
        timeout = httpx.Timeout(_PAUSE_SECONDS, connect=_CONNECT_SECONDS, read=pause)
        request = self._http.build_request(method, path, content=body, headers=headers, timeout=timeout)
        sign_request(request, self._identity, self.name, body)
        try:
            answer = self._http.send(request, stream=True)
            deadline = time.monotonic() + _ANSWER_SECONDS
            try:
                if not answer.is_success:
                    raise refusal(answer, bounded(answer, MAX_PROBLEM_BYTES, deadline))
                return bounded(answer, most, deadline)
            finally:
                answer.close()
        except httpx.HTTPError as error:
            raise self._failure(error, method) from None

    def _failure(self, error: httpx.HTTPError, method: str) -> Exception:
        certificate = certificate_error(error)
        if certificate:
            return ServiceError(
                f"{self._address} is not the one that the authority vouches for: {certificate}; ask its people for the "
                "right address and --ca file"
            )
        kind = type(error).__name__
        if method == "POST" and isinstance(error, httpx.ReadTimeout):
            return ServiceError(
                f"{self._address} has the query and gave no answer in time; its patients may have been charged, and it "
                "is not asked again: try later"
            )
        return AgainError(
            ServiceError(f"{self._address} does not answer ({kind}): is it running, and reachable?"),
            is_lost=not isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout)),
        )


def _context(authority: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=authority)
    except (OSError, ssl.SSLError):  # the latter is raised of a file that holds no certificate
        raise ConfigurationError(f"{authority} is no file of certificates in PEM") from None


_MODEL_LIST: Final = TypeAdapter(_ModelList)
_KEY_LIST: Final = TypeAdapter(_KeyList)


def _parsed(data: bytes, parser: TypeAdapter[_List]) -> _List:
    try:
        return parser.validate_json(data)
    except ValidationError:
        raise MalformedError("list of the prediction service") from None
