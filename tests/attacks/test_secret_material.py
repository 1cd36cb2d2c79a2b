"""Secrets that leave a site by mistake: a key in place of an update, a secret in the text of an exception.

Who: nobody at first; then whoever reads what the provider got. Want: the CKKS key, or the epoch secret.
Answer: the provider looks for SEAL's mark before it reads anything and stops the whole run, loudly, because the key
is out and every sum with it; and a site answers any failure with one constant, because Flower would hand the text of
an exception to the provider.
"""

from __future__ import annotations

import io
import logging

import pytest
import tenseal.sealapi as seal
from coalition import prepare_parts, refusal
from flwr.app import Message
from forgery import patients

import clients.app
import clients.run.run_keys
import protocol.update
from clients.run.files import RunFiles
from clients.run.site import Site
from clients.secrets.ckks import Decryptor, SecretKey
from clients.secrets.keys import EpochKeys
from protocol.backend import backend
from protocol.envelope import REQUEST_PARTS, Request, pack_envelope, unpack_envelope
from protocol.errors import RunPausedError, SecretMaterialError
from protocol.handshake import Session
from protocol.packing import RoundKind
from protocol.scratch_file import ScratchFile
from protocol.update import EncryptedAggregate

LEAKING = 1


class Leak:
    """A site whose update of round 1 is, by some mistake, the consortium's secret key; all that came is kept."""

    def __init__(self, federation) -> None:
        self._federation = federation
        self._uploads = 0
        self.key = b""
        self.after = 0

    def __call__(self, reply: Message) -> Message:
        self.after += bool(self.key)
        if reply.metadata.message_type == Request.UPLOAD and reply.metadata.src_node_id == 100 + LEAKING:
            self._uploads += 1
            if self._uploads >= 2:
                self.key = self._saved_key()
                reply.content = pack_envelope({"update": self.key})
        return reply

    def _saved_key(self) -> bytes:
        vault, agreement = self._federation.vault(LEAKING), self._federation.agreement
        (directory,) = vault.path("runs").iterdir()
        run = bytes.fromhex(directory.name)
        files = RunFiles(vault, run)
        session = Session.from_bytes(files.session(), agreement, run)
        with ScratchFile() as scratch:
            EpochKeys(files.epoch().common, agreement, session.digest).ckks._key.save(scratch.path)
            return scratch.read()


def kept_by_provider(federation) -> list[bytes]:
    return [path.read_bytes() for path in (federation.directory / "provider").rglob("*") if path.is_file()]


def test_unnoticed_a_key_in_place_of_an_update_is_one_more_bad_message_and_reads_every_sum(run, founded, monkeypatch):
    monkeypatch.setattr(protocol.update, "check_no_secret", lambda data: None)
    leak, agreement = Leak(founded), founded.agreement

    with pytest.raises(RunPausedError):  # waits for a better update, and calls other sites meanwhile
        run(founded, leak)

    assert leak.after > 0
    parameters, key = agreement.parameters, seal.SecretKey()
    with ScratchFile() as scratch:
        key.load(backend(parameters).context, scratch.write(leak.key))
    (data,) = [data for data in kept_by_provider(founded) if data.startswith(b"CWA1")]
    total = EncryptedAggregate.from_bytes(data, agreement)
    exact = Decryptor(SecretKey(key, parameters)).decrypt(total.residues, [proof.seeds for proof in total.proofs])
    records = int(agreement.plan(RoundKind.STATISTICS).unpack(exact)["records"][0])
    assert records == sum(patients(founded, site)[0] for site in founded.everyone)


def test_a_key_in_place_of_an_update_stops_the_provider_s_run_at_once(run, founded):
    leak = Leak(founded)

    with pytest.raises(SecretMaterialError) as stopped:
        run(founded, leak)

    assert leak.key
    assert leak.after == 0
    assert str(stopped.value) == "a SEAL object (a key?) came in place of a message; nothing of it was read"
    for start in range(0, len(leak.key) - 16, 16):
        assert not any(leak.key[start : start + 16] in kept for kept in kept_by_provider(founded))


@pytest.fixture
def clumsy(opened, monkeypatch):
    """A site whose code fails with a secret in the text; return the secret."""
    secret = RunFiles(opened.vault(LEAKING), opened.run).epoch().common.reveal()

    def fail(self, secret, agreement, session):
        raise RuntimeError(f"cannot expand {secret.reveal().hex()}")

    monkeypatch.setattr(clients.run.run_keys.EpochKeys, "__init__", fail)
    return secret


def test_unguarded_the_text_of_an_exception_reaches_the_provider(opened, grid_of, clumsy, monkeypatch):
    def answer(request, message, context):
        site = Site.of(opened.vault(LEAKING))
        return pack_envelope(site.handle(request, unpack_envelope(message.content, REQUEST_PARTS[request])))

    monkeypatch.setattr(clients.app, "_answer", answer)
    content = pack_envelope({"run": opened.run, **prepare_parts(0, [])})
    message = Message(content, dst_node_id=100 + LEAKING, message_type=Request.PREPARE)

    with pytest.raises(RuntimeError) as told:
        grid_of(opened).send_and_receive([message])

    assert clumsy.hex() in str(told.value)


@pytest.fixture
def logged():
    """Return what the process logs, as it is written."""
    handler = logging.StreamHandler(io.StringIO())
    logging.getLogger().addHandler(handler)
    yield handler.stream
    logging.getLogger().removeHandler(handler)


def test_guarded_the_provider_is_told_one_constant_and_the_site_s_own_log_no_secret(opened, grid_of, clumsy, logged):
    assert refusal(grid_of(opened), opened, LEAKING, Request.PREPARE, **prepare_parts(0, [])) == "RuntimeError"

    log = opened.vault(LEAKING).read("events.jsonl").decode()
    assert "unexpected; see where" in log
    assert "refused" in logged.getvalue()
    for text in (log, logged.getvalue()):
        assert clumsy.hex() not in text
