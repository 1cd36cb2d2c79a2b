"""The HTTP client against a real TLS server: signatures, retries, refusals, and answers that mean harm."""

from __future__ import annotations

import asyncio
import logging
import pickle
import socket
import time
from dataclasses import dataclass, field
from functools import partial

import httpx
import pytest
from published import client, plain
from served import InProcessService, Server, problem, running
from starlette.responses import RedirectResponse, Response, StreamingResponse
from tenacity import Retrying

from clients.prediction import EncryptedPredictor
from clients.prediction import service as service_module
from clients.prediction.key_store import KeyStore
from clients.prediction.publication import prepare_model, publish_model
from clients.prediction.service import MAX_ANSWER_BYTES, MAX_LIST_BYTES, ListedModel, PredictionService
from clients.secrets.enrolment import read_card
from clients.secrets.identity import Identity
from clients.secrets.identity_file import read_identity
from protocol.errors import ConfigurationError, LengthError, MalformedError, SecretMaterialError, ServiceError
from protocol.prediction.messages import key_id
from protocol.prediction.parameters import LINEAR
from protocol.prediction.signed_requests import ANSWER_SECONDS, PARAMETERS, WINDOW_SECONDS

FIXED = "gave no reason that can be shown"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Waits are told of and not waited."""
    waited = []
    monkeypatch.setattr(service_module, "Retrying", partial(Retrying, sleep=waited.append))
    return waited


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory):
    with running(Server(service=InProcessService(), cards={}), tmp_path_factory.mktemp("tls")) as server:
        yield server


@pytest.fixture
def server(shared_server, vault, trained):
    shared_server.service = InProcessService()
    shared_server.service.offer(plain(trained))
    shared_server.cards = {"clinic": read_card(vault).card}
    shared_server.requests.clear()
    shared_server.refuse = lambda request: None
    return shared_server


@pytest.fixture
def service(server, vault):
    with PredictionService.from_vault(vault, read_identity(vault), server.address, server.authority) as service:
        yield service


@dataclass
class Refusals:
    """Answers the first requests with a refusal, and then lets the service answer."""

    refusal: object
    times: int = 1
    seen: list[str] = field(default_factory=list)

    def __call__(self, request):
        self.seen.append(request.headers["signature"])
        return self.refusal() if len(self.seen) <= self.times else None


def refused(server, service, response):
    """Return the error of a request that is answered so."""
    server.refuse = lambda request: response
    with pytest.raises(ServiceError) as refusal:
        service.registered_keys()
    return refusal.value


# --- What is asked ----------------------------------------------------------------------------------------------------


def test_each_address_is_reached_and_signed(server, service, vault, trained):
    public_key = KeyStore(vault).current().public_key(LINEAR)

    service.register_key(public_key)
    assert service.registered_keys() == (key_id(public_key).hex(),)
    publish_model(prepare_model(trained, "own", owner="clinic", vault=vault), service, vault, ("ward-3",))
    assert [(given.name, given.form) for given in service.models()] == [("model", "plain"), ("own", "encrypted")]
    assert isinstance(service.models()[0], ListedModel)
    assert service.describe("own").owner == "clinic"
    assert server.service.allowed["own"] == ("ward-3",)
    service.withdraw("own")
    service.delete_key(key_id(public_key))

    assert server.service.keys == {}
    assert [(method, path) for method, path, _ in server.requests[-2:]] == [
        ("DELETE", "/v1/models/own"),
        ("DELETE", f"/v1/keys/{key_id(public_key).hex()}"),
    ]
    for _, _, parameters in server.requests:
        assert set(parameters) - {"alg"} == PARAMETERS
        assert parameters["keyid"] == "clinic"
        assert 0 < parameters["expires"] - parameters["created"] <= WINDOW_SECONDS
    nonces = [parameters["nonce"] for _, _, parameters in server.requests]
    assert len(set(nonces)) == len(nonces)
    assert all(len(bytes.fromhex(nonce)) == 16 for nonce in nonces)


def test_a_prediction_goes_all_the_way(server, vault, trained, records):
    with EncryptedPredictor.from_vault(vault, server.address, server.authority, "model") as predictor:
        logits = predictor.decision_function(records)

    expected = trained.logits(predictor.description.standardised(records))
    assert abs(logits - expected).max() < LINEAR.tolerance


def test_another_identity_does_not_pass_for_the_client(server, trained):
    stranger = PredictionService(server.address, server.authority, Identity.generate(), "clinic")

    with stranger, pytest.raises(ServiceError, match=FIXED):
        stranger.models()


@pytest.mark.parametrize("name", ["../keys", "a/b", "", "HEART", "a?b"])
def test_what_is_no_models_name_is_not_sent(server, service, name):
    for ask in (service.describe, service.withdraw, lambda name: service.predict(name, b"")):
        with pytest.raises(ConfigurationError, match="name"):
            ask(name)
    assert server.requests == []


# --- Retries ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_service_is_asked_again_after_as_long_as_it_says(server, service, no_waiting, status):
    refusals = server.refuse = Refusals(lambda: problem(status, {"title": "later"}, retry_after="7"), times=2)

    assert service.registered_keys() == ()

    assert no_waiting == [7.0, 7.0]
    assert len(set(refusals.seen)) == 3  # signed anew each time
    nonces = {parameters["nonce"] for _, _, parameters in server.requests}
    assert len(nonces) == 3


def test_a_service_that_stays_busy_is_given_up(server, service, no_waiting):
    error = refused(server, service, problem(503, {"title": "Too much waits to be computed: try again later."}))

    assert str(error) == "the prediction service: Too much waits to be computed: try again later. (503)"
    assert len(server.requests) == 5
    assert no_waiting == sorted(no_waiting)
    assert len(no_waiting) == 4


def test_nobody_waits_for_tomorrow(server, service, no_waiting):
    error = refused(server, service, problem(429, {"title": "Used up."}, retry_after="40000"))

    assert (error.status, error.title) == (429, "Used up.")
    assert no_waiting == []


@pytest.mark.parametrize("after", ["-1", "1e9", "soon", "9" * 400])
def test_a_strange_time_to_wait_is_not_taken(server, service, no_waiting, after):
    refused(server, service, problem(503, {}, retry_after=after))

    assert max(no_waiting) <= 30


def test_other_refusals_are_final(server, service):
    error = refused(
        server,
        service,
        problem(
            404, {"type": "urn:cipherward:problem:unknown-key", "title": "This client has no such public key here."}
        ),
    )

    assert (error.status, error.cause) == (404, "unknown-key")
    assert str(error) == "the prediction service: This client has no such public key here. (404)"
    assert len(server.requests) == 1


def test_a_service_that_is_not_there_is_tried_and_named(server, vault, no_waiting):
    nobody = PredictionService("127.0.0.1:9", server.authority, read_identity(vault), "clinic")
    with nobody, pytest.raises(ServiceError, match=r"127\.0\.0\.1:9 does not answer \(ConnectError\)"):
        nobody.models()
    assert len(no_waiting) == 4


def answered_too_late(server):
    """Let the service do what the first request asks, and lose its answer."""
    answer, seen = server._own_answer, []

    def lose(request, body):
        done = answer(request, body)
        seen.append(request.method)
        if len(seen) == 1:
            time.sleep(0.6)
        return done

    return lose


def test_what_was_done_and_whose_answer_was_lost_is_done(server, service, vault, trained, monkeypatch):
    monkeypatch.setattr(service_module, "_COMPUTED_SECONDS", 0.3)
    monkeypatch.setattr(service_module, "_PAUSE_SECONDS", 0.3)
    prepared = prepare_model(trained, "own", owner="clinic", vault=vault)
    service.register_key(prepared.public_key)

    for ask in (
        lambda: service.publish(prepared.description, prepared.weights),
        lambda: service.withdraw("own"),
        lambda: service.delete_key(key_id(prepared.public_key)),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(server, "_own_answer", answered_too_late(server))
            ask()
    assert "own" not in server.service.published
    assert server.service.keys == {}


def test_what_was_never_done_is_not_taken_for_done(server, service, vault, trained, monkeypatch):
    for ask in (lambda: service.withdraw("other"), lambda: service.delete_key(bytes(32))):
        server.refuse = Refusals(lambda: problem(503, {}))  # busy, which is no lost answer
        with pytest.raises(ServiceError, match="404"):
            ask()
    one, other = (prepare_model(trained, "own", owner="clinic", vault=vault) for _ in range(2))
    service.publish(one.description, one.weights)
    monkeypatch.setattr(service_module, "_COMPUTED_SECONDS", 0.3)
    monkeypatch.setattr(server, "_own_answer", answered_too_late(server))
    with pytest.raises(ServiceError, match="taken"):
        service.publish(other.description, other.weights)


def test_what_never_reached_the_service_is_not_taken_for_done(service, monkeypatch):
    send, refused = service._http.send, []

    def unreachable_at_first(request, **options):
        if not refused:
            refused.append(True)
            raise httpx.ConnectError("refused")
        return send(request, **options)

    monkeypatch.setattr(service._http, "send", unreachable_at_first)
    with pytest.raises(ServiceError, match="404"):
        service.withdraw("mistyped")


def test_a_query_whose_answer_does_not_come_in_time_is_not_asked_again(server, service, monkeypatch):
    monkeypatch.setattr(service_module, "_COMPUTED_SECONDS", 0.2)
    server.refuse = lambda request: time.sleep(0.6)

    with pytest.raises(ServiceError, match="may have been charged"):
        service.predict("model", b"query")

    assert len(server.requests) == 1


def test_an_answer_that_is_computed_has_longer_than_others(server, service, monkeypatch):
    monkeypatch.setattr(service_module, "_PAUSE_SECONDS", 0.2)
    server.refuse = lambda request: time.sleep(0.6)
    assert service_module._COMPUTED_SECONDS > ANSWER_SECONDS

    service.register_key(client(LINEAR).public_key)

    with pytest.raises(ServiceError, match="ReadTimeout"):
        service.registered_keys()


def test_a_query_is_repeated_to_the_bit(server, service):
    bodies = []

    def refuse(request):
        bodies.append(request._body)  # the server has read it
        return problem(503, {}) if len(bodies) < 3 else Response(b"answer")

    server.refuse = refuse

    assert service.predict("model", b"query") == b"answer"
    assert bodies == [b"query"] * 3


# --- A service that means harm ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [b"", b"not json", b"[]", b"null", b'{"title": 7}', b'{"title": ""}', b'{"title": "\\u001b[2J"}',
     b'{"title": "two\\nlines"}', b'{"title": "\\u202eback"}', b"\xff\xfe", b"[" * 8000,
     b'{"title": "' + b"a" * 201 + b'"}'],
)  # fmt: skip
def test_a_hostile_problem_gives_a_fixed_text(server, service, body):
    error = refused(server, service, Response(body, 400, media_type="application/problem+json"))

    assert FIXED in str(error)
    assert error.cause == ""
    assert str(error).isprintable()


def test_a_hostile_type_gives_no_cause(server, service):
    error = refused(server, service, problem(400, {"title": "No.", "type": "urn:cipherward:problem:../../etc"}))

    assert (error.title, error.cause) == ("No.", "")


def test_a_problem_without_end_is_not_read(server, service):
    error = refused(server, service, Response(b"x" * 100_000, 400))

    assert "longer than 8192 bytes" in str(error)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(server, service, status):
    error = refused(server, service, RedirectResponse("/v1/models", status))

    assert "not followed" in str(error)
    assert len(server.requests) == 1


def test_an_oversized_answer_is_cut_off_before_it_is_in_memory(server, service):
    sent = []

    async def endless():
        for part in range(1000):
            sent.append(part)
            await asyncio.sleep(0.001)  # so that the server sees that nobody reads on
            yield bytes(1 << 20)

    server.refuse = lambda request: StreamingResponse(endless())
    with pytest.raises(ServiceError, match=f"longer than {MAX_ANSWER_BYTES}"):
        service.predict("model", b"query")
    assert len(sent) < 100


def test_a_compressed_answer_is_not_unpacked(server, service):
    error = refused(server, service, Response(b"\x1f\x8b", headers={"content-encoding": "gzip"}))

    assert "compressed" in str(error)


def test_an_answer_that_drips_is_given_up(server, service, monkeypatch):
    monkeypatch.setattr(service_module, "_ANSWER_SECONDS", -1.0)

    assert "in time" in str(refused(server, service, Response(b"[]")))


@pytest.mark.parametrize("body", [b"", b"[]", b'{"keys": 7}', b'{"keys": [7]}', b"[" * MAX_LIST_BYTES])
def test_a_list_that_is_none_is_refused(server, service, body):
    server.refuse = lambda request: Response(body)

    with pytest.raises(MalformedError):
        service.registered_keys()


def test_the_description_of_another_model_is_refused(server, service):
    data = service.describe("model").to_bytes()
    server.refuse = lambda request: Response(data)

    with pytest.raises(MalformedError, match="asked for"):
        service.describe("other")


def test_a_description_that_is_none_is_refused(server, service):
    server.refuse = lambda request: Response(b"{}")

    with pytest.raises((MalformedError, LengthError)):
        service.describe("model")


# --- TLS and secrets --------------------------------------------------------------------------------------------------


def test_a_certificate_of_another_authority_is_refused_at_once(server, vault, tmp_path, no_waiting):
    (tmp_path / "other").mkdir()
    with running(Server(service=InProcessService(), cards={}), tmp_path / "other") as other:
        service = PredictionService(other.address, server.authority, read_identity(vault), "clinic")
        with service, pytest.raises(ServiceError, match="vouches for"):
            service.models()
        assert other.requests == []
    assert no_waiting == []


def test_a_certificate_for_another_host_is_refused(server, vault, monkeypatch):
    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest, **named: real("127.0.0.1", *rest, **named))
    address = server.address.replace("127.0.0.1", "elsewhere.example.org")

    service = PredictionService(address, server.authority, read_identity(vault), "clinic")
    with service, pytest.raises(ServiceError, match="not valid for 'elsewhere"):
        service.models()
    assert server.requests == []


def test_an_authority_that_is_none_is_refused(vault, tmp_path):
    (tmp_path / "ca.crt").write_text("nothing of the kind\n")

    with pytest.raises(ConfigurationError, match="PEM"):
        PredictionService("127.0.0.1:9", tmp_path / "ca.crt", read_identity(vault), "clinic")


def test_a_service_shows_no_secret_and_does_not_travel(service, vault, caplog):
    with caplog.at_level(logging.DEBUG):
        service.models()

    secret = read_identity(vault).to_secret().reveal()
    assert secret[:32].hex() not in repr(service) + caplog.text
    with pytest.raises(SecretMaterialError):
        pickle.dumps(service)
