"""A message for which no process can be made is refused, and the site goes on."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from flwr.app import Metadata, RecordDict
from flwr.app.message import make_message

import clients.node.message_process
from clients.node.responder import Responder
from clients.secrets.vault import Vault
from protocol.envelope import Request, is_refusal

TOO_MANY = OSError(errno.EMFILE, "Too many open files")


class OneMessage:
    """Stands where the SuperNode stands, and has the same message again and again."""

    def __init__(self):
        self.answers = []

    @contextmanager
    def take(self):
        metadata = Metadata(
            run_id=1,
            message_id="",
            src_node_id=1,
            dst_node_id=2,
            reply_to_message_id="",
            group_id="",
            created_at=0.0,
            ttl=10.0,
            message_type=Request.ANNOUNCE,
        )
        message = make_message(metadata, content=RecordDict())
        yield SimpleNamespace(message=message, run_config={}, bundle=b"", answer=self.answers.append)


def failing(error):
    def fail(*_, **__):
        raise error

    return fail


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files there")
@pytest.mark.parametrize(
    ("step", "error", "told"),
    [
        ("Pipe", TOO_MANY, "Too many open files"),
        ("Process.start", OSError(errno.EAGAIN, "Resource temporarily unavailable"), "temporarily unavailable"),
        ("Process.start", EOFError(), "EOFError"),
        ("Process.start", ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), "reset"),
    ],
    ids=["no files left", "no processes left", "the server that forks was killed", "so was it, a little earlier"],
)
def test_a_message_for_which_no_process_can_be_made_is_refused(tmp_path, monkeypatch, step, error, told):
    supernode, vault = OneMessage(), Vault(tmp_path / "vault")
    monkeypatch.setattr(f"clients.node.message_process._PROCESSES.{step}", failing(error))
    before = open_files()

    response = Responder(vault.directory, None, supernode).respond()

    (answer,) = supernode.answers
    assert is_refusal(answer)
    assert response.is_refused
    assert told in response.death
    (entry,) = vault.lines("events.jsonl")
    assert (entry["event"], entry["request"], entry["text"]) == ("died", Request.ANNOUNCE, response.death)
    assert open_files() == before


def test_the_message_after_it_is_answered(tmp_path):
    supernode = OneMessage()
    responder = Responder(Vault(tmp_path / "vault").directory, None, supernode)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clients.node.message_process._PROCESSES, "Pipe", failing(TOO_MANY))
        assert "Too many open files" in responder.respond().death

    assert responder.respond().death == ""
    assert os.strerror(errno.EMFILE) not in (tmp_path / "vault" / "events.jsonl").read_text().splitlines()[-1]
