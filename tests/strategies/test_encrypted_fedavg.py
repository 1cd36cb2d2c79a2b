"""Whole runs of the strategy over the real ClientApp, and what becomes of them when a site does not play its part."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from clients.run.files import RunFiles
from clients.secrets.ckks import SecretKey
from protocol.envelope import Request, pack_envelope, pack_refusal, unpack_envelope
from protocol.errors import CohortError, RunPausedError, SecretMaterialError, StateMismatchError
from protocol.handshake import Session
from protocol.notes import NoteKind, SiteNote
from protocol.parameters import CkksParameters
from protocol.scratch_file import ScratchFile
from protocol.update import EncryptedAggregate
from scripts.simulation.twin import plaintext_models


def events(federation, name=None):
    lines = (federation.directory / "provider" / "events.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if name in (None, entry["event"])]


def kept_sums(federation):
    paths = sorted((federation.directory / "provider" / "sums").iterdir())
    return [EncryptedAggregate.from_bytes(path.read_bytes(), federation.agreement) for path in paths]


def on(request, *nodes, nth=None):
    """Say whether a reply is a node's to a request; `nth` counts each node's, from 0."""
    counts = dict.fromkeys(nodes, -1)

    def is_meant(reply):
        node = reply.metadata.src_node_id
        if reply.metadata.message_type != str(request) or node not in counts:
            return False
        counts[node] += 1
        return nth is None or counts[node] == nth

    return is_meant


def losing(is_meant):
    return lambda reply: None if is_meant(reply) else reply


def replacing(is_meant, content):
    def interfere(reply):
        if is_meant(reply):
            reply.content = content
        return reply

    return interfere


def only_run(federation, position):
    (directory,) = federation.vault(position).path("runs").iterdir()
    return bytes.fromhex(directory.name)


def names(*positions):
    return [f"hospital-{position + 1}" for position in positions]


def test_a_whole_run(run, founded):
    result = run(founded)

    rounds = events(founded, "round")
    assert [(entry["round"], entry["kind"]) for entry in rounds] == [
        (0, "statistics"),
        (1, "train"),
        (2, "train"),
        (3, "evaluate"),
    ]
    assert all(entry["cohort"] == names(0, 1, 2, 3) and entry["left_out"] == [] for entry in rounds)
    (finished,) = events(founded, "finished")
    assert (finished["closed"], finished["not_closed"]) == (names(0, 1, 2, 3), [])
    assert finished["states_identical"] is True
    assert len({founded.values(site).tobytes() for site in founded.everyone}) == 1
    assert (dict(result.arrays), result.train_metrics_clientapp) == ({}, {})
    assert result.evaluate_metrics_clientapp == result.evaluate_metrics_serverapp == {}


def test_sizes_in_the_record_are_those_on_the_wire(run, founded):
    run(founded)

    for entry in events(founded, "round"):
        kept = (founded.directory / f"provider/sums/round-{entry['round']:05d}.cwa").stat().st_size
        assert entry["down_bytes"] == kept
        assert entry["up_bytes"] > 2048 * 4
        assert set(entry["seconds"]) == {"ready", "upload", "aggregate", "total"}


def test_a_site_that_never_gets_ready_is_left_out_and_the_run_completes(run, founded):
    run(founded, losing(on(Request.PREPARE, 102)))

    assert [entry["cohort"] for entry in events(founded, "round")] == [names(0, 1, 3)] * 4
    assert [entry["left_out"] for entry in events(founded, "round")] == [names(2)] * 4
    (finished,) = events(founded, "finished")
    assert finished["closed"] == names(0, 1, 2, 3)  # the one that no sum contains closes too, and drops its secrets
    assert len({founded.values(site).tobytes() for site in founded.everyone}) == 1


def test_a_site_that_is_late_for_one_round_is_back_in_the_next_with_both_sums(run, founded):
    run(founded, replacing(on(Request.PREPARE, 102, nth=1), pack_refusal()), patience_seconds=4)

    assert [entry["cohort"] for entry in events(founded, "round")] == [
        names(0, 1, 2, 3),
        names(0, 1, 3),
        names(0, 1, 2, 3),
        names(0, 1, 2, 3),
    ]
    assert events(founded, "finished")[0]["states_identical"] is True
    assert len({founded.values(site).tobytes() for site in founded.everyone}) == 1
    for site, twin in enumerate(plaintext_models(founded.directory).values()):
        np.testing.assert_array_equal(founded.values(site), twin)


def test_a_smaller_cohort_goes_without_counts_and_metrics_which_the_difference_to_the_others_would_give_away(
    run, founded
):
    run(founded, replacing(on(Request.PREPARE, 102, nth=1), pack_refusal()), patience_seconds=4)

    lines = founded.vault(0).path("metrics.jsonl").read_text().splitlines()
    assert {entry["round"]: "federation_before_round" in entry for entry in map(json.loads, lines)} == {
        0: False,  # statistics
        1: False,  # without hospital-3
        2: True,
        3: True,
    }


def test_too_few_ready_sites_are_no_cohort(run, founded):
    with pytest.raises(CohortError, match="at least 3, got 2"):
        run(founded, losing(on(Request.PREPARE, 101, 102)))
    with pytest.raises(CohortError, match="sites ready for round 0"):
        run(founded, losing(on(Request.PREPARE, 100, 101, 102, 103)))
    assert events(founded, "round") == []


def test_with_fewer_nodes_than_the_smallest_cohort_it_says_so(run, founded):
    with pytest.raises(CohortError, match=r"connected nodes .*expected at least 3, got 2"):
        run(founded, nodes=[100, 103])


@pytest.mark.parametrize("kind", ["lost", "refused", "altered"])
def test_an_upload_that_does_not_come_is_asked_for_again_and_comes_in_the_same_bytes(run, founded, kind):
    is_meant, uploads = on(Request.UPLOAD, 102), []

    def interfere(reply):
        if not is_meant(reply):
            return reply
        update = bytearray(unpack_envelope(reply.content, ["update"])["update"])
        uploads.append(bytes(update))
        if len(uploads) != 2:
            return reply
        if kind == "lost":
            return None
        if kind == "refused":
            reply.content = pack_refusal()
        else:
            update[5000] ^= 1
            reply.content = pack_envelope({"update": bytes(update)})
        return reply

    run(founded, interfere, patience_seconds=4)

    assert uploads[1] == uploads[2]
    assert [entry["cohort"] for entry in events(founded, "round")] == [names(0, 1, 2, 3)] * 4
    assert events(founded, "waiting")[0]["text"].startswith("round 1 waits for the uploads of hospital-3, at most")
    assert {entry["next_round"] for entry in events(founded, "returned")} == {1}


def test_an_upload_that_never_comes_pauses_the_run_and_leaves_everything_as_it_is(run, founded):
    is_meant = on(Request.UPLOAD, 102)
    counted = []

    def interfere(reply):
        counted.append(is_meant(reply))
        return None if sum(counted) > 1 and counted[-1] else reply

    with pytest.raises(RunPausedError, match="hospital-3"):
        run(founded, interfere)

    (paused,) = events(founded, "paused")
    assert (paused["round"], paused["missing"]) == (1, names(2))
    assert [sum_.round for sum_ in kept_sums(founded)] == [0]
    assert events(founded, "finished") == []
    files = RunFiles(founded.vault(2), only_run(founded, 2))
    assert files.journal.uploaded(files.position().state) is not None  # the same bytes can still be fetched
    assert files.has_epoch()


def in_another_state(federation, kind, round_number):
    """Replace a note by one that its site signs in another state."""

    def replace_note(reply):
        position = reply.metadata.src_node_id - 100
        agreement, vault = federation.agreement, federation.vault(position)
        run = only_run(federation, position)
        note = SiteNote.from_bytes(
            unpack_envelope(reply.content, ["note"])["note"],
            kind=kind,
            agreement=agreement,
            session=Session.from_bytes(RunFiles(vault, run).session(), agreement, run).digest,
            round_number=round_number,
        )
        unsigned = replace(note, state=bytes(32))
        signature = federation.member(position).identity.sign(unsigned.signed_bytes())
        reply.content = pack_envelope({"note": replace(unsigned, signature=signature).to_bytes()})
        return reply

    return replace_note


def test_a_site_in_another_state_is_left_out(run, founded):
    is_meant, replace_note = on(Request.PREPARE, 103, nth=2), in_another_state(founded, NoteKind.READY, 2)

    run(founded, lambda reply: replace_note(reply) if is_meant(reply) else reply)

    cohorts = [entry["cohort"] for entry in events(founded, "round")]
    assert cohorts[1:3] == [names(0, 1, 2, 3), names(0, 1, 2)]
    (differ,) = events(founded, "states-differ")
    assert (differ["round"], differ["agreeing"], differ["differing"]) == (2, names(0, 1, 2), names(3))


def test_sites_that_end_in_different_states_are_an_error(run, founded):
    is_meant, replace_note = on(Request.CLOSE, 103), in_another_state(founded, NoteKind.CLOSED, 4)

    with pytest.raises(StateMismatchError, match="final states"):
        run(founded, lambda reply: replace_note(reply) if is_meant(reply) else reply)
    assert [entry["differing"] for entry in events(founded, "states-differ")] == [names(3)]
    assert events(founded, "finished") == []


def test_a_note_from_another_site_s_node_does_not_count(run, founded):
    first, second = on(Request.PREPARE, 100, nth=0), on(Request.PREPARE, 101, nth=0)
    notes = []

    def give_the_first_note_twice(reply):
        if first(reply):
            notes.append(reply.content)
        if second(reply):
            (reply.content,) = notes
        return reply

    run(founded, give_the_first_note_twice)

    assert events(founded, "round")[0]["cohort"] == names(0, 2, 3)
    (refused,) = events(founded, "refused")
    assert refused["reason"] == "site of this node: expected 1, got 0"


def saved_secret_key():
    with ScratchFile() as scratch:
        SecretKey.from_seed(bytes(64), CkksParameters(ring_degree=2048, modulus_bits=32, sites=3))._key.save(
            scratch.path
        )
        return scratch.read()


def test_secret_material_in_a_reply_stops_the_run(run, founded):
    with pytest.raises(SecretMaterialError):
        run(founded, replacing(on(Request.UPLOAD, 101), pack_envelope({"update": saved_secret_key()})))

    assert not (founded.directory / "provider" / "sums").exists()


def test_the_provider_s_record_has_no_fields_but_public_ones(run, founded):
    run(founded)

    public = {"time", "event", "round", "kind", "sites", "rounds", "cohort", "left_out", "closed", "not_closed"}
    public |= {"up_bytes", "down_bytes", "bytes", "seconds", "sha256", "states_identical"}
    assert {key for entry in events(founded) for key in entry} == public
