"""Nothing of a hospital's reaches the provider: recognisable values are planted, and looked for in all it holds.

Every byte string is looked for raw, in hex and in base64; every number also as text and as float and integer of both
byte orders. That the search works is shown by finding each canary where it may be: in the hospital's own vault.
"""

from __future__ import annotations

import base64
import json
import logging
import re
import struct
import traceback
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load
from tap import Tap

import clients.run.opening
import clients.secrets.ckks
import clients.secrets.sealing
from clients.data.table import split_table
from clients.data.table_file import read_table
from clients.run.files import RunFiles
from clients.run.membership import CONSORTIUM_SECRET, TABLE
from clients.secrets.ckks import KEY_SEED_BYTES
from clients.secrets.identity_file import IDENTITY
from clients.secrets.keys import EpochKeys
from protocol.envelope import Request
from protocol.errors import FederationError, RunPausedError
from protocol.handshake import Session
from protocol.schedule import expand
from protocol.scratch_file import ScratchFile
from protocol.seal_format import _decompress

VICTIM = 1
PLANTED = (27.18281828459045, 31.41592653589793)
"""Two neighbouring cells of one of the victim's patients."""
EXTRA_RECORDS = 600
"""So many patients that no size, count or identifier of the protocol's is the same number."""


@dataclass
class Wire(Tap):
    """Keeps, beside every byte that passes the grid, what the vaults hold meanwhile.

    Attributes:
        canaries: Name -> secret bytes that were on a site's disk at some time.
        vaults: All that was in the victim's vault at some time.
    """

    canaries: dict[str, bytes] = field(default_factory=dict)
    vaults: set[bytes] = field(default_factory=set)

    def look_into(self, site):
        vault = self.federation.vault(site)
        for path in vault.directory.rglob("*"):
            if not path.is_file():
                continue
            content = path.read_bytes()
            if site == VICTIM:
                self.vaults.add(content)
            if path.name == "ephemeral.secret":
                self.canaries[f"ephemeral key of site {site}"] = content
            if path.name == "pending.safetensors":
                integers = load(content)["packed"].reshape(-1)[:8]
                for dtype in ("<i4", "<i8", "<f8"):
                    self.canaries[f"contribution of site {site} as {dtype}"] = integers.astype(dtype).tobytes()
            if path.name == "position.safetensors":
                position = RunFiles(vault, bytes.fromhex(path.parent.name)).position()
                self.canaries[f"state before round {position.round}"] = position.state
            if path.name == "epoch.secret":
                self._add_epoch_secrets(RunFiles(vault, bytes.fromhex(path.parent.name)), path.parent.name)

    def _add_epoch_secrets(self, files, run_id):
        secret = files.epoch().common
        self.canaries["epoch secret"] = secret.reveal()
        self.canaries["CKKS seed"] = expand(secret.reveal(), "ckks", length=KEY_SEED_BYTES)
        self.canaries["group key"] = expand(secret.reveal(), "group")
        if "CKKS key" not in self.canaries and files.session():
            agreement = self.federation.agreement
            session = Session.from_bytes(files.session(), agreement, bytes.fromhex(run_id))
            key = EpochKeys(secret, agreement, session.digest).ckks
            with ScratchFile() as scratch:
                key._key.save(scratch.path)
                words = np.frombuffer(_decompress(scratch.read())[-8 * 2048 :], dtype="<u8")
            self.canaries["digest of the CKKS key"] = key.digest()
            self.canaries["CKKS key"] = words[:8].tobytes()
            self.canaries["CKKS key, tight"] = words[:16].astype("<u4").tobytes()


def forms_of(secret: bytes):
    """Yield each form in which bytes may stand somewhere: raw, hex, base64 at each of its three alignments."""
    yield secret
    yield secret.hex().encode()
    yield secret.hex().upper().encode()
    for shift in range(3):
        middle = base64.b64encode(bytes(shift) + secret)
        yield middle[(0, 2, 3)[shift] : -4]


def forms_of_number(number: float):
    """Yield a number as text and as eight bytes of both byte orders."""
    yield repr(number).encode()
    yield f"{number:.7f}".encode()
    yield struct.pack("<d", number)
    yield struct.pack(">d", number)


def forms_of_count(count: int):
    yield struct.pack("<q", count)
    yield struct.pack(">q", count)
    yield struct.pack("<d", count)
    yield struct.pack(">d", count)


def numbers_in(text: str) -> set[int]:
    """Return all whole numbers that stand by themselves in a text."""
    return {int(number) for number in re.findall(r"(?<![\w.])\d+(?![\w.])", text)}


def found_in(haystack: list[bytes], needles: dict[str, list[bytes]]) -> list[str]:
    """Name each canary of which some form is in some of the bytes."""
    return [name for name, forms in needles.items() if any(form in hay for form in forms for hay in haystack)]


def plant(federation):
    """Give the victim a recognisable patient, and a recognisable number of them."""
    path = federation.vault(VICTIM).path(TABLE)
    header, *rows = path.read_text().splitlines()
    planted = f"{PLANTED[0]!r},{PLANTED[1]!r},0.1,1"
    path.write_text("\n".join([header, planted, *rows, *rows * (EXTRA_RECORDS // len(rows))]) + "\n")


def counts_of(federation):
    agreement = federation.agreement
    table = read_table(federation.vault(VICTIM).path(TABLE), agreement.terms.data)
    training, held_out = split_table(
        table,
        folds=agreement.terms.data.folds,
        fold=agreement.terms.data.fold,
        seed=agreement.terms.training.seed,
        site=federation.member(VICTIM).name,
    )
    return {"records": table.records, "training records": training.records, "held-out records": held_out.records}


def values_needles(federation):
    needles = {f"cell {number}": list(forms_of_number(number)) for number in PLANTED}
    needles["row as float32"] = [struct.pack("<ff", *PLANTED), struct.pack(">ff", *PLANTED)]
    needles |= {name: list(forms_of_count(count)) for name, count in counts_of(federation).items()}
    return needles


def secrets_needles(federation, wire):
    secrets = dict(wire.canaries)
    for site in federation.everyone:
        raw = federation.vault(site).read(IDENTITY)
        secrets[f"signing key of site {site}"] = raw[:32]
        secrets[f"static key of site {site}"] = raw[32:]
    secrets["consortium secret"] = federation.vault(0).read(CONSORTIUM_SECRET)
    return {name: list(forms_of(secret)) for name, secret in secrets.items()}


def model_needles(federation):
    (directory,) = federation.vault(VICTIM).path("runs").iterdir()
    model = RunFiles(federation.vault(VICTIM), bytes.fromhex(directory.name)).position().learner.model
    return {f"model parameter {index}": list(forms_of_number(value)) for index, value in enumerate(model.tolist())}


@pytest.fixture
def planted(founded):
    plant(founded)
    return founded


@pytest.fixture
def wire_of(run):
    """Run a federation with its wire tapped; also return the text of the error that ended it."""

    def start(federation, interfere=lambda reply: reply):
        taps = []

        def tap(grid):
            taps.append(Wire(grid, federation))
            return taps[0]

        try:
            text = repr(run(federation, interfere, wrap=tap))
        except FederationError as error:
            text = "".join(traceback.format_exception(error))
        return taps[0], text

    return start


def provider_holds(federation, wire, caplog, *texts):
    files = [path.read_bytes() for path in (federation.directory / "provider").rglob("*") if path.is_file()]
    logged = [f"{record.getMessage()} {record.exc_text}" for record in caplog.records]
    return [*wire.passed, *files, *(text.encode() for text in (*logged, *texts))]


def break_a_cell(federation, position):
    """Put a canary where a number is expected, so that the site must complain about it."""
    path = federation.vault(position).path(TABLE)
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([header, f"{PLANTED[0]!r}x,1,1,1", *rows]) + "\n")


def test_nothing_of_a_hospital_s_is_in_what_the_provider_holds(planted, wire_of, caplog):
    caplog.set_level(logging.DEBUG)
    break_a_cell(planted, 3)

    wire, result = wire_of(planted)

    needles = values_needles(planted) | secrets_needles(planted, wire) | model_needles(planted)
    holdings = provider_holds(planted, wire, caplog, result)
    assert found_in(holdings, needles) == []
    # a count in clear text would be a number by itself
    texts = [text.decode() for text in holdings[len(wire.passed) :] if text.isascii()]
    assert not set(counts_of(planted).values()) & set().union(*map(numbers_in, texts))
    # and the run was a whole one, with one site that complained about the canary in its table
    assert "finished" in (planted.directory / "provider" / "events.jsonl").read_text()
    assert any("data.csv, line 2" in record.getMessage() for record in caplog.records)
    assert len(wire.passed) > 50


def test_nothing_is_in_the_error_of_a_run_that_pauses(planted, wire_of, caplog):
    caplog.set_level(logging.DEBUG)

    def lose(reply):
        is_lost = (reply.metadata.message_type, reply.metadata.src_node_id) == (str(Request.UPLOAD), 102)
        return None if is_lost else reply

    wire, error = wire_of(planted, lose)

    assert RunPausedError.__name__ in error
    needles = values_needles(planted) | secrets_needles(planted, wire)
    assert found_in(provider_holds(planted, wire, caplog, error), needles) == []


def test_each_canary_is_found_where_it_may_be(planted, wire_of):
    wire, _ = wire_of(planted)
    own = [*wire.vaults, *(path.read_bytes() for path in planted.vault(VICTIM).directory.rglob("*") if path.is_file())]

    on_disk = set(found_in(own, values_needles(planted) | secrets_needles(planted, wire) | model_needles(planted)))

    assert {f"cell {number}" for number in PLANTED} <= on_disk
    assert {"epoch secret", "consortium secret", f"ephemeral key of site {VICTIM}"} <= on_disk
    assert {f"signing key of site {VICTIM}", f"static key of site {VICTIM}"} <= on_disk
    assert {f"state before round {number}" for number in (1, 2, 3, 4)} <= on_disk
    assert {f"model parameter {index}" for index in range(4)} <= on_disk
    assert any(name.startswith(f"contribution of site {VICTIM}") for name in on_disk)
    assert {"CKKS seed", "CKKS key", "digest of the CKKS key"} <= wire.canaries.keys()
    # other sites' secrets are not this site's
    assert not {"signing key of site 0", "ephemeral key of site 2", "contribution of site 3 as <i8"} & on_disk
    result = json.loads(planted.vault(VICTIM).read("result.json"))
    assert set(result["records"].values()) == set(counts_of(planted).values()) - {counts_of(planted)["records"]}


@pytest.mark.parametrize("form", range(6))
def test_every_form_of_a_secret_is_found(form):
    secret = bytes(range(200, 232))
    hidden = list(forms_of(secret))[form]
    whole = [
        secret,
        secret.hex().encode(),
        secret.hex().upper().encode(),
        *(base64.b64encode(b"\x55" * shift + secret + b"\x55" * 7) for shift in (0, 1, 2)),
    ]

    assert hidden in whole[form]
    assert found_in([b"before" + whole[form] + b"after"], {"it": list(forms_of(secret))}) == ["it"]


def test_with_encryption_and_masks_off_the_search_finds_the_contribution(planted, wire_of, monkeypatch):
    def do_not_encrypt(self, packed):
        residues = (packed % self._parameters.modulus).astype(np.uint32)
        return residues, bytes(64 * len(packed))

    monkeypatch.setattr(clients.secrets.ckks.Encryptor, "encrypt", do_not_encrypt)
    monkeypatch.setattr(clients.secrets.sealing, "mask_residues", lambda residues, *_, **__: residues)
    monkeypatch.setattr("clients.run.site.check_backend", lambda parameters: None)

    wire, _ = wire_of(planted)

    found = found_in(wire.passed, secrets_needles(planted, wire))
    assert f"contribution of site {VICTIM} as <i4" in found


def test_a_secret_that_is_sent_by_mistake_is_found(planted, wire_of, monkeypatch):
    secret = planted.member(VICTIM).consortium_secret.reveal()
    # so that it is the run card's public nonce
    monkeypatch.setattr(clients.run.opening, "os", SimpleNamespace(urandom=lambda length: secret[:length]))

    wire, _ = wire_of(planted)

    assert "consortium secret" in found_in(wire.passed, secrets_needles(planted, wire))
