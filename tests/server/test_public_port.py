from __future__ import annotations

import asyncio
import resource

import uvicorn
from starlette.responses import Response

import server.public_port
from server.public_port import OPEN_FILES, Line, allow_open_files


def test_an_end_that_does_not_read_its_answer_is_cut_off(monkeypatch):
    monkeypatch.setattr(server.public_port, "HEAD_SECONDS", 0.2)
    monkeypatch.setattr(server.public_port, "READING_SECONDS", 0.3)

    async def run():
        config = uvicorn.Config(
            Response(bytes(32 << 20)), port=0, http=Line, ws="none", lifespan="off", log_level="critical",
            timeout_keep_alive=1,
        )  # fmt: skip
        config.load()
        served = uvicorn.Server(config)
        served.lifespan = config.lifespan_class(config)
        await served.startup()
        (port,) = [each.getsockname()[1] for each in served.servers[0].sockets]
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await asyncio.sleep(0.1)
        before = len(served.server_state.connections)
        await asyncio.sleep(1.5)
        after = len(served.server_state.connections)
        writer.transport.abort()
        await served.shutdown()
        return before, after

    assert asyncio.run(run()) == (1, 0)


def test_a_low_limit_of_open_files_is_raised_as_far_as_it_goes():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    hard = before[1]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))

        allow_open_files()

        raised, still = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert raised in {hard, OPEN_FILES}
        assert still == hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
