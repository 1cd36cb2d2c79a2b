"""What the gate passes on and what ends at it, with an inner server that tells what reached it."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager

import h11
import httpx
import pytest
import uvicorn

import server.public_port
from server.gate import LARGEST_BODY_BYTES, LARGEST_PULL_BYTES, ROUTES, Gate
from server.public_port import Line

PULL = "/v1/fleet/pull-messages"
CHUNK_BYTES = 5 << 20  # Flower's largest piece of an array


class Inner:
    """Stands where the SuperLink stands, and remembers what reached it."""

    def __init__(self, status=200, headers=(), pause=0.0):
        self.calls = []
        self._status = status
        self._headers = [(b"content-type", b"application/octet-stream"), *headers]
        self._pause = pause

    async def __call__(self, scope, receive, send):
        body, more = b"", True
        while more:
            event = await receive()
            body += event.get("body", b"")
            more = event.get("more_body", False)
        self.calls.append((scope["method"], scope["path"], dict(scope["headers"]), body))
        await asyncio.sleep(self._pause)
        await send({"type": "http.response.start", "status": self._status, "headers": self._headers})
        await send({"type": "http.response.body", "body": b"from inside"})


@asynccontextmanager
async def gate_before(inner, **limits):
    superlink = httpx.AsyncClient(transport=httpx.ASGITransport(inner), base_url="https://superlink")
    gate = httpx.ASGITransport(Gate(superlink, **limits))
    async with superlink, httpx.AsyncClient(transport=gate, base_url="https://gate") as client:
        yield client


def ask(inner, method, path, limits=None, **arguments):
    async def run():
        async with gate_before(inner, **(limits or {})) as client:
            return await client.request(method, path, **arguments)

    return asyncio.run(run())


@pytest.mark.parametrize("route", sorted(route.decode() for route in ROUTES))
def test_calls_of_nodes_are_passed_on_with_their_answers(route):
    inner = Inner()

    answer = ask(inner, "POST", route, content=b"call")

    assert (answer.status_code, answer.content) == (200, b"from inside")
    assert [(method, path, body) for method, path, _, body in inner.calls] == [("POST", route, b"call")]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/fleet/register-node"),
        ("POST", "/v1/fleet/unregister-node"),
        ("POST", "/v1/control/start-run"),
        ("POST", "/v1/runtime/acquire-task"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("GET", "/"),
        ("GET", PULL),
        ("PUT", PULL),
        ("OPTIONS", PULL),
        ("POST", "/health"),
        ("HEAD", "/health"),
        ("POST", PULL + "/"),
        ("POST", "/" + PULL),
        ("POST", "/V1/fleet/pull-messages"),
        ("POST", "/v1%2ffleet/pull-messages"),
        ("POST", "/v1/fleet/pull%2dmessages"),
        ("POST", "/v1/fleet/pull-messages?next=/v1/control/start-run"),
        ("POST", "/v1/fleet/pull-messages/..%2f..%2fcontrol/start-run"),
    ],
)
def test_nothing_else_reaches_the_superlink_or_learns_anything(method, path):
    inner = Inner()

    answer = ask(inner, method, path)

    assert (answer.status_code, answer.content) == (404, b"")
    assert inner.calls == []


def test_only_the_headers_of_a_call_travel_on():
    inner = Inner(headers=[(b"server", b"superlink"), (b"flwr-version-incompatibility-message", b"old")])
    sent = {
        "flwr-public-key": "k", "flwr-signature": "s", "flwr-timestamp": "t", "flwr-task-token": "token",
        "x-forwarded-for": "127.0.0.1", "forwarded": "for=127.0.0.1", "x-real-ip": "127.0.0.1", "cookie": "c",
        "authorization": "Bearer b", "upgrade": "websocket", "te": "trailers",
    }  # fmt: skip

    answer = ask(inner, "POST", PULL, headers=sent, content=b"call")

    ((_, _, arrived, _),) = inner.calls
    assert {name for name in arrived if name.decode() in sent} == {
        b"flwr-public-key",
        b"flwr-signature",
        b"flwr-timestamp",
    }
    assert arrived[b"content-length"] == b"4"
    assert set(answer.headers) == {"content-type", "flwr-version-incompatibility-message"}


def test_health_is_that_of_the_superlink():
    assert ask(Inner(), "GET", "/health").status_code == 200
    assert ask(Inner(status=500), "GET", "/health").status_code == 503


def test_a_superlink_that_is_down_is_reported_as_flower_s_nodes_retry_it():
    async def run():
        superlink = httpx.AsyncClient(base_url="https://127.0.0.1:9", trust_env=False)
        gate = httpx.ASGITransport(Gate(superlink))
        async with superlink, httpx.AsyncClient(transport=gate, base_url="https://gate") as client:
            return [(await client.post(PULL)).status_code, (await client.get("/health")).status_code]

    assert asyncio.run(run()) == [503, 503]


def test_the_largest_piece_of_an_array_passes_and_more_does_not():
    inner = Inner()
    assert ask(inner, "POST", "/v1/fleet/push-object", content=b"x" * (CHUNK_BYTES + 4096)).status_code == 200
    assert ask(inner, "POST", "/v1/fleet/push-object", content=b"x" * (LARGEST_BODY_BYTES + 1)).status_code == 413
    assert len(inner.calls) == 1


@pytest.mark.parametrize("is_announced", [True, False])
def test_a_call_for_messages_is_short_as_it_is_kept_until_there_is_one(is_announced):
    async def body():
        yield b"x" * (LARGEST_PULL_BYTES + 1)

    inner = Inner()

    answer = ask(inner, "POST", PULL, content=b"x" * (LARGEST_PULL_BYTES + 1) if is_announced else body())

    assert answer.status_code == 413
    assert inner.calls == []


def test_a_body_of_unannounced_length_ends_at_the_limit():
    inner = Inner()
    taken = []

    async def endless():
        while True:
            taken.append(1)
            yield b"x" * 1000

    answer = ask(inner, "POST", PULL, {"largest_body_bytes": 10_000}, content=endless())

    assert (answer.status_code, answer.content) == (413, b"")
    assert len(taken) <= 12
    assert inner.calls == []


def test_a_body_that_trickles_ends_at_the_time_limit():
    async def trickle():
        while True:
            await asyncio.sleep(0.05)
            yield b"x"

    assert ask(Inner(), "POST", PULL, {"request_seconds": 0.3}, content=trickle()).status_code == 504


def test_an_answer_that_does_not_come_ends_at_the_time_limit():
    assert ask(Inner(pause=30), "POST", PULL, {"request_seconds": 0.2}).status_code == 504


def test_a_redirection_is_not_handed_to_nodes_which_would_follow_it():
    inner = Inner(status=307, headers=[(b"location", b"https://elsewhere.example/")])

    answer = ask(inner, "POST", PULL)

    assert (answer.status_code, answer.content, "location" in answer.headers) == (404, b"", False)


def test_a_refusal_of_the_superlink_comes_with_its_text():
    answer = ask(Inner(status=401), "POST", PULL)

    assert (answer.status_code, answer.content) == (401, b"from inside")


def test_the_list_is_that_of_flower_s_nodes():
    from flwr.superlink.routers.fleet.router import router  # noqa: PLC0415 - loads the whole SuperLink

    calls = {route.path.encode() for route in router.routes}

    assert calls - ROUTES == {b"/v1/fleet/register-node", b"/v1/fleet/unregister-node"}
    assert calls >= ROUTES


class Messages(Inner):
    """Has no message at first, as the SuperLink says it: by an answer without content."""

    def __init__(self, empty, **arguments):
        super().__init__(**arguments)
        self._empty = empty

    async def __call__(self, scope, receive, send):
        async def send_nothing(event):
            await send(
                {**event, "body": b""} if event["type"].endswith("body") and len(self.calls) <= self._empty else event
            )

        await super().__call__(scope, receive, send_nothing)


def test_a_node_is_answered_as_soon_as_there_is_a_message():
    inner = Messages(empty=3)
    started = time.monotonic()

    answer = ask(inner, "POST", PULL, content=b"call", headers={"flwr-signature": "node's"})

    assert (answer.status_code, answer.content) == (200, b"from inside")
    assert [(body, headers[b"flwr-signature"]) for _, _, headers, body in inner.calls] == [(b"call", b"node's")] * 4
    assert time.monotonic() - started < 3


def test_a_node_for_which_nothing_comes_is_told_so_after_a_while():
    inner = Messages(empty=1000)

    answer = ask(inner, "POST", PULL, {"pull_seconds": 0.5}, content=b"call")

    assert (answer.status_code, answer.content) == (200, b"")
    assert 2 <= len(inner.calls) <= 6


@pytest.mark.parametrize("status", [401, 403, 500, 503])
def test_a_refused_pull_is_refused_at_once(status):
    inner = Messages(empty=1000, status=status)

    assert ask(inner, "POST", PULL, content=b"call").status_code == status
    assert len(inner.calls) == 1


def test_other_calls_are_passed_on_once_whatever_the_answer():
    inner = Messages(empty=1000)

    assert ask(inner, "POST", "/v1/fleet/get-run", content=b"call").content == b""
    assert len(inner.calls) == 1


def test_no_message_is_asked_for_in_the_place_of_a_node_that_has_gone():
    inner, sent = Messages(empty=1000), []

    async def run():
        events = [{"type": "http.request", "body": b"call"}]

        async def receive():
            if events:
                return events.pop()
            if len(inner.calls) < 2:
                await asyncio.sleep(60)
            return {"type": "http.disconnect"}

        async def send(event):
            sent.append(event)

        scope = {
            "type": "http", "method": "POST", "path": PULL, "raw_path": PULL.encode(), "query_string": b"",
            "headers": [], "http_version": "1.1", "scheme": "https", "server": ("gate", 443),
        }  # fmt: skip
        async with httpx.AsyncClient(transport=httpx.ASGITransport(inner), base_url="https://superlink") as superlink:
            await Gate(superlink)(scope, receive, send)

    asyncio.run(run())

    assert len(inner.calls) == 2
    assert sent[0]["status"] == 503


@asynccontextmanager
async def connection_to_gate(transport=None):
    """A connection on which nothing has been said yet, to a gate that listens."""
    transport = transport or httpx.ASGITransport(Inner())
    superlink = httpx.AsyncClient(transport=transport, base_url="https://superlink")
    config = uvicorn.Config(Gate(superlink), port=0, http=Line, ws="none", lifespan="off", log_level="critical")
    config.load()
    gate = uvicorn.Server(config)
    gate.lifespan = config.lifespan_class(config)
    async with superlink:
        await gate.startup()
        (port,) = [each.getsockname()[1] for each in gate.servers[0].sockets]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            yield reader, writer
        finally:
            writer.close()
            await gate.shutdown()


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"GET /health HTTP/1.1\r\nHost: g",
        b"GET /health HTTP/1.1\r\nHost: g\r\n\r\nGET /health HTTP/1.1\r\n",
    ],
    ids=["nothing", "half a head", "a call and half a head"],
)
def test_a_connection_on_which_no_call_comes_is_closed(monkeypatch, said):
    monkeypatch.setattr(server.public_port, "HEAD_SECONDS", 0.3)

    async def run():
        async with connection_to_gate() as (reader, writer):
            writer.write(said)
            async with asyncio.timeout(5):
                return await reader.read()

    assert asyncio.run(run()).count(b"HTTP/1.1 200") == said.count(b"\r\n\r\n")


def said_to_gate(data, transport):
    """Say something to a gate that listens, and return all that it answers until it closes."""

    async def run():
        async with connection_to_gate(transport) as (reader, writer):
            writer.write(data)
            async with asyncio.timeout(5):
                return await reader.read()

    return asyncio.run(run())


@pytest.mark.parametrize("path", [PULL, "/v1/fleet/push-object"])
@pytest.mark.parametrize("length", [2, 3, 40])
def test_a_call_that_tells_its_end_twice_is_refused_and_its_connection_closed(path, length):
    inner = Inner()
    head = f"POST {path} HTTP/1.1\r\nHost: g\r\nContent-Length: {length}\r\nTransfer-Encoding: chunked\r\n\r\n"

    answer = said_to_gate(head.encode() + b"3\r\nabc\r\n0\r\n\r\n", httpx.ASGITransport(inner))

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1") == 1
    assert inner.calls == []


def test_what_cannot_be_sent_on_is_refused_without_a_word_in_the_log(caplog):
    def send(request):
        raise h11.LocalProtocolError("Too much data for declared Content-Length")

    head = b"POST /v1/fleet/push-object HTTP/1.1\r\nHost: g\r\nConnection: close\r\nContent-Length: 4\r\n\r\n"

    answer = said_to_gate(head + b"call", httpx.MockTransport(send))

    assert answer.startswith(b"HTTP/1.1 503 ")
    assert caplog.text == ""


def test_a_call_that_goes_on_is_not_closed(monkeypatch):
    monkeypatch.setattr(server.public_port, "HEAD_SECONDS", 0.2)

    async def run():
        async with connection_to_gate() as (reader, writer):
            head = f"POST {PULL} HTTP/1.1\r\nHost: g\r\nConnection: close\r\nContent-Length: 4\r\n\r\n"
            writer.write(head.encode() + b"ca")
            await asyncio.sleep(1)
            writer.write(b"ll")
            async with asyncio.timeout(5):
                return await reader.read()

    assert b"from inside" in asyncio.run(run())
