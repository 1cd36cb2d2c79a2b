"""Nonces are remembered for as long as their requests could come again."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest

from protocol.prediction.signed_requests import CLOCK_LEEWAY_SECONDS
from server.prediction.problems import ProblemError
from server.prediction.signatures import Signatures

EXPIRES = 1_000_000


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(time=0.0)
    monkeypatch.setattr("server.prediction.signatures.time.time", lambda: now.time)
    return now


@pytest.mark.parametrize(("later", "is_remembered"), [(0.5, True), (2.0, False)])
def test_a_request_that_was_verified_as_its_time_ended_is_not_taken_twice(clock, later, is_remembered):
    signatures = Signatures(lambda name: None, hosts=frozenset(), started=0.0)
    parameters = {"expires": EXPIRES, "nonce": "ab" * 16}
    signed = SimpleNamespace(client="cleveland", verified=SimpleNamespace(parameters=parameters))
    clock.time = EXPIRES
    signatures.use_once(signed)

    clock.time = EXPIRES + CLOCK_LEEWAY_SECONDS + later  # verified while it was good, and looked for now

    with pytest.raises(ProblemError, match="REPLAYED") if is_remembered else contextlib.nullcontext():
        signatures.use_once(signed)
