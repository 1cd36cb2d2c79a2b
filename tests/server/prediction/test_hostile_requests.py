"""Requests that nobody would make: generated from the API's own description, and queries with damaged headers.

Every one is signed by an admitted client; strangers do not get this far.
"""

from __future__ import annotations

import asyncio
import contextlib

import pytest
import schemathesis
from hostile import flipped
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prediction_service import Client, Signing, described, query_for, running
from schemathesis.specs.openapi.checks import ignored_auth, positive_data_acceptance

from protocol.prediction.wire import HEADER_BYTES
from server.prediction.problems import MEDIA_TYPE, Cause

CLEVELAND = Client()
EXAMPLES = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), database=None)
EXCLUDED = [
    ignored_auth,  # asks once more, without a signature
    positive_data_acceptance,  # any bytes are a body, and hardly any are a message
]
OPERATIONS = [
    "GET /health", "GET /v1/models", "GET /v1/models/{name}", "PUT /v1/models/{name}", "DELETE /v1/models/{name}",
    "POST /v1/models/{name}/predictions", "GET /v1/keys", "PUT /v1/keys/{key}", "DELETE /v1/keys/{key}",
]  # fmt: skip


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """A service, and what plays coroutines in its loop."""
    with asyncio.Runner() as runner:
        stack = contextlib.AsyncExitStack()
        found = runner.run(stack.enter_async_context(running(tmp_path_factory.mktemp("service"))))
        found.admit(CLEVELAND, requests_per_minute=1_000_000, patients_per_day=1_000_000_000)
        found.publish(described())
        yield found, runner.run
        runner.run(stack.aclose())


@pytest.fixture(scope="module")
def operations(service):
    found, play = service
    schema = schemathesis.openapi.from_dict(play(found.http.get("/openapi.json")).json())
    each = [result.ok() for result in schema.get_all_operations()]
    return {operation.label: operation for operation in each}


def test_every_operation_is_tried(operations):
    assert sorted(operations) == sorted(OPERATIONS)


@pytest.mark.parametrize(
    ("name", "mode"),
    [(name, schemathesis.GenerationMode.POSITIVE) for name in OPERATIONS]
    + [(name, schemathesis.GenerationMode.NEGATIVE) for name in OPERATIONS if "{" in name],  # the others have no input
)
def test_answers_are_as_the_description_says(service, operations, name, mode):
    found, play = service

    @EXAMPLES
    @given(case=operations[name].as_strategy(generation_mode=mode))
    def run(case):
        sent = case.as_transport_kwargs(base_url=str(found.http.base_url))
        request = found.http.build_request(
            sent["method"], sent["url"], content=sent.get("data") or b"", headers=sent["headers"], params=sent["params"]
        )
        Signing(CLEVELAND).sign(request)
        answer = play(found.http.send(request))
        case.validate_response(answer, excluded_checks=EXCLUDED)
        assert answer.status_code < 500
        assert answer.is_success or answer.headers["content-type"] == MEDIA_TYPE

    run()


GOOD = query_for(described(), CLEVELAND.public_key)
damaged_queries = st.one_of(
    st.integers(0, 8 * HEADER_BYTES - 1).map(lambda bit: flipped(GOOD, bit)),
    st.integers(1, len(GOOD)).map(lambda length: GOOD[:length]),
    st.tuples(st.integers(0, HEADER_BYTES), st.binary(max_size=64)).map(
        lambda change: GOOD[: change[0]] + change[1] + GOOD[change[0] + len(change[1]) :]
    ),
    st.binary(min_size=1, max_size=2 * HEADER_BYTES),
)


@settings(EXAMPLES, max_examples=400)
@given(query=damaged_queries)
def test_no_damaged_header_is_the_service_s_own_error(service, query):
    found, play = service

    answer = play(found.predict(CLEVELAND, query))

    if answer.status_code != 200:
        assert answer.json()["type"] in {
            cause.urn for cause in (Cause.REFUSED_BODY, Cause.FOREIGN_KEY, Cause.FOREIGN_MODEL, Cause.OVER_BUDGET)
        }
