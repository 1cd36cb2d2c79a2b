"""What the prediction service answers, to good requests and bad ones; without a network, with real workers."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import time

import httpx
import pytest
from prediction_service import (
    BASE,
    Client,
    Signing,
    described,
    public_key_of,
    publication_of,
    query_for,
    running,
)
from pretended_evaluation import CANARY, DIE, FAIL, REFUSE, SLEEP, TELL, answer_to

from protocol.prediction.messages import key_id, largest_query_bytes
from protocol.prediction.publication import Publication
from protocol.prediction.signed_requests import ANSWER_SECONDS, BINARY
from server.prediction.app import LARGEST_KEY_BYTES
from server.prediction.files import write_directory
from server.prediction.limits import HeldBytes
from server.prediction.problems import MEDIA_TYPE, Cause
from server.prediction.turns import QUEUE_SECONDS
from server.prediction.workers import GRACE_SECONDS, TASK_SECONDS

CLEVELAND, ZURICH = Client(), Client(name="zurich")
PREDICTIONS = "/v1/models/plain/predictions"


def play(path, scenario, **arguments):
    """Run a scenario with a service that has one client and one plain model."""

    async def run():
        async with running(path, **arguments) as service:
            if not service.parts.registry.clients():
                service.admit(CLEVELAND)
                service.publish(described())
            return await scenario(service)

    return asyncio.run(run())


def is_refused(answer, cause):
    assert answer.status_code == cause.status, answer.text
    assert answer.headers["content-type"] == MEDIA_TYPE
    assert answer.json() == {"type": cause.urn, "title": cause.title, "status": cause.status}
    return True


def query(**arguments):
    return query_for(described(), CLEVELAND.public_key, **arguments)


def test_a_query_is_answered_by_a_worker(tmp_path):
    async def scenario(service):
        asked = query()
        return asked, await service.predict(CLEVELAND, asked)

    asked, answer = play(tmp_path, scenario)

    assert (answer.status_code, answer.headers["content-type"]) == (200, BINARY)
    assert answer.content == answer_to("plain", CLEVELAND.public_key, asked)


def test_concurrent_answers_are_not_mixed_up(tmp_path):
    async def scenario(service):
        service.admit(ZURICH)
        asked = [(client, query_for(described(), client.public_key)) for client in (CLEVELAND, ZURICH) * 40]
        return asked, await asyncio.gather(*(service.predict(*each) for each in asked))

    asked, answers = play(tmp_path, scenario, workers=2)

    expected = [answer_to("plain", client.public_key, each) for client, each in asked]
    assert [answer.content for answer in answers] == expected


@pytest.mark.parametrize(
    ("signing", "cause"),
    [
        ({"age": 70}, Cause.OUTSIDE_WINDOW),
        ({"age": 30, "lifetime": 10}, Cause.OUTSIDE_WINDOW),
        ({"age": -30}, Cause.OUTSIDE_WINDOW),
        ({"lifetime": 61}, Cause.OUTSIDE_WINDOW),
        ({"lifetime": 0}, Cause.OUTSIDE_WINDOW),
        ({"nonce": "short"}, Cause.BAD_SIGNATURE),
        ({"tag": "something-else"}, Cause.BAD_SIGNATURE),
        ({"tag": None}, Cause.BAD_SIGNATURE),
        ({"leave_out": ("@method",)}, Cause.BAD_SIGNATURE),
        ({"leave_out": ("@target-uri",)}, Cause.BAD_SIGNATURE),
        ({"leave_out": ("content-type",)}, Cause.BAD_SIGNATURE),
        ({"leave_out": ("content-digest",)}, Cause.BAD_SIGNATURE),
    ],
    ids=str,
)
def test_a_signature_that_is_not_good_for_this_now_is_refused(tmp_path, signing, cause):
    async def scenario(service):
        return await service.predict(CLEVELAND, query(), signing=signing)

    assert is_refused(play(tmp_path, scenario), cause)


def test_clocks_may_differ_by_the_leeway(tmp_path):
    async def scenario(service):
        return [await service.ask(CLEVELAND, "GET", "/v1/models", signing={"age": age}) for age in (-3, 57)]

    assert [answer.status_code for answer in play(tmp_path, scenario)] == [200, 200]


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/models"), ("GET", "/v1/keys"), ("GET", "/v1/models/plain"), ("POST", PREDICTIONS)],
)
def test_an_unsigned_request_is_refused(tmp_path, method, path):
    async def scenario(service):
        return await service.http.request(method, path)

    answer = play(tmp_path, scenario)
    assert is_refused(answer, Cause.UNSIGNED)
    assert answer.headers["www-authenticate"] == "Signature"


@pytest.mark.parametrize(
    "stranger", [Client(secret="another"), Client(name="nobody"), Client(name="../cleveland"), Client(name="")], ids=str
)
def test_whoever_is_not_admitted_is_refused_in_the_same_words(tmp_path, stranger):
    async def scenario(service):
        request = service.http.build_request("GET", "/v1/models")
        signing = Signing(Client(name="x"))
        signing._client = type("Stranger", (), {"name": stranger.name, "signing_key": ZURICH.signing_key})
        signing.sign(request)
        return await service.http.send(request)

    assert is_refused(play(tmp_path, scenario), Cause.BAD_SIGNATURE)


def altered(service, change):
    request = service.http.build_request("POST", PREDICTIONS, content=query(), headers={"content-type": BINARY})
    Signing(CLEVELAND).sign(request)
    return service.http.send(change(service, request))


def with_body(service, request):
    headers = {**request.headers, "content-length": "200"}
    return service.http.build_request(request.method, request.url, content=query()[:200], headers=headers)


def with_path(service, request):
    return service.http.build_request(
        request.method, "/v1/models/other/predictions", content=request.content, headers=request.headers
    )


def with_query(service, request):
    return service.http.build_request(
        request.method, PREDICTIONS + "?a=b", content=request.content, headers=request.headers
    )


def with_method(service, request):
    return service.http.build_request("PUT", request.url, content=request.content, headers=request.headers)


def with_host(service, request):
    headers = {**request.headers, "host": "elsewhere.example"}
    return service.http.build_request(request.method, request.url, content=request.content, headers=headers)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (with_body, Cause.ANOTHER_BODY),
        (with_path, Cause.BAD_SIGNATURE),
        (with_query, Cause.BAD_SIGNATURE),
        (with_method, Cause.METHOD),
        (with_host, Cause.MISDIRECTED),
    ],
)
def test_a_request_that_was_altered_on_the_way_is_refused(tmp_path, change, cause):
    assert is_refused(play(tmp_path, lambda service: altered(service, change)), cause)


def test_a_request_is_taken_once(tmp_path):
    async def scenario(service):
        request = service.http.build_request("GET", "/v1/models")
        Signing(CLEVELAND).sign(request)
        return [await service.http.send(request) for _ in range(2)]

    first, second = play(tmp_path, scenario)
    assert first.status_code == 200
    assert is_refused(second, Cause.REPLAYED)


def test_a_request_is_not_taken_again_after_a_restart(tmp_path):
    taken = []

    async def before(service):
        request = service.http.build_request("GET", "/v1/models")
        Signing(CLEVELAND, age=-4).sign(request)  # by a clock that is ahead, which the leeway allows
        taken.append(request)
        return await service.http.send(request)

    async def after(service):
        return await service.http.send(taken[0])

    assert play(tmp_path, before).status_code == 200
    assert is_refused(play(tmp_path, after, started=time.time()), Cause.OUTSIDE_WINDOW)


def test_a_client_is_expelled_at_once(tmp_path):
    async def scenario(service):
        before = await service.ask(CLEVELAND, "GET", "/v1/models")
        service.parts.registry.expel("cleveland")
        return before, await service.ask(CLEVELAND, "GET", "/v1/models")

    before, after = play(tmp_path, scenario)
    assert before.status_code == 200
    assert is_refused(after, Cause.BAD_SIGNATURE)


@pytest.mark.parametrize(
    "name", ["other", "..", "%2e%2e", "..%2f..%2fclients", "Plain", "plain%00", ".new-1", "a" * 64, "plain%0a"]
)
def test_only_names_of_models_lead_to_one(tmp_path, name):
    async def scenario(service):
        return [
            await service.ask(CLEVELAND, "GET", f"/v1/models/{name}"),
            await service.ask(CLEVELAND, "POST", f"/v1/models/{name}/predictions", content=query()),
            await service.ask(CLEVELAND, "DELETE", f"/v1/models/{name}"),
        ]

    for answer in play(tmp_path, scenario):
        assert answer.status_code in (404, 405, 422), answer.text
        assert answer.headers["content-type"] == MEDIA_TYPE


@pytest.mark.parametrize("key", ["..%2fcard", "ab", "AB" * 32, "%2e%2e", "ab" * 33])
def test_only_ids_of_keys_lead_to_one(tmp_path, key):
    async def scenario(service):
        return [
            await service.ask(CLEVELAND, "DELETE", f"/v1/keys/{key}"),
            await service.ask(CLEVELAND, "PUT", f"/v1/keys/{key}", content=CLEVELAND.public_key),
        ]

    for answer in play(tmp_path, scenario):
        assert answer.status_code in (404, 405, 422), answer.text


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (query_for(described(), ZURICH.public_key), Cause.FOREIGN_KEY),
        (query_for(described("another"), CLEVELAND.public_key), Cause.FOREIGN_MODEL),
        (query_for(described(), CLEVELAND.public_key, patients=0), Cause.REFUSED_BODY),
        (query_for(described(), CLEVELAND.public_key, patients=4097), Cause.REFUSED_BODY),
        (query()[:50], Cause.REFUSED_BODY),
        (b"x" * 300, Cause.REFUSED_BODY),
        (query(end=REFUSE), Cause.REFUSED_BODY),
        (query(end=FAIL), Cause.INTERNAL),
        (query(end=DIE), Cause.WORKER_LOST),
    ],
    ids=["foreign key", "foreign model", "nobody", "too many", "cut", "garbage", "refused", "failed", "killed"],
)  # fmt: skip
def test_a_query_that_cannot_be_answered_is_refused_and_the_next_one_is_answered(tmp_path, content, cause):
    async def scenario(service):
        service.admit(ZURICH)
        return await service.predict(CLEVELAND, content), await service.predict(CLEVELAND, query())

    refused, good = play(tmp_path, scenario)
    assert is_refused(refused, cause)
    assert good.status_code == 200


def test_what_takes_too_long_is_ended_and_holds_up_nobody(tmp_path):
    async def scenario(service):
        await service.parts.workers.warm_up()
        slow = asyncio.create_task(service.predict(CLEVELAND, query(end=SLEEP)))
        await asyncio.sleep(0.3)
        started = time.monotonic()
        meanwhile = [await service.predict(CLEVELAND, query()) for _ in range(3)]
        quick = time.monotonic() - started
        return meanwhile, quick, await slow

    meanwhile, quick, slow = play(tmp_path, scenario, workers=2, task_seconds=2.0)
    assert is_refused(slow, Cause.OVER_TIME)
    assert [answer.status_code for answer in meanwhile] == [200] * 3
    assert quick < 1.5


def test_an_idle_worker_that_was_killed_costs_no_request(tmp_path):
    async def scenario(service):
        process = int((await service.predict(CLEVELAND, query(end=TELL))).content)
        os.kill(process, signal.SIGKILL)
        await asyncio.sleep(0.5)
        return await service.predict(CLEVELAND, query())

    assert play(tmp_path, scenario).status_code == 200


def test_what_waits_too_long_a_queue_is_refused(tmp_path):
    async def scenario(service):
        answers = await asyncio.gather(*(service.predict(CLEVELAND, query()) for _ in range(6)))
        assert service.parts.usage.today("cleveland") == 3 * 3  # nobody pays for being refused
        return answers

    answers = play(tmp_path, scenario, most_waiting=8)  # a quarter of them for one client
    refused = [answer for answer in answers if answer.status_code != 200]
    assert len(refused) == 3  # one is worked on, two wait
    for answer in refused:
        assert is_refused(answer, Cause.OVER_SHARE)
        assert int(answer.headers["retry-after"]) >= 1


def test_one_client_s_many_tasks_do_not_hold_up_another_s_one(tmp_path):
    order = []

    async def asked_by(service, client):
        answer = await service.predict(client, query_for(described(), client.public_key))
        order.append(client.name)
        return answer.status_code

    async def scenario(service):
        service.admit(ZURICH)
        await service.parts.workers.warm_up()
        many = [asyncio.create_task(asked_by(service, CLEVELAND)) for _ in range(20)]
        await asyncio.sleep(0)
        while not service.parts.workers.waiting:
            await asyncio.sleep(0.001)
        return [await asked_by(service, ZURICH), *await asyncio.gather(*many)]

    assert play(tmp_path, scenario, most_waiting=80) == [200] * 21
    assert order.index("zurich") < 10


def test_who_waits_too_long_for_a_worker_is_refused_and_not_charged(tmp_path):
    async def scenario(service):
        service.admit(ZURICH)
        slow = asyncio.create_task(service.predict(CLEVELAND, query(end=SLEEP)))
        await asyncio.sleep(0.1)
        refused = await service.predict(ZURICH, query_for(described(), ZURICH.public_key))
        left = service.parts.workers.waiting
        await slow
        return refused, left, service.parts.usage.today("zurich")

    refused, left, charged = play(tmp_path, scenario, task_seconds=2.0, queue_seconds=0.3)
    assert is_refused(refused, Cause.BUSY)
    assert (left, charged) == (0, 0)


def test_what_waits_and_is_worked_on_is_answered_before_a_client_gives_up():
    assert QUEUE_SECONDS + TASK_SECONDS + GRACE_SECONDS < ANSWER_SECONDS


def test_a_query_that_comes_again_is_answered_and_not_charged_again(tmp_path):
    asked = query(patients=3)

    async def scenario(service):
        service.admit(CLEVELAND, with_key=False, patients_per_day=4)
        answers = [await service.predict(CLEVELAND, asked) for _ in range(6)]
        return answers, service.parts.usage.today("cleveland"), service.served()

    answers, charged, served = play(tmp_path, scenario)
    assert [answer.status_code for answer in answers[:5]] == [200] * 5
    assert is_refused(answers[5], Cause.OVER_BUDGET)
    assert charged == 3
    assert [json.loads(line)["patients"] for line in served.splitlines()] == [3, 0, 0, 0, 0, 0]


def test_who_holds_many_unfinished_bodies_keeps_nobody_else_out(tmp_path):
    async def scenario(service):
        service.admit(ZURICH)
        service.parts.reception._held = HeldBytes(4 * 700)
        end = asyncio.Event()

        async def unfinished(content):
            yield content[:-1]
            await end.wait()
            yield content[-1:]

        async def slowly(content):
            request = service.http.build_request("POST", PREDICTIONS, content=content, headers={"content-type": BINARY})
            Signing(CLEVELAND).sign(request)
            return await service.http.request("POST", PREDICTIONS, content=unfinished(content), headers=request.headers)

        stalled = [asyncio.create_task(slowly(query())) for _ in range(2)]
        await asyncio.sleep(0.1)
        own = await service.predict(CLEVELAND, query())
        other = await service.predict(ZURICH, query_for(described(), ZURICH.public_key))
        end.set()
        finished = await asyncio.gather(*stalled)
        return own, other, [*finished, await service.predict(CLEVELAND, query())]

    own, other, after = play(tmp_path, scenario)
    assert is_refused(own, Cause.OVER_SHARE)
    assert other.status_code == 200
    assert [answer.status_code for answer in after] == [200] * 3


def test_patients_are_charged_before_the_work_and_a_restart_forgets_none(tmp_path):
    async def before(service):
        service.admit(CLEVELAND, with_key=False, patients_per_day=10)
        return [
            await service.predict(CLEVELAND, query(patients=4)),
            await service.predict(CLEVELAND, query(patients=4, end=REFUSE)),
        ]

    async def after(service):
        return [await service.predict(CLEVELAND, query(patients=count)) for count in (3, 2, 1)]

    assert [answer.status_code for answer in play(tmp_path, before)] == [200, 400]
    over, last, none_left = play(tmp_path, after)
    assert last.status_code == 200
    for answer in (over, none_left):
        assert is_refused(answer, Cause.OVER_BUDGET)
        assert 0 < int(answer.headers["retry-after"]) <= 86_400 + 1


def test_too_many_requests_are_refused_for_a_while_and_for_this_client_only(tmp_path):
    async def scenario(service):
        service.admit(CLEVELAND, with_key=False, requests_per_minute=3)
        service.admit(ZURICH)
        answers = [await service.ask(CLEVELAND, "GET", "/v1/models") for _ in range(4)]
        return answers, await service.ask(ZURICH, "GET", "/v1/models")

    answers, other = play(tmp_path, scenario)
    assert [answer.status_code for answer in answers[:3]] == [200] * 3
    assert is_refused(answers[3], Cause.OVER_RATE)
    assert 1 <= int(answers[3].headers["retry-after"]) <= 61
    assert other.status_code == 200


@pytest.mark.parametrize("is_announced", [True, False])
def test_a_body_that_is_too_large_is_refused_before_it_is_read(tmp_path, is_announced):
    largest, taken = largest_query_bytes(described()), []

    async def scenario(service):
        request = service.http.build_request(
            "POST", PREDICTIONS, content=b"x" * (largest + 1), headers={"content-type": BINARY}
        )
        Signing(CLEVELAND).sign(request)

        async def endless():
            while True:
                taken.append(1)
                yield b"x" * 10_000

        headers = dict(request.headers)
        if not is_announced:
            del headers["content-length"]
            headers["transfer-encoding"] = "chunked"
        return await service.http.request("POST", PREDICTIONS, content=endless(), headers=headers)

    assert is_refused(play(tmp_path, scenario), Cause.TOO_LARGE)
    assert len(taken) <= (1 if is_announced else largest // 10_000 + 2)


def test_a_request_without_a_body_must_not_bring_one(tmp_path):
    async def scenario(service):
        return await service.ask(CLEVELAND, "GET", "/v1/models", content=b"x")

    assert is_refused(play(tmp_path, scenario), Cause.TOO_LARGE)


def test_a_body_that_trickles_ends_at_the_time_limit(tmp_path):
    async def scenario(service):
        service.parts.reception._body_seconds = 0.3
        request = service.http.build_request("POST", PREDICTIONS, content=query(), headers={"content-type": BINARY})
        Signing(CLEVELAND).sign(request)

        async def trickle():
            while True:
                await asyncio.sleep(0.05)
                yield b"x"

        return await service.http.request("POST", PREDICTIONS, content=trickle(), headers=request.headers)

    assert is_refused(play(tmp_path, scenario), Cause.SLOW)


def test_a_body_that_comes_at_the_least_rate_may_take_longer(tmp_path, monkeypatch):
    monkeypatch.setattr("server.prediction.reception.LEAST_BYTES_PER_SECOND", 100)

    async def scenario(service):
        service.parts.reception._body_seconds = 0.3
        content = query()
        request = service.http.build_request("POST", PREDICTIONS, content=content, headers={"content-type": BINARY})
        Signing(CLEVELAND).sign(request)

        async def in_parts():
            for start in range(0, len(content), 50):
                await asyncio.sleep(0.1)
                yield content[start : start + 50]

        return await service.http.request("POST", PREDICTIONS, content=in_parts(), headers=request.headers)

    assert play(tmp_path, scenario).status_code == 200


@pytest.mark.parametrize("kind", ["application/json", "text/plain", f"{BINARY}; charset=utf-8"])
def test_another_content_type_is_refused(tmp_path, kind):
    async def scenario(service):
        request = service.http.build_request("POST", PREDICTIONS, content=query(), headers={"content-type": kind})
        Signing(CLEVELAND).sign(request)
        return await service.http.send(request)

    assert is_refused(play(tmp_path, scenario), Cause.CONTENT_TYPE)


def test_what_is_not_there_is_said_in_the_same_form(tmp_path):
    async def scenario(service):
        return [
            await service.http.get("/v2"),
            await service.http.get("/docs"),
            await service.http.get("/metrics"),
            await service.http.post("/health"),
            await service.http.request("TRACE", "/v1/models"),
        ]

    *nothing, posted, traced = play(tmp_path, scenario)
    assert all(is_refused(answer, Cause.NOT_FOUND) for answer in nothing)
    assert is_refused(posted, Cause.METHOD)
    assert posted.headers["allow"] == "GET"
    assert is_refused(traced, Cause.METHOD)


def test_keys_are_registered_listed_and_deleted(tmp_path):
    async def scenario(service):
        ids = []
        for number in range(1, 5):
            key = public_key_of("cleveland", number)
            ids.append(key_id(key).hex())
            answer = await service.ask(CLEVELAND, "PUT", f"/v1/keys/{ids[-1]}", content=key)
            if number < 4:
                assert answer.status_code == 204
        again = await service.ask(CLEVELAND, "PUT", f"/v1/keys/{ids[0]}", content=public_key_of("cleveland", 1))
        listed = await service.ask(CLEVELAND, "GET", "/v1/keys")
        deleted = [await service.ask(CLEVELAND, "DELETE", f"/v1/keys/{ids[0]}") for _ in range(2)]
        return answer, again, ids, listed, deleted

    too_many, again, ids, listed, (deleted, gone) = play(tmp_path, scenario)
    assert is_refused(too_many, Cause.TOO_MANY_KEYS)
    assert again.status_code == 204
    assert listed.json() == {"keys": sorted([key_id(CLEVELAND.public_key).hex(), *ids[:3]])}
    assert deleted.status_code == 204
    assert is_refused(gone, Cause.UNKNOWN_KEY)


@pytest.mark.parametrize(
    ("key", "named", "cause"),
    [
        (public_key_of("a"), public_key_of("b"), Cause.ANOTHER_KEY),
        (public_key_of("a", end=REFUSE), None, Cause.REFUSED_BODY),
        (b"no key", None, Cause.REFUSED_BODY),
        (public_key_of("a").replace(b"CWK1\x01", b"CWK1\x09"), None, Cause.REFUSED_BODY),
        (b"x" * (LARGEST_KEY_BYTES + 1), None, Cause.TOO_LARGE),
    ],
    ids=["another", "refused", "garbage", "unknown parameters", "too large"],
)
def test_what_is_no_public_key_is_not_registered(tmp_path, key, named, cause):
    async def scenario(service):
        address = f"/v1/keys/{key_id(named or key).hex()}"
        answer = await service.ask(CLEVELAND, "PUT", address, content=key)
        return answer, service.parts.registry.keys("cleveland")

    answer, keys = play(tmp_path, scenario)
    assert is_refused(answer, cause)
    assert keys == [key_id(CLEVELAND.public_key).hex()]


def test_an_encrypted_model_is_for_its_owner_and_those_allowed(tmp_path):
    device, owner_key = Client(name="device"), ZURICH.public_key
    publication = publication_of(ZURICH, allowed=("device",))
    asked = query_for(publication.description, owner_key)

    async def scenario(service):
        service.admit(ZURICH)
        service.admit(device, with_key=False)
        published = await service.ask(ZURICH, "PUT", "/v1/models/own", content=publication.to_bytes())
        answers = [await service.predict(client, asked, "own") for client in (ZURICH, device, CLEVELAND)]
        under_another = await service.predict(ZURICH, query_for(publication.description, CLEVELAND.public_key), "own")
        listed = [await service.ask(client, "GET", "/v1/models") for client in (device, CLEVELAND)]
        deleted = [await service.ask(client, "DELETE", "/v1/models/own") for client in (CLEVELAND, device)]
        in_use = await service.ask(ZURICH, "DELETE", f"/v1/keys/{key_id(owner_key).hex()}")
        gone = await service.ask(ZURICH, "DELETE", "/v1/models/own")
        after = await service.predict(ZURICH, asked, "own")
        return published, answers, under_another, listed, deleted, in_use, gone, after

    published, answers, under_another, listed, deleted, in_use, gone, after = play(tmp_path, scenario)
    assert published.status_code == 201
    assert [answer.content for answer in answers[:2]] == [answer_to("own", owner_key, asked)] * 2
    assert is_refused(answers[2], Cause.UNKNOWN_MODEL)
    assert is_refused(under_another, Cause.FOREIGN_KEY)
    assert [[model["name"] for model in answer.json()["models"]] for answer in listed] == [["own", "plain"], ["plain"]]
    assert is_refused(deleted[0], Cause.UNKNOWN_MODEL)
    assert is_refused(deleted[1], Cause.NOT_OWNER)
    assert is_refused(in_use, Cause.KEY_IN_USE)
    assert gone.status_code == 204
    assert is_refused(after, Cause.UNKNOWN_MODEL)


@pytest.mark.parametrize(
    ("publication", "name", "cause"),
    [
        (publication_of(ZURICH), "own", Cause.REFUSED_BODY),
        (publication_of(CLEVELAND), "other", Cause.REFUSED_BODY),
        (publication_of(CLEVELAND, "plain"), "plain", Cause.NAME_TAKEN),
        (publication_of(CLEVELAND, end=REFUSE), "own", Cause.REFUSED_BODY),
        (publication_of(CLEVELAND, end=DIE), "own", Cause.WORKER_LOST),
    ],
    ids=["another's", "another name", "taken", "refused", "killed"],
)
def test_what_is_no_model_of_the_client_s_is_not_published(tmp_path, publication, name, cause):
    async def scenario(service):
        answer = await service.ask(CLEVELAND, "PUT", f"/v1/models/{name}", content=publication.to_bytes())
        return answer, service.parts.store.names()

    answer, names = play(tmp_path, scenario)
    assert is_refused(answer, cause)
    assert names == ["plain"]


def test_a_model_under_a_key_that_is_not_registered_is_not_published(tmp_path):
    async def scenario(service):
        service.parts.registry.delete_key("cleveland", key_id(CLEVELAND.public_key).hex())
        return await service.ask(CLEVELAND, "PUT", "/v1/models/own", content=publication_of(CLEVELAND).to_bytes())

    assert is_refused(play(tmp_path, scenario), Cause.FOREIGN_KEY)


def test_a_publication_is_read_in_a_worker_where_it_holds_up_nobody(tmp_path, monkeypatch):
    publication = publication_of(CLEVELAND).to_bytes()

    def read_here(data):
        raise AssertionError

    async def scenario(service):
        monkeypatch.setattr(Publication, "from_bytes", read_here)
        return await service.ask(CLEVELAND, "PUT", "/v1/models/own", content=publication)

    assert play(tmp_path, scenario).status_code == 201


@pytest.mark.parametrize("comes_back", [False, True])
def test_who_is_expelled_while_its_model_is_written_leaves_none(tmp_path, monkeypatch, comes_back):
    write, another = write_directory, Client(secret="another person, the same name")

    async def scenario(service):
        def expelled_meanwhile(path, files, **rest):
            if path.name == "own":
                service.parts.registry.expel("cleveland")
            write(path, files, **rest)
            if path.name == "own" and comes_back:
                service.admit(another)

        monkeypatch.setattr("server.prediction.model_store.write_directory", expelled_meanwhile)
        answer = await service.ask(CLEVELAND, "PUT", "/v1/models/own", content=publication_of(CLEVELAND).to_bytes())
        return answer, service.parts.store.names()

    answer, names = play(tmp_path, scenario)
    assert is_refused(answer, Cause.BAD_SIGNATURE)
    assert names == ["plain"]


def test_a_client_has_only_so_many_models(tmp_path):
    async def scenario(service):
        service.admit(CLEVELAND, with_key=False, models=1)
        return [
            await service.ask(
                CLEVELAND, "PUT", f"/v1/models/{name}", content=publication_of(CLEVELAND, name).to_bytes()
            )
            for name in ("one", "two")
        ]

    first, second = play(tmp_path, scenario)
    assert first.status_code == 201
    assert is_refused(second, Cause.TOO_MANY_MODELS)


def test_the_log_holds_names_counts_and_times_and_nothing_of_a_body_or_an_error(tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    content = [query(end=end) for end in (b"", REFUSE, FAIL, DIE)]

    async def scenario(service):
        answers = [await service.predict(CLEVELAND, each) for each in content]
        return answers, service.served()

    answers, served = play(tmp_path, scenario)
    lines = [json.loads(line) for line in served.splitlines()]
    assert [(line["client"], line["model"], line["patients"], line["status"], line["cause"]) for line in lines] == [
        ("cleveland", "plain", 3, 200, ""),
        ("cleveland", "plain", 3, 400, "REFUSED_BODY"),
        ("cleveland", "plain", 3, 500, "INTERNAL"),
        ("cleveland", "plain", 3, 503, "WORKER_LOST"),
    ]
    assert [line["bytes_in"] for line in lines] == [len(each) for each in content]
    assert {line["call"] for line in lines} == {"POST /v1/models/{name}/predictions"}
    told = served + caplog.text + "".join(answer.text for answer in answers[1:])
    assert "RuntimeError" in caplog.text
    assert CANARY not in told
    assert not any(each[-100:-10].hex() in told or repr(each[-100:-10])[2:-1] in told for each in content)


def test_the_description_tells_of_signing_of_bodies_and_of_problems(tmp_path):
    async def scenario(service):
        return (await service.http.get("/openapi.json")).json()

    document = play(tmp_path, scenario)
    calls = {(path, method): call for path, each in document["paths"].items() for method, call in each.items()}
    assert document["components"]["securitySchemes"]["signature"]["name"] == "Signature"
    for (path, method), call in calls.items():
        assert (call.get("security") == [{"signature": []}]) == (path != "/health"), path
        assert (list(call.get("requestBody", {}).get("content", {})) == [BINARY]) == (method in ("put", "post"))
        assert "HTTPValidationError" not in json.dumps(call)
    assert set(calls["/v1/models/{name}/predictions", "post"]["responses"]) == {
        "200", "400", "401", "404", "408", "409", "413", "415", "421", "422", "429", "500", "503", "504",
    }  # fmt: skip


def test_an_error_that_nobody_has_thought_of_says_nothing(tmp_path, monkeypatch):
    async def scenario(service):
        def fail(name):
            raise RuntimeError(CANARY)

        monkeypatch.setattr(service.parts.registry, "keys", fail)
        return await service.ask(CLEVELAND, "GET", "/v1/keys")

    assert is_refused(play(tmp_path, scenario), Cause.INTERNAL)


def test_health_needs_no_signature(tmp_path):
    async def scenario(service):
        return await service.http.get(httpx.URL(BASE).join("/health"))

    assert play(tmp_path, scenario).status_code == 204
