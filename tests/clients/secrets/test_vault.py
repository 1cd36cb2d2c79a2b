"""A vault's files: private, replaced as a whole, one process at a time; and a journal that outlives a crash."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from crash import killed_after

import clients
import clients.secrets.vault
from clients.secrets.secret import SecretBytes
from clients.secrets.vault import Vault
from protocol.errors import ConfigurationError

ROOT = Path(clients.__file__).parent.parent


@pytest.fixture
def vault(tmp_path):
    return Vault(tmp_path / "vault")


def mode_of(path):
    return path.stat().st_mode & 0o777


def child_process(code, *arguments):
    """Start a second process that has a vault as `vault`; it says one line when it is at work."""
    program = f"""
import sys
from pathlib import Path
from clients.secrets.vault import Vault
vault = Vault(Path(sys.argv[1]))
{code}
"""
    child = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline().strip() == "at work"
    return child


def kill(child):
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()


def test_everything_in_a_vault_is_its_owner_s_alone(vault):
    vault.write("plain.bin", b"content")
    vault.write("runs/1/deep.bin", b"content")
    vault.write_secret("key.secret", SecretBytes(b"key"))
    vault.append("log.jsonl", {"a": 1})
    with vault.locked():
        pass

    assert mode_of(vault.directory) == 0o700
    assert mode_of(vault.path("runs/1")) == 0o700
    files = [path for path in vault.directory.rglob("*") if path.is_file()]
    assert {path.name: mode_of(path) for path in files} == dict.fromkeys((path.name for path in files), 0o600)
    assert len(files) == 5


def test_a_file_is_read_back(vault):
    vault.write("name", b"one")
    vault.write("name", b"two", is_durable=False)

    assert vault.read("name") == b"two"
    assert vault.has("name")
    vault.delete("name")
    vault.delete("name")
    assert not vault.has("name")
    with pytest.raises(ConfigurationError, match="has no name"):
        vault.read("name")


def test_deleting_removes_what_a_crash_left_of_the_next_content(vault):
    vault.write_secret("key.secret", SecretBytes(b"old key"))
    with killed_after(0):
        vault.write_secret("key.secret", SecretBytes(b"next key"))
    assert len(list(vault.directory.iterdir())) == 2

    vault.delete("key.secret")

    assert list(vault.directory.iterdir()) == []


def test_deleting_removes_what_a_crash_left_of_the_first_content(vault):
    with killed_after(0):
        vault.write_secret("key.secret", SecretBytes(b"first key"))
    assert not vault.has("key.secret")
    assert len(list(vault.directory.iterdir())) == 1

    vault.delete("key.secret")

    assert list(vault.directory.iterdir()) == []


def test_a_secret_is_read_back_and_only_from_a_private_file(vault):
    vault.write_secret("key.secret", SecretBytes(b"thirty-two bytes"))
    assert vault.read_secret("key.secret") == SecretBytes(b"thirty-two bytes")

    for mode in (0o640, 0o604, 0o660, 0o644):
        vault.path("key.secret").chmod(mode)
        with pytest.raises(ConfigurationError, match=f"mode {mode:o}") as refusal:
            vault.read_secret("key.secret")
        assert "thirty-two bytes" not in str(refusal.value)


def test_a_reader_sees_the_old_content_until_the_new_one_is_whole(vault, monkeypatch):
    vault.write("name", b"old")

    def fail(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(clients.secrets.vault.os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        vault.write("name", b"new")

    assert vault.read("name") == b"old"


@pytest.mark.parametrize("is_durable", [True, False])
def test_kill_9_in_the_middle_of_many_writes_leaves_one_whole_content(tmp_path, is_durable):
    contents = [letter * 400_000 for letter in (b"a", b"b")]
    code = f"""
for number in range(10**9):
    vault.write("name", (b"a", b"b")[number % 2] * 400_000, is_durable={is_durable})
    if number == 1:
        print("at work", flush=True)
"""
    for attempt in range(4):
        vault = Vault(tmp_path / f"vault-{attempt}")
        child = child_process(code, vault.directory)
        time.sleep(random.random() * 0.03)
        kill(child)

        assert vault.read("name") in contents


def test_a_second_process_has_to_wait_for_the_lock(vault, monkeypatch):
    monkeypatch.setattr(clients.secrets.vault, "LOCK_SECONDS", 0.2)
    code = """
import time
with vault.locked():
    print("at work", flush=True)
    time.sleep(60)
"""
    child = child_process(code, vault.directory)

    with pytest.raises(ConfigurationError, match="another process"), vault.locked():
        pytest.fail("two processes hold one vault")
    kill(child)
    with vault.locked():  # a dead process holds nothing
        pass


def test_the_lock_is_released_when_a_message_fails(vault, monkeypatch):
    monkeypatch.setattr(clients.secrets.vault, "LOCK_SECONDS", 0.2)
    with pytest.raises(ZeroDivisionError), vault.locked():
        raise ZeroDivisionError
    with vault.locked():
        pass


def test_journal_lines_are_read_in_order(vault):
    assert list(vault.lines("journal")) == []

    for number in range(3):
        vault.append("journal", {"number": number}, is_durable=number == 1)

    assert [entry["number"] for entry in vault.lines("journal")] == [0, 1, 2]


@pytest.fixture
def synced(monkeypatch):
    """Return what is synced from now on, by name and in order; None in it is a death at that place."""
    names, real = [], os.fsync

    def fsync(descriptor):
        if names[-1:] == [None]:
            raise KeyboardInterrupt
        names.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        real(descriptor)

    monkeypatch.setattr(clients.secrets.vault.os, "fsync", fsync)
    return names


def test_each_directory_s_name_is_on_disk_before_anything_is_in_it(vault, synced):
    vault.write("runs/00/upload.bin", b"update")
    assert synced == ["vault", "runs", ".upload.bin.partial", "00"]

    synced.clear()
    vault.write("runs/00/card.bin", b"card")
    assert synced == [".card.bin.partial", "00"]


def test_a_directory_whose_maker_died_is_synced_by_the_next_process(vault, synced):
    synced.append(None)
    with pytest.raises(KeyboardInterrupt):
        vault.write("runs/upload.bin", b"update")
    assert vault.path("runs").is_dir()

    synced.clear()
    Vault(vault.directory).write("runs/upload.bin", b"update")
    assert synced == ["vault", ".upload.bin.partial", "runs"]


def test_a_new_vault_s_own_name_is_on_disk_and_those_of_the_directories_above_it(tmp_path, synced):
    Vault(tmp_path / "hospitals" / "basel")

    assert synced == [tmp_path.name, "hospitals"]
    Vault(tmp_path / "hospitals" / "basel")
    assert len(synced) == 2


def test_a_journal_s_name_is_on_disk_before_its_first_line(vault, synced):
    synced.append(None)
    with pytest.raises(KeyboardInterrupt):
        vault.append("journal", {"number": 0}, is_durable=True)
    assert vault.read("journal") == b""

    synced.clear()
    vault.append("journal", {"number": 1}, is_durable=True)
    vault.append("journal", {"number": 2}, is_durable=True)
    assert synced == ["vault", "journal", "journal"]


@pytest.mark.parametrize("torn", [b'{"number":', b'{"number": 1', b"\x00\x00\x00\x00", b"\xff\xfe"])
def test_a_torn_last_line_is_passed_over_and_takes_no_other_line_with_it(vault, torn):
    vault.append("journal", {"number": 0}, is_durable=True)
    with vault.path("journal").open("ab") as file:
        file.write(torn)

    assert [entry["number"] for entry in vault.lines("journal")] == [0]

    vault.append("journal", {"number": 2}, is_durable=True)
    vault.append("journal", {"number": 3}, is_durable=True)
    assert [entry["number"] for entry in vault.lines("journal")] == [0, 2, 3]


def test_the_site_s_log_is_one_json_line_per_event(vault):
    vault.record("refused", reason="because", round=3)
    vault.record("sealed", bytes=10)

    entries = [json.loads(line) for line in vault.path("events.jsonl").read_text().splitlines()]
    assert [entry["event"] for entry in entries] == ["refused", "sealed"]
    assert entries[0]["reason"] == "because"
    assert abs(entries[0]["time"] - time.time()) < 60
