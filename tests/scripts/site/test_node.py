"""What people at a hospital are told when their SuperNode ends, and what becomes of its log."""

from __future__ import annotations

import subprocess

from clients.node.responder import Responder
from clients.node.supernode import SuperNode
from clients.secrets.secret import SecretBytes
from scripts.long_log import LONGEST_LOG_BYTES, shorten_log
from scripts.site.node import _respond, said_last
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
