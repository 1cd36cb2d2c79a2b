"""What the service keeps on disk: clients, models, and how many patients were scored."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
import time
from pathlib import Path

import pytest
from prediction_service import Client, described

from protocol.errors import ConfigurationError
from server.prediction.client_registry import Allowance, ClientRegistry
from server.prediction.files import remove_leftovers, write_directory, write_file
from server.prediction.model_store import ModelStore
from server.prediction.problems import Cause, ProblemError
from server.prediction.served_log import ServedLog, ServedRequest
from server.prediction.usage import REPEAT_SECONDS, Usage

CLEVELAND = Client()


@pytest.fixture
def registry(tmp_path):
    return ClientRegistry(tmp_path / "clients")


def test_a_client_is_admitted_found_and_expelled(registry):
    assert registry.admit(CLEVELAND.enrolment, Allowance(patients_per_day=5))
    found = registry.find("cleveland")
    assert (found.name, found.allowance.patients_per_day) == ("cleveland", 5)
    assert not registry.admit(CLEVELAND.enrolment, Allowance(patients_per_day=6))
    assert registry.find("cleveland").allowance.patients_per_day == 6
    registry.expel("cleveland")
    assert registry.find("cleveland") is None
    assert registry.clients() == []
    with pytest.raises(ConfigurationError, match="not admitted"):
        registry.expel("cleveland")


def test_another_card_of_the_same_name_is_refused(registry):
    registry.admit(CLEVELAND.enrolment, Allowance())
    with pytest.raises(ConfigurationError, match="expel cleveland first"):
        registry.admit(Client(secret="another").enrolment, Allowance())
    assert registry.find("cleveland").enrolment == CLEVELAND.enrolment


@pytest.mark.parametrize(
    "name", ["..", "../clients/cleveland", "cleveland/", "", "Cleveland", "cleveland\n", "x" * 65, "cleveland/keys"]
)
def test_no_other_name_finds_a_client(registry, name):
    registry.admit(CLEVELAND.enrolment, Allowance())
    assert registry.find(name) is None
    assert registry.key_file(name, "ab" * 32) is None


def test_a_card_in_another_s_directory_is_not_taken(registry, tmp_path):
    registry.admit(CLEVELAND.enrolment, Allowance())
    (tmp_path / "clients" / "cleveland").rename(tmp_path / "clients" / "zurich")
    with pytest.raises(ConfigurationError, match="card of cleveland"):
        registry.find("zurich")


def test_a_model_is_published_once(tmp_path):
    store = ModelStore(tmp_path / "models")
    store.publish(described(), {"model.safetensors": b"weights"})
    with pytest.raises(FileExistsError):
        store.publish(described(), {"model.safetensors": b"others"})
    assert store.names() == ["plain"]
    assert (tmp_path / "models" / "plain" / "model.safetensors").read_bytes() == b"weights"
    store.withdraw("plain")
    assert list((tmp_path / "models").iterdir()) == []
    with pytest.raises(ConfigurationError, match="no model plain"):
        store.withdraw("plain")


def test_a_model_of_that_name_that_comes_later_is_another(tmp_path):
    store = ModelStore(tmp_path / "models")
    for weights in ("00" * 32, "11" * 32):
        store.publish(described(weights=weights), {})
        assert store.model_for("anyone", "plain").description.weights == weights
        store.withdraw("plain")


def test_a_model_that_is_withdrawn_while_others_look_is_not_there(tmp_path, monkeypatch):
    store = ModelStore(tmp_path)
    for name in ("gone", "stays"):
        store.publish(described(name), {"model.safetensors": b"weights"})
    names = store.names()
    store.withdraw("gone")
    monkeypatch.setattr(ModelStore, "names", lambda self: names)

    assert [model.description.name for model in store.models()] == ["stays"]
    with pytest.raises(ProblemError, match="UNKNOWN_MODEL"):
        store.model_for("cleveland", "gone")


@pytest.mark.parametrize("harm", [b"{}", b"", b"x" * ((1 << 20) + 1)], ids=["another", "empty", "too long"])
def test_a_damaged_model_is_in_nobody_s_way_and_can_be_withdrawn(tmp_path, caplog, harm):
    store = ModelStore(tmp_path)
    for name in ("broken", "whole"):
        store.publish(described(name), {"model.safetensors": b"weights"})
    write_file(tmp_path / "broken" / "description.json", harm)

    for _ in range(2):
        assert [model.description.name for model in store.models()] == ["whole"]
        assert store.owned_by("cleveland") == []
    assert store.model_for("cleveland", "whole").description.name == "whole"
    with pytest.raises(ProblemError, match="UNKNOWN_MODEL"):
        store.model_for("cleveland", "broken")
    assert caplog.text.count("service withdraw broken") == 1
    store.withdraw("broken")
    assert store.names() == ["whole"]


def test_what_a_crash_has_left_is_no_model_and_goes_at_the_next_start(tmp_path, monkeypatch):
    store = ModelStore(tmp_path)

    def crash(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("server.prediction.files.shutil.rmtree", lambda *_, **__: None)  # nor is there time to tidy up
    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.rename", crash)
        with pytest.raises(KeyboardInterrupt):
            write_directory(tmp_path / "plain", {"description.json": described().to_bytes()})
    assert store.names() == []
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.undo()
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


def replace(path, data):
    write_directory(path, {"file": data}, check_old=lambda: None)


def test_a_directory_that_cannot_be_replaced_stays(tmp_path, monkeypatch):
    write_directory(tmp_path / "plain", {"file": b"old"})
    rename, done = Path.rename, []

    def fail_once(path, target):
        done.append(path.name)
        if len(done) == 2:
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_once)
    with pytest.raises(OSError, match="Input/output"):
        replace(tmp_path / "plain", b"new")
    assert (tmp_path / "plain" / "file").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["plain"]


def test_a_name_that_cannot_be_given_is_not_one_that_is_taken(tmp_path, monkeypatch):
    def full(path, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(OSError, match="No space") as failure:
        write_directory(tmp_path / "plain", {})
    assert not isinstance(failure.value, FileExistsError)


@pytest.mark.parametrize("then", [remove_leftovers, lambda path: write_directory(path / "other", {})])
def test_who_is_killed_while_replacing_leaves_the_old_one_and_while_removing_none(tmp_path, then):
    for leftover in (".replaced-1/plain", ".replaced-2/whole", "whole", ".old-1/withdrawn", ".new-1"):
        (tmp_path / leftover).mkdir(parents=True)

    then(tmp_path)

    assert {path.name for path in tmp_path.iterdir()} - {"other"} == {"plain", "whole"}


def test_a_directory_in_the_making_is_no_leftover(tmp_path, monkeypatch):
    write, begun, go_on = write_file, threading.Event(), threading.Event()

    def slowly(path, data):
        begun.set()
        go_on.wait()
        write(path, data)

    monkeypatch.setattr("server.prediction.files.write_file", slowly)
    writer = threading.Thread(target=write_directory, args=(tmp_path / "plain", {"file": b"data"}))
    starting = threading.Thread(target=remove_leftovers, args=(tmp_path,))
    writer.start()
    begun.wait()
    starting.start()
    starting.join(timeout=0.2)
    is_waiting = starting.is_alive()
    go_on.set()
    writer.join()
    starting.join()
    assert is_waiting
    assert (tmp_path / "plain" / "file").read_bytes() == b"data"


def test_a_file_is_the_old_one_or_the_new_one(tmp_path, monkeypatch):
    write_file(tmp_path / "file", b"old")

    def crash(descriptor):
        raise OSError

    monkeypatch.setattr("server.prediction.files.os.fsync", crash)
    with pytest.raises(OSError):  # noqa: PT011 - any
        write_file(tmp_path / "file", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


@pytest.fixture
def usage(tmp_path):
    with contextlib.closing(Usage(tmp_path / "usage.sqlite")) as usage:
        yield usage


def charge(usage, client, patients, *, model="one", allowed=10, query=None):
    return usage.charge(client, model, patients, query=query or os.urandom(32), allowed=allowed)


def test_patients_are_counted_over_all_models_and_for_each_client(usage):
    charge(usage, "cleveland", 6)
    charge(usage, "zurich", 10)
    with pytest.raises(ProblemError) as refused:
        charge(usage, "cleveland", 5, model="two")
    assert refused.value.cause == Cause.OVER_BUDGET
    charge(usage, "cleveland", 4, model="two")
    assert (usage.today("cleveland"), usage.today("zurich"), usage.today("va")) == (10, 10, 0)


def test_the_next_day_begins_anew(usage, monkeypatch):
    charge(usage, "cleveland", 10)
    tomorrow = time.time() + 86_400
    monkeypatch.setattr("server.prediction.usage.time.time", lambda: tomorrow)
    charge(usage, "cleveland", 10)


def test_the_same_query_is_charged_once_and_again_if_it_comes_too_often(tmp_path, usage):
    query = os.urandom(32)
    assert charge(usage, "cleveland", 4, query=query)
    assert [charge(usage, "cleveland", 4, query=query) for _ in range(2)] == [False] * 2
    with contextlib.closing(Usage(tmp_path / "usage.sqlite")) as later:  # a restart forgets nothing
        assert [charge(later, "cleveland", 4, query=query) for _ in range(3)] == [False, False, True]
    assert charge(usage, "zurich", 4, query=query)
    assert (usage.today("cleveland"), usage.today("zurich")) == (8, 4)


def test_a_query_that_was_not_paid_for_is_not_free_the_next_time(usage):
    query = os.urandom(32)
    for _ in range(2):
        with pytest.raises(ProblemError, match="OVER_BUDGET"):
            charge(usage, "cleveland", 11, query=query)


def test_the_same_query_is_charged_again_after_some_minutes_and_not_remembered(usage, monkeypatch):
    query = os.urandom(32)
    charge(usage, "cleveland", 4, query=query)
    later = time.time() + REPEAT_SECONDS + 1
    monkeypatch.setattr("server.prediction.usage.time.time", lambda: later)
    charge(usage, "zurich", 4)
    assert usage._database.execute("SELECT COUNT(*) FROM recent").fetchone() == (1,)
    assert charge(usage, "cleveland", 4, query=query, allowed=100)


def test_two_processes_do_not_charge_past_the_allowance(tmp_path):
    def charge_often():
        usage = Usage(tmp_path / "usage.sqlite")
        for _ in range(20):
            try:
                charge(usage, "cleveland", 1, allowed=25)
            except ProblemError:
                refused.append(1)
        usage.close()

    Usage(tmp_path / "usage.sqlite").close()
    refused = []
    threads = [threading.Thread(target=charge_often) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 15


def test_the_log_becomes_an_earlier_one_when_it_has_grown(tmp_path):
    log = ServedLog(tmp_path / "served.jsonl", largest_bytes=1000)
    for _ in range(20):
        log.write(ServedRequest(time=0.0, client="cleveland"))
    log.close()
    assert 3 <= len(list(tmp_path.iterdir())) <= 10
    assert all(path.stat().st_size <= 1000 for path in tmp_path.iterdir())


def test_strangers_do_not_push_what_was_served_out_of_the_log(tmp_path):
    log = ServedLog(tmp_path / "served.jsonl", largest_bytes=1000)
    log.write(ServedRequest(time=0.0, client="cleveland"))
    for _ in range(100):
        log.write(ServedRequest(time=0.0, status=401, cause="UNSIGNED"))
    log.close()
    (line,) = (tmp_path / "served.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["client"] == "cleveland"
