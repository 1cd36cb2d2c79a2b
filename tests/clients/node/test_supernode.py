"""What the SuperNode hands over comes from the provider, and need not be a message at all."""

from __future__ import annotations

import pytest
from flwr.proto.runtime_pb2 import AcquireTaskResponse
from google.protobuf.message import DecodeError

import clients.node.supernode
from clients.node.supernode import UNREACHABLE, SuperNode
from clients.secrets.secret import SecretBytes


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no such object"),
        DecodeError("wire type"),
        KeyError("content"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "x"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_flower_cannot_read_is_given_back_as_failed_and_does_not_end_the_site(monkeypatch, caplog, error):
    """Flower's own reading is stood in for: no SuperNode of this version sends what another one might."""
    given_back = []

    def unreadable(client):
        raise error

    with SuperNode("127.0.0.1:1", SecretBytes(bytes(32))) as supernode:
        claim = AcquireTaskResponse(token="t")
        claim.task.SetInParent()
        monkeypatch.setattr(supernode._client, "AcquireTask", lambda request: claim)
        monkeypatch.setattr(clients.node.supernode, "pull_task_input", unreadable)
        monkeypatch.setattr(clients.node.supernode, "push_task_output", lambda **given: given_back.append(given))

        with pytest.raises(UNREACHABLE), supernode.take():
            pytest.fail("nothing was taken")

    assert [(given["context"], given["sub_status"], given["details"]) for given in given_back] == [(None, "failed", "")]
    assert type(error).__name__ in caplog.text
    assert str(error) not in caplog.text
