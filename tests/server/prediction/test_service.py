"""The service as it is run: over TLS, in a process of its own, with the real evaluation."""

from __future__ import annotations

import json
import socket
import ssl
from dataclasses import asdict

import httpx
import numpy as np
import psutil
import pytest
from deployment import wait_until
from prediction_service import DATA, Client, Signing
from safetensors.numpy import save
from service_process import is_there, served

from clients.prediction.keys import PredictionKey
from clients.prediction.records import encrypt_records, read_logits
from protocol.prediction.messages import Answer, key_id
from protocol.prediction.model_file import MODEL_FORMAT, TrainedModel
from protocol.prediction.parameters import LINEAR
from protocol.prediction.signed_requests import BINARY
from protocol.terms import ModelTerms
from scripts.provider.directory import ProviderDirectory, ProviderSettings
from scripts.superlink import free_port
from server.prediction.client_registry import Allowance, ClientRegistry
from server.prediction.evaluation import PLAIN_FILE
from server.prediction.model_store import ModelStore
from server.prediction.problems import Cause

CLEVELAND = Client()
WEIGHTS = {"output.weight": np.array([[0.75, -0.5]]), "output.bias": np.array([0.25])}


def founded(path, patients):
    """Make a provider's directory with one client and one plain model."""
    directory = ProviderDirectory(path)
    directory.found(ProviderSettings(hosts=("localhost",), listen="127.0.0.1", port=free_port()), None)
    ClientRegistry(directory.prediction.clients).admit(CLEVELAND.enrolment, Allowance(patients_per_day=patients))
    purpose = {"data": asdict(DATA), "inputs": [column.name for column in DATA.inputs], "model": asdict(ModelTerms())}
    tensors = {**WEIGHTS, "standardisation.mean": np.zeros(2), "standardisation.deviation": np.ones(2)}
    file = save(tensors, {MODEL_FORMAT: json.dumps(purpose)})
    description = TrainedModel.from_bytes(file).describe("plain")
    ModelStore(directory.prediction.models).publish(description, {PLAIN_FILE: file})
    return directory, description


@pytest.fixture(scope="module")
def provider(tmp_path_factory):
    return founded(tmp_path_factory.mktemp("service") / "provider", patients=7)


@pytest.fixture(scope="module")
def running(provider):
    with served(provider[0]) as found:
        yield found


def put(http, path, content):
    return http.put(path, content=content, headers={"content-type": BINARY}, auth=Signing(CLEVELAND))


def predict(http, content):
    path = "/v1/models/plain/predictions"
    return http.post(path, content=content, headers={"content-type": BINARY}, auth=Signing(CLEVELAND))


@pytest.fixture(scope="module")
def key():
    secret = PredictionKey.draw(LINEAR)
    return secret, secret.public_key()


def test_encrypted_records_come_back_as_encrypted_scores_until_the_day_s_patients_are_used_up(provider, running, key):
    (directory, description), (http, metrics, _) = provider, running
    secret, public = key
    registered = public.to_bytes(LINEAR)
    records = np.array([[0.5, -1.0], [1.5, 2.0], [-3.0, 0.25]])
    queries = [encrypt_records(records, description, secret, key_id(registered)) for _ in range(3)]

    put(http, f"/v1/keys/{key_id(registered).hex()}", registered).raise_for_status()
    answers = [predict(http, query.to_bytes(description)) for query in queries]

    expected = records @ WEIGHTS["output.weight"][0] + WEIGHTS["output.bias"][0]
    for query, answer in zip(queries, answers[:2], strict=False):
        logits = read_logits(Answer.from_bytes(answer.content, description, query.header), description, secret)
        np.testing.assert_allclose(logits, expected, atol=LINEAR.tolerance)
    assert answers[2].json()["type"] == Cause.OVER_BUDGET.urn

    def served():
        log = [json.loads(line) for line in directory.prediction.log.read_text(encoding="utf-8").splitlines()]
        return [line["patients"] for line in log if line["call"].endswith("predictions")]

    assert wait_until(lambda: served() == [3, 3, 0])  # the line is written when the answer has left
    counted = httpx.get(metrics, trust_env=False).text
    assert "cipherward_patients_total 6.0" in counted
    assert "cleveland" not in counted


def test_metrics_are_not_on_the_public_port(running):
    assert running[0].get("/metrics").status_code == 404


def raw(http, data):
    """Return all that comes for these bytes."""
    trusted = ssl.create_default_context()
    trusted.check_hostname, trusted.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", http.base_url.port), timeout=20) as plain,
        trusted.wrap_socket(plain) as line,
    ):
        line.sendall(data)
        return b"".join(iter(lambda: line.recv(65536), b""))


def test_a_body_that_is_announced_too_large_is_refused_at_its_head(running):
    http = running[0]
    kind = {"content-type": BINARY}
    request = http.build_request("PUT", f"/v1/keys/{'ab' * 32}", content=b"x" * (2 << 20), headers=kind)
    Signing(CLEVELAND).sign(request)
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items() if name != "connection")

    answer = raw(http, f"PUT {request.url.path} HTTP/1.1\r\n{head}connection: close\r\n\r\n".encode())

    assert answer.startswith(b"HTTP/1.1 413")
    assert Cause.TOO_LARGE.urn.encode() in answer


@pytest.mark.parametrize("head", [b"\x16\x03\x01", b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", b"GET  \r\n\r\n"])
def test_what_is_no_request_gets_one_line_and_the_service_goes_on(running, head):
    answer = raw(running[0], head + b"\r\n\r\n")

    assert answer.startswith(b"HTTP/1.1 400")
    assert b"Traceback" not in answer
    assert is_there(running[0])


def test_nothing_outlives_a_killed_service_and_the_next_one_knows_what_was_used(tmp_path, key):
    directory, description = founded(tmp_path / "provider", patients=3)
    secret, public = key
    registered = public.to_bytes(LINEAR)
    query, another = (
        encrypt_records(np.zeros((2, 2)), description, secret, key_id(registered)).to_bytes(description)
        for _ in range(2)
    )
    with served(directory) as (http, _, process):
        put(http, f"/v1/keys/{key_id(registered).hex()}", registered).raise_for_status()
        assert predict(http, query).status_code == 200
        started = process.children(recursive=True)
        process.kill()
        _, alive = psutil.wait_procs(started, timeout=20)
    assert started
    assert alive == []
    with served(directory) as (http, _, _):
        assert predict(http, query).status_code == 200  # paid for already
        assert predict(http, another).json()["type"] == Cause.OVER_BUDGET.urn
