"""A message is answered in a process of its own, whatever becomes of that process."""

from __future__ import annotations

import os
import signal
import time

import psutil
import pytest
from bundles import bundle_of, sources
from flwr.app import RecordDict
from flwr.common.serde import recorddict_to_proto

import clients.node.message_process
from clients.node.message_process import MessageProcess, Question
from protocol.envelope import ANSWER_PARTS, Request, is_refusal, pack_envelope, unpack_envelope


@pytest.fixture(scope="module")
def bundle():
    return bundle_of(sources())


@pytest.fixture
def ask(founded, bundle):
    """Start a process that answers for the second site."""

    def start(request=Request.ANNOUNCE, content=None, **changes):
        content = pack_envelope({"run": founded.run}) if content is None else content
        question = {
            "request": request,
            "content": recorddict_to_proto(content).SerializeToString(),
            "run_config": {"terms": founded.agreement.terms.digest},
            "bundle": bundle,
        }
        return MessageProcess(founded.vault(1).directory, None, Question(**question | changes))

    return start


def test_the_answer_is_the_site_s(ask, founded):
    with ask() as process:
        answer = unpack_envelope(process.answer(), ANSWER_PARTS[Request.ANNOUNCE])

    assert answer["agreement"] == founded.agreement.to_bytes()
    assert int.from_bytes(answer["card"][4:6], "little") == 1


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"run_config": {}}, "AgreementMismatchError"),
        ({"run_config": {"terms": "0" * 64, "hydra": "anything"}}, "AgreementMismatchError"),
        ({"bundle": bundle_of({"clients/app.py": b"raise SystemExit"})}, "AgreementMismatchError"),
        ({"bundle": b"no archive"}, "MalformedError"),
        ({"content": RecordDict()}, "MalformedError"),
    ],
    ids=["no terms", "other terms", "other code", "no bundle", "an empty message"],
)
def test_what_is_not_as_agreed_is_refused_and_told_to_the_site_s_people(ask, founded, change, error):
    with ask(**change) as process:
        assert is_refusal(process.answer())
    (entry,) = [entry for entry in founded.vault(1).lines("events.jsonl") if entry["event"] == "refused"]
    assert entry["error"] == error
    assert not founded.vault(1).path("runs").exists()


def test_a_process_that_is_killed_gives_no_answer_and_is_not_waited_for(ask, founded):
    # the vault is held so that it cannot be done before it is killed
    with founded.vault(1).locked(), ask() as process:
        time.sleep(0.5)
        os.kill(process.pid, signal.SIGKILL)
        started = time.monotonic()
        assert process.answer() is None
        assert time.monotonic() - started < 10
    assert process.exit_code == -signal.SIGKILL


def test_nothing_of_a_process_is_left_when_it_has_answered(ask):
    with ask() as process:
        process.answer()
        pid = process.pid

    assert process.exit_code == 0
    assert not psutil.pid_exists(pid)


def test_a_process_that_is_killed_before_it_has_read_its_message_gives_no_answer(ask, monkeypatch):
    start = clients.node.message_process._PROCESSES.Process.start

    def start_and_kill(process):
        start(process)
        process.kill()
        process.join()

    monkeypatch.setattr(clients.node.message_process._PROCESSES.Process, "start", start_and_kill)

    with ask() as process:
        assert process.answer() is None
    assert process.exit_code == -signal.SIGKILL
