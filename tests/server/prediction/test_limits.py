"""Bytes of bodies in memory: whose they may be, and that each is there once."""

from __future__ import annotations

import asyncio
import tracemalloc
from types import SimpleNamespace

import pytest
from starlette.requests import Request

from server.prediction.app import LARGEST_BODY_BYTES
from server.prediction.limits import MOST_BYTES, SMALL_BODY_BYTES, HeldBytes
from server.prediction.problems import ProblemError
from server.prediction.reception import Reception


def test_a_client_holds_a_quarter_and_gets_it_back():
    held = HeldBytes(400)
    held.take("cleveland", 100, body=100)
    with pytest.raises(ProblemError, match="OVER_SHARE"):
        held.take("cleveland", 1, body=101)
    held.take("zurich", 100, body=100)
    held.give_back("cleveland", 100)
    held.take("cleveland", 100, body=100)


def test_models_on_their_way_keep_no_query_out():
    held = HeldBytes()
    for number in range(MOST_BYTES // LARGEST_BODY_BYTES):
        try:
            held.take(f"client-{number}", LARGEST_BODY_BYTES, body=LARGEST_BODY_BYTES)
        except ProblemError:
            break
    assert number == 4
    held.take("zurich", SMALL_BODY_BYTES, body=SMALL_BODY_BYTES)
    with pytest.raises(ProblemError, match="BUSY"):
        held.take("zurich", 1, body=SMALL_BODY_BYTES + 1)


def test_the_largest_body_fits_into_one_client_s_share():
    HeldBytes().take("cleveland", LARGEST_BODY_BYTES, body=LARGEST_BODY_BYTES)


def test_a_body_that_is_whole_is_in_memory_once():
    parts, size = 100, 200_000

    async def receive():
        nonlocal parts
        parts -= 1
        return {"type": "http.request", "body": b"x" * size, "more_body": parts > 0}

    async def held():
        signatures = SimpleNamespace(check_body=lambda signed, body: None)
        request = Request({"type": "http", "method": "PUT", "headers": []}, receive)
        async with Reception(None, signatures)._read(request, None, "cleveland", 100 * size) as body:
            assert len(body) == 100 * size
            return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        assert asyncio.run(held()) < 1.2 * 100 * size
    finally:
        tracemalloc.stop()
