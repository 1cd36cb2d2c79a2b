"""A stranger who has the authority's certificate, before a real gate with a real SuperLink behind it."""

from __future__ import annotations

import signal
import socket
import ssl
from pathlib import Path

import httpx
import psutil
import pytest
from deployment import HOST, Hospital, provider_process, wait_until
from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest, StartRunRequest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    RegisterNodeFleetRequest,
    UnregisterNodeFleetRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from server.gate import ROUTES

pytestmark = [
    pytest.mark.xdist_group("gate"),
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes by their environment"),
]


@pytest.fixture(scope="module")
def provider(tmp_path_factory):
    with provider_process(tmp_path_factory.mktemp("gate") / "provider") as process:
        process.start()
        yield process


@pytest.fixture(scope="module")
def hospital(provider, tmp_path_factory):
    hospital = Hospital("cleveland")
    done = provider.command("provider", "admit", str(hospital.write_card(tmp_path_factory.mktemp("cards"))))
    assert done.returncode == 0, done.stderr
    return hospital


def client_of(kind, provider, *interceptors, port=None):
    inner = port is not None
    authority = (provider.directory.inner_tls if inner else provider.directory.tls).authority
    address = f"127.0.0.1:{port}" if inner else f"{HOST}:{provider.port}"
    return kind.from_server_address(address, False, authority.read_bytes(), list(interceptors))


def node_of(provider, hospital):
    key = hospital.node_key
    return client_of(FleetHttpClient, provider, NodeAuthHttpInterceptor(key, key.public_key()))


def anybody(provider):
    trusted = ssl.create_default_context(cafile=str(provider.directory.tls.authority))
    return httpx.Client(verify=trusted, trust_env=False, timeout=10)


def inner_port(provider):
    return int((provider.directory.inner_tls.directory / "port").read_text())


def status_of(call, request):
    with pytest.raises(httpx.HTTPStatusError) as refusal:
        call(request)
    return refusal.value.response.status_code, refusal.value.response.content


def raw(provider, head: bytes) -> bytes:
    """Send bytes as they are, and return all that comes back."""
    trusted = ssl.create_default_context(cafile=str(provider.directory.tls.authority))
    with (
        socket.create_connection((HOST, provider.port), timeout=10) as plain,
        trusted.wrap_socket(plain, server_hostname=HOST) as line,
    ):
        line.sendall(head)
        answer = b""
        while part := line.recv(65_536):
            answer += part
        return answer


def test_an_admitted_node_is_served(provider, hospital):
    with node_of(provider, hospital) as node:
        public_key = public_key_to_bytes(hospital.node_key.public_key())
        me = Node(node_id=node.ActivateNode(ActivateNodeRequest(public_key=public_key, heartbeat_interval=30)).node_id)
        assert node.SendNodeHeartbeat(SendNodeHeartbeatRequest(node=me, heartbeat_interval=30)).success
        assert not node.PullMessages(PullMessagesRequest(node=me)).messages_list
        node.DeactivateNode(DeactivateNodeRequest(node_id=me.node_id))


def test_a_stranger_registers_no_node(provider, hospital):
    stranger = Hospital("stranger")
    public_key = public_key_to_bytes(stranger.node_key.public_key())
    with node_of(provider, stranger) as node:
        assert status_of(node.RegisterNode, RegisterNodeFleetRequest(public_key=public_key)) == (404, b"")
        assert status_of(node.UnregisterNode, UnregisterNodeFleetRequest(node_id=1)) == (404, b"")
        request = ActivateNodeRequest(public_key=public_key, heartbeat_interval=30)
        assert status_of(node.ActivateNode, request)[0] >= 400
        assert status_of(node.PullMessages, PullMessagesRequest(node=Node(node_id=1)))[0] == 401


def test_a_stranger_starts_no_run_and_takes_no_task(provider):
    with client_of(ControlHttpClient, provider) as control:
        for call, request in [
            (control.RegisterNode, RegisterNodeRequest(public_key=b"")),
            (control.StartRun, StartRunRequest()),
            (control.ListNodes, ListNodesRequest()),
        ]:
            assert status_of(call, request) == (404, b"")
    with client_of(RuntimeHttpClient, provider) as runtime:
        assert status_of(runtime.AcquireTask, AcquireTaskRequest()) == (404, b"")


def test_the_same_calls_would_succeed_at_the_superlink_itself(provider):
    with client_of(ControlHttpClient, provider, port=inner_port(provider)) as control:
        control.ListNodes(ListNodesRequest())
    with client_of(RuntimeHttpClient, provider, port=inner_port(provider)) as runtime:
        runtime.AcquireTask(AcquireTaskRequest(supported_task_types=["flwr-serverapp"]))


@pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/redoc", "/", "/v1/control/list-runs", "/metrics"])
def test_nothing_is_told_about_what_is_inside(provider, path):
    with anybody(provider) as client:
        answer = client.get(f"https://{HOST}:{provider.port}{path}")

    assert (answer.status_code, answer.content) == (404, b"")
    assert set(answer.headers) == {"content-length", "date"}


@pytest.mark.parametrize(
    "target",
    [
        "/v1/fleet/../control/list-nodes",
        "/v1/fleet/pull-messages/../../control/list-nodes",
        "/v1/fleet/%2e%2e/control/list-nodes",
        "/v1/fleet/..%2fcontrol/list-nodes",
        "/v1/fleet/..%5ccontrol/list-nodes",
        "/v1%2Fcontrol%2Flist-nodes",
        "//v1/control/list-nodes",
        "/./v1/control/list-nodes",
        "/v1/CONTROL/list-nodes",
        "/v1/control/list-nodes?/v1/fleet/pull-messages",
        "/v1/control/list-nodes#/v1/fleet/pull-messages",
        "/v1/control/list-nodes;/v1/fleet/pull-messages",
        "https://127.0.0.1/v1/control/list-nodes",
        "/v1/fleet/pull-messages%00",
    ],
)
def test_no_spelling_of_a_path_leads_to_the_control_routes(provider, target):
    head = f"POST {target} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/protobuf\r\nContent-Length: 0\r\n"

    answer = raw(provider, f"{head}Connection: close\r\n\r\n".encode())

    assert answer.startswith((b"HTTP/1.1 404 ", b"HTTP/1.1 400 ")), answer
    assert answer.endswith(b"\r\n\r\n") or b"HTTP/1.1 400 " in answer  # no body; the parser's own refusals have one


def test_two_requests_in_one_are_not_smuggled(provider):
    inner = b"POST /v1/control/list-nodes HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    both = (
        b"POST /v1/fleet/pull-messages HTTP/1.1\r\nHost: x\r\nContent-Type: application/protobuf\r\n"
        b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n0\r\n\r\n" % (5 + len(inner))
    )

    answer = raw(provider, both + inner)

    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 401 ", b"HTTP/1.1 503 ")), answer
    assert answer.count(b"HTTP/1.1 ") == 1


def test_a_head_without_end_is_not_kept(provider):
    head = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Long: " + b"x" * (128 << 10) + b"\r\n\r\n"

    try:
        answer = raw(provider, head)
    except (ConnectionError, ssl.SSLError):  # closed before all of it was sent
        return
    assert answer.startswith(b"HTTP/1.1 400 "), answer


def test_no_other_protocol_is_spoken(provider):
    head = (
        b"GET /v1/fleet/pull-messages HTTP/1.1\r\nHost: x\r\nConnection: upgrade, close\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )

    assert raw(provider, head).startswith(b"HTTP/1.1 404 ")


def test_bodies_end_at_the_limit_before_the_superlink_sees_them(provider, hospital):
    with node_of(provider, hospital) as node:
        largest = PushObjectRequest(
            node=Node(node_id=1), run_id=1, object_id="0" * 64, object_content=b"x" * (5 << 20), session_id="s" * 64
        )
        assert status_of(node.PushObject, largest)[0] == 401  # the node's id is another: the SuperLink has answered
        larger = PushObjectRequest(node=Node(node_id=1), object_content=b"x" * (6 << 20))
        assert status_of(node.PushObject, larger) == (413, b"")


def test_only_the_gate_listens_and_the_superlink_on_loopback_alone(provider):
    listening = {
        (connection.laddr.ip, connection.laddr.port)
        for process in provider.processes()
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }

    assert listening == {("127.0.0.1", inner_port(provider)), ("127.0.0.1", provider.port)}
    superlink = provider.program("flower-superlink")
    assert {each.laddr for each in superlink.net_connections() if each.status == psutil.CONN_LISTEN} == {
        ("127.0.0.1", inner_port(provider))
    }


def test_the_gate_says_that_a_frozen_superlink_is_not_healthy(provider):
    superlink = provider.program("flower-superlink")
    url = f"https://{HOST}:{provider.port}/health"
    with anybody(provider) as client:
        superlink.send_signal(signal.SIGSTOP)
        try:
            assert client.get(url).status_code == 503
        finally:
            superlink.send_signal(signal.SIGCONT)
        assert wait_until(lambda: client.get(url).status_code == 200)
        assert "date" in client.get(url).headers


def test_an_expelled_node_is_refused(provider, tmp_path):
    hospital = Hospital("zurich")
    assert provider.command("provider", "admit", str(hospital.write_card(tmp_path))).returncode == 0
    public_key = public_key_to_bytes(hospital.node_key.public_key())
    request = ActivateNodeRequest(public_key=public_key, heartbeat_interval=30)
    with node_of(provider, hospital) as node:
        me = Node(node_id=node.ActivateNode(request).node_id)
        assert provider.command("provider", "expel", "zurich").returncode == 0
        assert status_of(node.PullMessages, PullMessagesRequest(node=me))[0] == 401
        assert status_of(node.ActivateNode, request)[0] >= 400

    done = provider.command("provider", "admit", str(hospital.write_card(tmp_path)))
    assert done.returncode == 1
    assert "this node key was expelled" in done.stderr


def test_every_route_of_the_list_exists_at_the_superlink(provider):
    with anybody(provider) as client:
        for route in sorted(ROUTES):
            answer = client.post(
                f"https://{HOST}:{provider.port}{route.decode()}", headers={"content-type": "application/x-protobuf"}
            )
            assert answer.status_code in {401, 415}, (route, answer.content)
