"""The provider's record: one JSON line per event, and sums that are whole or not there."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time

import pytest

from server.record import RunRecord


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


def test_a_sum_is_kept_byte_for_byte_and_recorded_by_its_digest(record, tmp_path):
    data = os.urandom(1000)

    record.keep_sum(7, data)

    assert record.load_sum(7) == data
    (entry,) = events(tmp_path)
    assert (entry["event"], entry["round"], entry["bytes"]) == ("sum-kept", 7, 1000)
    assert entry["sha256"] == hashlib.sha256(data).hexdigest()
    assert [path.name for path in (tmp_path / "provider" / "sums").iterdir()] == ["round-00007.cwa"]


def test_a_crash_leaves_the_old_sum_or_the_new_one(record, tmp_path, monkeypatch):
    record.keep_sum(1, b"old")

    def crash(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr("server.record.os.fsync", crash)
    with pytest.raises(KeyboardInterrupt):
        record.keep_sum(1, b"new")

    assert record.load_sum(1) == b"old"
    assert len(events(tmp_path)) == 1


def test_a_sum_that_was_not_kept_is_not_there(record):
    with pytest.raises(FileNotFoundError):
        record.load_sum(3)


def test_a_second_record_goes_on_where_the_first_ended(record, tmp_path):
    record.event("started")
    record.keep_sum(0, b"sum")

    again = RunRecord(tmp_path / "provider")
    again.event("resumed")

    assert again.load_sum(0) == b"sum"
    assert [entry["event"] for entry in events(tmp_path)] == ["started", "sum-kept", "resumed"]
