"""The hospital's ClientApp: whatever goes wrong inside, the provider is told one and the same thing."""

from __future__ import annotations

import errno
import json
import logging
from dataclasses import replace

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.serde import recorddict_to_proto

import clients.app
import conf
from clients.run.code import code_digest
from clients.run.membership import AGREEMENT, PIN
from conf.run_directory import RUN_DIRECTORY_VARIABLE
from protocol.agreement import Agreement
from protocol.data_terms import ColumnTerms
from protocol.envelope import ANSWER_PARTS, Request, pack_envelope, pack_list, pack_refusal, unpack_envelope
from protocol.errors import PeerRefusedError
from scripts.simulation.in_process import InProcessGrid

RUN = bytes(16)


def bytes_of(content):
    return recorddict_to_proto(content).SerializeToString(deterministic=True)


REFUSAL = bytes_of(pack_refusal())


@pytest.fixture
def node(founded, monkeypatch):
    """One hospital's node: send a request or any content, get the reply's content."""
    monkeypatch.setenv(RUN_DIRECTORY_VARIABLE, str(founded.directory))

    def send(request=Request.ANNOUNCE, content=None, *, run_config=None, node_config=None, **parts):
        config = {"hydra": conf.to_yaml(founded.experiment)} if run_config is None else run_config
        grid = InProcessGrid(clients.app.app, {101: node_config or {"partition-id": 1}}, config)
        content = pack_envelope({"run": RUN, **parts}) if content is None else content
        (reply,) = grid.send_and_receive([Message(content, dst_node_id=101, message_type=request)])
        assert not reply.has_error()
        return reply.content

    return send


def refusals(federation, position=1):
    entries = federation.vault(position).lines("events.jsonl")
    return [entry for entry in entries if entry["event"] == "refused"]


def test_a_request_is_answered(node, founded):
    answer = unpack_envelope(node(), ANSWER_PARTS[Request.ANNOUNCE])

    assert answer["agreement"] == founded.agreement.to_bytes()
    assert not founded.vault(1).has("events.jsonl")


def break_the_table(founded, monkeypatch):
    founded.open()
    table = founded.vault(1).path("data.csv")
    table.write_text(table.read_text().replace("\n", "\n987654.25x,1,1,1\n", 1))
    return {"request": Request.PREPARE, "run": founded.run, "round": bytes(4), "history": pack_list([])}


def break_the_code(founded, monkeypatch):
    def fail(*arguments):
        raise ZeroDivisionError("987654.25")

    monkeypatch.setattr("clients.run.site.Site.handle", fail)
    return {}


def fill_the_disk(founded, monkeypatch):
    def fail(*arguments, **options):
        raise OSError("987654.25: no space left on device")

    monkeypatch.setattr("clients.secrets.vault.Vault.write", fail)
    monkeypatch.setattr("clients.secrets.vault.Vault.append", fail)
    return {}


CAUSES = {
    "another run": lambda founded, _: {"request": Request.UPLOAD, "call": b"CWC1"},
    "a malformed message": lambda founded, _: {"request": Request.ENTRUST, "session": b"987654.25"},
    "an empty message": lambda founded, _: {"content": RecordDict()},
    "a part too many": lambda founded, _: {"session": b""},
    "a refusal": lambda founded, _: {"content": pack_refusal()},
    "a short run id": lambda founded, _: {"run": b"x"},
    "an edited agreement": lambda founded, _: founded.vault(1).write(AGREEMENT, b"{}") or {},
    "a missing secret": lambda founded, _: founded.vault(1).delete("identity.secret") or {},
    "a run config that is none": lambda founded, _: {"run_config": {"hydra": "[987654.25]"}},
    "a hostile run config": lambda founded, _: {"run_config": {"hydra": "data: ${oc.env:HOME}"}},
    "an unknown node": lambda founded, _: {"node_config": {"partition-id": 99}},
    "a node without a number": lambda founded, _: {"node_config": {"name": "987654.25"}},
    "a broken table": break_the_table,
    "an error in the code": break_the_code,
    "a full disk": fill_the_disk,
}


@pytest.mark.parametrize("cause", CAUSES.values(), ids=CAUSES)
def test_every_cause_gives_the_same_refusal_to_the_byte(node, founded, monkeypatch, cause):
    content = node(**cause(founded, monkeypatch))

    assert bytes_of(content) == REFUSAL
    with pytest.raises(PeerRefusedError):
        unpack_envelope(content, [])


@pytest.mark.parametrize("cause", CAUSES.values(), ids=CAUSES)
def test_the_site_s_own_log_names_no_value(node, founded, monkeypatch, caplog, cause):
    node(**cause(founded, monkeypatch))

    log = founded.vault(1).path("events.jsonl")
    assert "987654" not in (log.read_text() if log.exists() else "")
    assert "refused" in caplog.text
    for record in caplog.records:
        if record.name.startswith("flwr.cipherward"):
            assert "987654" not in record.getMessage()


def test_the_site_s_own_people_are_told_expected_and_got(node, founded, caplog):
    founded.open()
    node(Request.PREPARE, run=founded.run, round=(7).to_bytes(4, "little"), history=pack_list([]))

    (entry,) = refusals(founded)
    assert entry["request"] == "train.prepare"
    assert entry["error"] == "RoundMismatchError"
    assert entry["reason"] == "round: expected 0, got 7"
    assert "round: expected 0, got 7" in caplog.text


def test_a_full_disk_is_told_in_the_system_s_words_without_a_path(node, founded, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "987654.25", "987654.25.csv")

    monkeypatch.setattr("clients.secrets.vault.Vault.write", fail)

    node(Request.ANNOUNCE, run=founded.run)

    (entry,) = refusals(founded)
    assert (entry["error"], entry["reason"]) == ("OSError", "No space left on device")
    assert "987654.25" not in str(entry)


def test_an_unexpected_error_is_told_by_its_place_alone(node, founded, monkeypatch):
    node(**break_the_code(founded, monkeypatch))

    (entry,) = refusals(founded)
    assert (entry["error"], entry["reason"]) == ("ZeroDivisionError", "unexpected; see where")
    assert entry["where"].startswith("test_app.py:")
    assert "answering.py" in entry["where"]


@pytest.mark.parametrize(
    "change",
    [
        {"strategy": {"rounds": 3}},
        {"strategy": {"clip": 1e6}},
        {"strategy": {"seed": 1}},
        {"crypto": {"value_bits": 8}},
        {"data": {"fold": 1}},
        {"data": {"columns": (ColumnTerms(name="mean radius", centre=14.0, scale=4.0),)}},
        {"data": {"smallest_count": 1}},
        {"privacy": {"smallest_cell": 1}},
        {"privacy": {"smallest_events": 1}},
        {"model": {"kind": "mlp", "hidden": (4,)}},
    ],
    ids=str,
)
def test_a_run_config_that_differs_from_the_pinned_agreement_is_refused(node, founded, change):
    ((group, fields),) = change.items()
    changed = replace(founded.experiment, **{group: replace(getattr(founded.experiment, group), **fields)})

    content = node(run_config={"hydra": conf.to_yaml(changed)})

    assert bytes_of(content) == REFUSAL
    (entry,) = refusals(founded)
    assert "not what this site's agreement fixes" in entry["reason"]
    assert not founded.vault(1).path("runs").exists()


def test_a_smaller_cohort_than_agreed_is_refused(node, founded):
    federation = founded.experiment.federation
    cohort = replace(federation.cohort, tolerated_colluders=0, smallest_cohort=2)
    changed = replace(founded.experiment, federation=replace(federation, cohort=cohort))

    assert bytes_of(node(run_config={"hydra": conf.to_yaml(changed)})) == REFUSAL


def test_what_the_agreement_does_not_fix_may_differ(node, founded):
    changed = replace(founded.experiment, federation=replace(founded.experiment.federation, join_seconds=7.0))

    unpack_envelope(node(run_config={"hydra": conf.to_yaml(changed)}), ANSWER_PARTS[Request.ANNOUNCE])


@pytest.mark.parametrize(
    ("old", "new", "is_pinned"),
    [
        (b'"rounds":2', b'"rounds":3', False),
        (code_digest().encode(), b"0" * 64, False),
        (code_digest().encode(), b"0" * 64, True),
    ],
    ids=["edited terms", "edited code digest", "pinned for other code"],
)
def test_an_agreement_that_is_not_the_pinned_one_or_not_for_this_code_is_refused(node, founded, old, new, is_pinned):
    vault = founded.vault(1)
    edited = vault.read(AGREEMENT).replace(old, new)
    assert edited != vault.read(AGREEMENT)
    vault.write(AGREEMENT, edited)
    if is_pinned:
        vault.write(PIN, Agreement.from_bytes(edited).digest.hex().encode())

    assert bytes_of(node()) == REFUSAL
    (entry,) = refusals(founded)
    assert entry["error"] == "ConfigurationError"


def test_an_edited_pin_is_refused(node, founded):
    founded.vault(1).write(PIN, bytes(64))

    assert bytes_of(node()) == REFUSAL
    assert "pinned" in refusals(founded)[0]["reason"]


def test_bytes_of_another_kind_are_refused(node, founded):
    # what Flower would hand to a deserialiser, we do not
    pickled = ArrayRecord({"run": Array("float32", (2,), "numpy.ndarray", b"\x80\x04anything")})
    content = RecordDict({"parts": pickled, "status": ConfigRecord({"status": "done"})})

    assert bytes_of(node(content=content)) == REFUSAL


def test_the_log_is_one_json_line_per_refusal(node, founded):
    for _ in range(3):
        node(content=RecordDict())

    lines = founded.vault(1).path("events.jsonl").read_text().splitlines()
    assert [json.loads(line)["error"] for line in lines] == ["MalformedError"] * 3


def test_every_request_of_the_protocol_has_a_handler(node, founded, caplog):
    caplog.set_level(logging.ERROR)
    for request in Request:
        assert bytes_of(node(request, content=RecordDict())) == REFUSAL
    assert [entry["request"] for entry in refusals(founded)] == [str(request) for request in Request]
