"""What people at a hospital are told when their SuperNode ends, and what becomes of its log."""

from __future__ import annotations

import errno
import subprocess
import tempfile

import pytest

import scripts.site.node
from clients.node.responder import Responder
from clients.node.supernode import SuperNode
from clients.run.membership import Place
from clients.secrets.secret import SecretBytes
from scripts.long_log import LONGEST_LOG_BYTES, shorten_log
from scripts.site.node import Connection, _respond, said_last, start_site
from scripts.superlink import free_port

REFUSED = """INFO :      Starting Flower SuperNode
\x1b[91mERROR\x1b[0m :     Exit Code: 305
Failed to initialize the connection to the SuperLink.
Connection refused.

For more information, visit: <https://flower.ai/docs>
INFO:     Shutting down
INFO:     Finished server process [31476]
"""


def test_the_reason_of_a_supernode_s_end_is_its_last_error_in_one_line():
    assert said_last(REFUSED) == (
        "Exit Code: 305 Failed to initialize the connection to the SuperLink. Connection refused."
    )


def test_a_node_that_the_provider_does_not_know_is_told_whom_to_send_its_card():
    told = said_last(REFUSED.replace("Connection refused.", "[code: 2004] Failed to activate."))

    assert told.startswith("not admitted yet: send this site's card (card.json in the vault) to the provider")


def test_a_supernode_that_was_killed_has_said_no_reason():
    assert said_last("INFO :      Sent successfully\n") == "it was killed, or ended without a word"


def test_a_supernode_s_log_is_begun_anew_when_it_has_grown_long(tmp_path):
    log = tmp_path / "supernode.log"
    log.write_bytes(b"x" * (LONGEST_LOG_BYTES + 1))
    with (
        subprocess.Popen(["/bin/sleep", "0.5"]) as process,
        SuperNode(f"127.0.0.1:{free_port()}", SecretBytes(bytes(32))) as supernode,
    ):
        _respond(process, Responder(tmp_path, None, supernode), log, lambda event, text: None)

    assert log.stat().st_size == 0
    assert (tmp_path / "supernode.previous.log").stat().st_size > LONGEST_LOG_BYTES


def test_on_a_full_disk_a_long_log_is_begun_anew_all_the_same(tmp_path):
    log = tmp_path / "supernode.log"
    log.write_bytes(b"x" * (LONGEST_LOG_BYTES + 1))
    (tmp_path / "supernode.previous.log").mkdir()  # nothing can be written there

    shorten_log(log)

    assert log.stat().st_size == 0


@pytest.mark.parametrize("step", ["free_port", "program", "supervised", "SuperNode", "_respond"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), EOFError()], ids=["full", "EOF"])
def test_what_this_machine_lacks_for_a_while_does_not_end_the_site(founded, tmp_path, monkeypatch, step, error):
    told, failures = [], iter([error, error, KeyboardInterrupt])

    def fail(*_, **__):
        raise next(failures)

    def unprepared():
        raise error

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(scripts.site.node, "_RESTART_SECONDS", 0.0)
    monkeypatch.setattr(scripts.site.node, "_trouble", lambda connection: "")
    monkeypatch.setattr(scripts.site.node, "preload", unprepared)
    monkeypatch.setattr(scripts.site.node, "program", lambda name: "/bin/true")
    monkeypatch.setattr(scripts.site.node, step, fail)
    place, connection = Place.read(founded.vault(1)), Connection(provider="localhost:1", ca=tmp_path / "ca.crt")

    with pytest.raises(KeyboardInterrupt):
        start_site(place, None, connection, lambda event, text: told.append((event, text)))

    reasons = [text for event, text in told if event == "supernode-ended"]
    assert len(reasons) == 2
    assert all(text.endswith(str(error.strerror if isinstance(error, OSError) else "EOFError")) for text in reasons)
    assert not list((tmp_path / "tmp").iterdir())


@pytest.mark.parametrize("error", [FileNotFoundError("vault"), PermissionError("vault")])
def test_a_vault_that_is_gone_or_not_ours_ends_the_site(founded, tmp_path, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(scripts.site.node, "_trouble", lambda connection: "")
    monkeypatch.setattr(scripts.site.node, "preload", lambda: None)
    monkeypatch.setattr(scripts.site.node, "free_port", fail)
    place, connection = Place.read(founded.vault(1)), Connection(provider="localhost:1", ca=tmp_path / "ca.crt")

    with pytest.raises(type(error)):
        start_site(place, None, connection, lambda event, text: None)


def test_a_log_that_cannot_be_looked_at_now_is_left_as_it_is(tmp_path):
    shorten_log(tmp_path / "gone.log")

    assert not list(tmp_path.iterdir())
