"""The provider's record: one JSON line per event, and messages that are whole or not there."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import time
from pathlib import Path

import pytest

from protocol.errors import RunFailedError
from server.record import RunRecord, is_worked_on
from strategies.history import RunHistory

NAME = "sums/round-00001.cwa"


@pytest.fixture
def record(tmp_path):
    return RunRecord(tmp_path / "provider")


def events(tmp_path):
    return [json.loads(line) for line in (tmp_path / "provider" / "events.jsonl").read_text().splitlines()]


def test_events_are_kept_in_order_and_logged(record, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="flwr.cipherward.provider")
    record.event("started", sites=4)
    record.event("round", round=1, cohort=["a", "b"])

    first, second = events(tmp_path)
    assert (first["event"], first["sites"]) == ("started", 4)
    assert (second["event"], second["cohort"]) == ("round", ["a", "b"])
    assert abs(first["time"] - time.time()) < 60
    assert caplog.messages == ["started sites=4", "round round=1 cohort=['a', 'b']"]


def test_a_message_is_kept_byte_for_byte_under_its_name_and_nothing_beside_it(record, tmp_path):
    data = os.urandom(1000)

    record.keep("sums/round-00007.cwa", data)

    assert record.load("sums/round-00007.cwa") == data
    assert [path.name for path in (tmp_path / "provider" / "sums").iterdir()] == ["round-00007.cwa"]


def test_a_sum_is_recorded_by_its_digest(record, tmp_path):
    data = os.urandom(1000)

    RunHistory(record).keep_sum(7, data)

    (entry,) = events(tmp_path)
    assert (entry["event"], entry["round"], entry["bytes"]) == ("sum-kept", 7, 1000)
    assert entry["sha256"] == hashlib.sha256(data).hexdigest()


def test_a_crash_leaves_the_old_message_or_the_new_one(record, monkeypatch):
    record.keep(NAME, b"old")

    def crash(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr("server.record.os.fsync", crash)
    with pytest.raises(KeyboardInterrupt):
        record.keep(NAME, b"new")

    assert record.load(NAME) == b"old"


def test_a_message_is_on_disk_with_its_name_when_keeping_returns(record, monkeypatch):
    # a provider acts on what it has kept: a power cut must not undo even the renaming
    synced = []
    monkeypatch.setattr(
        "server.record.os.fsync", lambda descriptor: synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
    )

    record.keep(NAME, b"message")

    assert synced == ["provider", "round-00001.partial", "sums"]
    synced.clear()
    record.keep("sums/round-00002.cwa", b"message")
    assert synced == ["round-00002.partial", "sums"]


def test_the_names_of_a_record_s_directories_are_on_disk_before_anything_is_in_them(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(
        "server.record.os.fsync", lambda descriptor: synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
    )

    RunRecord(tmp_path / "run" / "provider")
    assert synced == [tmp_path.name, "run"]

    synced.clear()
    (tmp_path / "run" / "provider" / "sums").mkdir()  # whoever made it died before its name was on disk
    RunRecord(tmp_path / "run" / "provider").keep(NAME, b"message")
    assert synced == ["provider", "round-00001.partial", "sums"]


def test_a_message_that_was_not_kept_is_not_there(record):
    assert record.load(NAME) is None


def test_a_second_record_goes_on_where_the_first_ended(record, tmp_path):
    record.event("started")
    record.keep(NAME, b"sum")

    again = RunRecord(tmp_path / "provider")
    again.event("resumed")

    assert again.load(NAME) == b"sum"
    assert [entry["event"] for entry in events(tmp_path)] == ["started", "resumed"]


def test_one_serverapp_at_a_time_works_on_a_run(tmp_path):
    first, second = RunRecord(tmp_path), RunRecord(tmp_path)
    assert not is_worked_on(tmp_path)

    with first.locked(0.1):
        assert is_worked_on(tmp_path)
        with pytest.raises(RunFailedError, match="another ServerApp"), second.locked(0.1):
            pytest.fail("both work on it")

    with second.locked(0.1):
        pass
    assert not is_worked_on(tmp_path)


def test_a_serverapp_waits_for_one_that_is_ending(tmp_path):
    held, left = threading.Event(), []

    def work():
        with RunRecord(tmp_path).locked(10):
            held.set()
            time.sleep(0.5)
            left.append(1)

    other = threading.Thread(target=work)
    other.start()
    held.wait()
    with RunRecord(tmp_path).locked(10):
        assert left == [1]
    other.join()
