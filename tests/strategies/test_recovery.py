"""Whatever drops comes back: sites that vanish, uploads that never come, a provider that starts again."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Error, Message

from clients.run.files import RunFiles
from clients.run.rounds import Rounds
from protocol.envelope import Request, pack_envelope, unpack_envelope
from protocol.errors import AgreementMismatchError, CohortError, DataError, RunPausedError
from protocol.handshake import Session
from protocol.notes import NoteKind, SiteNote
from scripts.simulation.twin import plaintext_models, run_cohorts
from server.record import RunRecord

EVERYBODY = ["hospital-1", "hospital-2", "hospital-3", "hospital-4"]
WITHOUT_THIRD = ["hospital-1", "hospital-2", "hospital-4"]
THIRD = 102


class StoppedError(Exception):
    """The provider's process has ended."""


def events(federation, name=None):
    lines = (federation.directory / "provider" / "events.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if name in (None, entry["event"])]


def cohorts(federation):
    return [entry["cohort"] for entry in events(federation, "round")]


def only_run(federation, position):
    (directory,) = federation.vault(position).path("runs").iterdir()
    return bytes.fromhex(directory.name)


def uploads(federation, position):
    return [entry for entry in federation.vault(position).lines("journal.jsonl") if "cohort" in entry]


def assert_like_the_twin(federation, *positions):
    twin = list(plaintext_models(federation.directory).values())
    for position in positions or federation.everyone:
        np.testing.assert_array_equal(federation.values(position), twin[position])


def silent_from(request, node, nth):
    """Lose all replies of a node from its nth to a request on."""
    seen = []

    def interfere(reply):
        if reply.metadata.src_node_id != node:
            return reply
        seen.append(reply.metadata.message_type == str(request))
        return None if sum(seen) > nth else reply

    return interfere


@pytest.fixture
def grid_with(grid_of, run):
    """Run a federation on a grid whose nodes can vanish; `at` is called with the grid and each reply."""

    def start(federation, at):
        grids = []

        def interfere(reply):
            return at(grids[0], reply)

        def keep(grid):
            grids.append(grid)
            return grid

        return run(federation, interfere, wrap=keep, patience_seconds=4)  # also on a busy machine

    return start


@pytest.mark.parametrize("new_node", [None, 302])
@pytest.mark.parametrize("request_", [Request.PREPARE, Request.UPLOAD])
def test_a_site_that_vanishes_is_back_in_a_later_round_at_whatever_node(grid_with, founded, request_, new_node):
    counts = {Request.PREPARE: 0, Request.UPLOAD: 0, Request.ANNOUNCE: 0}
    is_down = False

    def at(grid, reply):
        nonlocal is_down
        kind, node = Request(reply.metadata.message_type), reply.metadata.src_node_id
        if node == 100 and kind in counts:
            counts[kind] += 1
        if node == THIRD and not is_down and kind is request_ and counts[Request.PREPARE] == 2:
            is_down = True
            grid.take_down(THIRD)
            if request_ is Request.UPLOAD:  # its cohort waits for it
                grid.bring_back(THIRD, new_node)
            return None
        if is_down and node == 100 and kind is Request.UPLOAD and request_ is Request.PREPARE and THIRD in grid._down:
            grid.bring_back(THIRD, new_node)
        return reply

    grid_with(founded, at)

    expected = [EVERYBODY] * 4
    if request_ is Request.PREPARE:
        expected[1] = WITHOUT_THIRD
    assert cohorts(founded) == expected
    (returned,) = events(founded, "returned")
    assert returned["text"] == "hospital-3 is back, and stands before round 1"
    assert len(uploads(founded, 2)) == (3 if request_ is Request.PREPARE else 4)
    assert_like_the_twin(founded)


def away_for_rounds(grid, counts, *, until):
    """Take the third site down when round 1 is prepared, and bring it back when the first uploads for a round."""

    def at(reply):
        kind, node = Request(reply.metadata.message_type), reply.metadata.src_node_id
        counts[node, kind] += 1
        if node == THIRD and kind is Request.PREPARE and counts[node, kind] == 2:
            grid().take_down(THIRD)
            return None
        if node == 100 and kind is Request.UPLOAD and counts[node, kind] == until + 1:
            grid().bring_back(THIRD)
        return reply

    return at


@pytest.mark.parametrize("until", [4, 6])  # rounds: back in one of training, and in the evaluation, to close
def test_a_site_that_missed_more_than_a_message_holds_gets_it_in_parts(grid_with, found, founded, monkeypatch, until):
    monkeypatch.setattr("strategies.history._MOST_HISTORY_BYTES", 1)
    federation = found(replace(founded.experiment, strategy=replace(founded.experiment.strategy, rounds=5)))
    counts: Counter = Counter()
    grids = []

    def at(grid, reply):
        if not grids:
            grids.append(grid)
        return interfere(reply)

    interfere = away_for_rounds(lambda: grids[0], counts, until=until)
    grid_with(federation, at)

    assert counts[THIRD, Request.CATCH_UP] >= until - 2
    assert events(federation, "finished")[0]["closed"] == EVERYBODY
    assert EVERYBODY not in cohorts(federation)[1:until]
    assert_like_the_twin(federation)


def test_a_site_that_does_not_get_on_is_not_sent_the_same_for_ever(grid_with, found, founded, monkeypatch):
    monkeypatch.setattr("strategies.history._MOST_HISTORY_BYTES", 1)
    federation = found(replace(founded.experiment, strategy=replace(founded.experiment.strategy, rounds=4)))
    counts: Counter = Counter()
    grids = []

    def at(grid, reply):
        if not grids:
            grids.append(grid)
        if Request(reply.metadata.message_type) is Request.CATCH_UP:
            reply.content = pack_envelope({"round": bytes(4)})
        return interfere(reply)

    interfere = away_for_rounds(lambda: grids[0], counts, until=3)
    grid_with(federation, at)

    assert 1 <= counts[THIRD, Request.CATCH_UP] < 20
    assert events(federation, "finished")[0]["not_closed"] == ["hospital-3"]


def test_a_site_that_was_away_when_the_secret_was_handed_out_gets_it_later(grid_with, founded):
    is_down = False

    def at(grid, reply):
        nonlocal is_down
        kind, node = Request(reply.metadata.message_type), reply.metadata.src_node_id
        if node == THIRD and kind is Request.ANNOUNCE and not is_down:
            is_down = True
            grid.take_down(THIRD)
        if node == 100 and kind is Request.UPLOAD and THIRD in grid._down:
            grid.bring_back(THIRD)
        return reply

    grid_with(founded, at)

    assert cohorts(founded) == [WITHOUT_THIRD] * 4  # who is not in the statistics sum is in no later one
    assert events(founded, "finished")[0]["closed"] == EVERYBODY  # but reads all sums, and closes
    assert_like_the_twin(founded)


def test_a_site_that_cannot_upload_signs_that_nothing_left_and_the_others_go_on(run, founded, monkeypatch):
    handle_upload = Rounds.handle_upload

    def refuse_in_round_2(self, call):
        if self._membership.site == 2 and self._files.next_round() == 2:
            raise DataError("the disk is full")
        return handle_upload(self, call)

    monkeypatch.setattr(Rounds, "handle_upload", refuse_in_round_2)
    run(founded)

    assert cohorts(founded) == [EVERYBODY, EVERYBODY, WITHOUT_THIRD, EVERYBODY]
    (voided,) = events(founded, "voided")
    assert voided["text"] == "hospital-3 has signed that nothing of it left in round 2; the others go on without it"
    assert [entry["round"] for entry in uploads(founded, 0)] == [0, 1, 2, 2, 3]
    assert [entry["round"] for entry in uploads(founded, 2)] == [0, 1, 3]
    texts = [entry.get("text") for entry in founded.vault(0).lines("events.jsonl")]
    assert "hospital-3 has signed that nothing of it left in round 2; it goes on without it" in texts
    assert_like_the_twin(founded)


def test_nobody_signs_away_what_the_others_are_too_few_without_and_the_run_can_be_resumed(run, founded, monkeypatch):
    handle_upload = Rounds.handle_upload

    def refuse_in_round_1(self, call):
        if self._membership.site in {2, 3} and self._files.next_round() == 1:
            raise DataError("the disk is full")
        return handle_upload(self, call)

    monkeypatch.setattr(Rounds, "handle_upload", refuse_in_round_1)
    with pytest.raises(RunPausedError, match="not to be given up"):
        run(founded, patience_seconds=6)  # who refuses is asked again after a while
    assert len(events(founded, "voided")) == 1
    monkeypatch.undo()

    run(founded)

    (voided,) = events(founded, "voided")
    assert cohorts(founded)[1] == [name for name in EVERYBODY if name != voided["site"]]
    assert cohorts(founded)[2:] == [EVERYBODY] * 2
    assert_like_the_twin(founded)


@pytest.mark.parametrize("sites", [3, 4])
def test_a_refusal_that_is_over_in_a_moment_costs_nothing(run, found, founded, monkeypatch, sites):
    federation = found(replace(founded.experiment, federation=replace(founded.experiment.federation, sites=sites)))
    handle_upload, refused = Rounds.handle_upload, []

    def refuse_once(self, call):
        if self._membership.site == 2 and self._files.next_round() == 1 and not refused:
            refused.append(True)
            raise OSError(28, "No space left on device")
        return handle_upload(self, call)

    monkeypatch.setattr(Rounds, "handle_upload", refuse_once)
    run(federation, patience_seconds=6)

    assert refused
    assert events(federation, "voided") == []
    assert cohorts(federation) == [EVERYBODY[:sites]] * 4
    assert_like_the_twin(federation)


def test_a_site_whose_people_gave_up_another_s_upload_is_not_made_to_give_up_its_own(run, founded, monkeypatch):
    handle_upload = Rounds.handle_upload

    def decide_first(self, call):
        if self._membership.site == 0 and self._files.next_round() == 1:
            self.overrule(1, 2)
        return handle_upload(self, call)

    monkeypatch.setattr(Rounds, "handle_upload", decide_first)
    with pytest.raises(RunPausedError, match="hospital-1"):
        run(founded, silent_from(Request.UPLOAD, THIRD, 1))
    assert events(founded, "voided") == []
    monkeypatch.undo()
    for position in (1, 3):
        founded.site(position).overrule(only_run(founded, 0), 1, "hospital-3")

    run(founded, nodes=[100, 101, 103])

    assert cohorts(founded) == [EVERYBODY, WITHOUT_THIRD, WITHOUT_THIRD, WITHOUT_THIRD]
    assert_like_the_twin(founded, 0, 1, 3)


KEPT_IN_A_RUN = 4 + 3 * 4  # run, agreement, session, secrets; state, cohort and sum of each round


@pytest.mark.parametrize("step", range(KEPT_IN_A_RUN))
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_provider_that_ends_at_any_moment_goes_on_with_the_same_run(run, founded, monkeypatch, step, moment):
    keep, steps = RunRecord.keep, []

    def keep_or_end(self, name, data):
        steps.append(name)
        if len(steps) == step + 1 and moment == "before":
            raise StoppedError
        keep(self, name, data)
        if len(steps) == step + 1:
            raise StoppedError

    monkeypatch.setattr(RunRecord, "keep", keep_or_end)
    with pytest.raises(StoppedError):
        run(founded)

    run(founded)

    assert run_cohorts(founded.directory, founded.agreement) == [[0, 1, 2, 3]] * 4
    assert [len(uploads(founded, site)) for site in founded.everyone] == [4] * 4
    assert len({founded.values(site).tobytes() for site in founded.everyone}) == 1
    assert_like_the_twin(founded)


def test_a_provider_that_starts_again_while_a_site_is_away_keeps_the_named_cohort(run, founded):
    with pytest.raises(RunPausedError):
        run(founded, silent_from(Request.UPLOAD, THIRD, 1))
    assert cohorts(founded) == [EVERYBODY]
    with pytest.raises(RunPausedError):
        run(founded, nodes=[100, 101, 103])
    assert cohorts(founded) == [EVERYBODY]

    run(founded)

    assert cohorts(founded) == [EVERYBODY] * 4
    assert_like_the_twin(founded)


def test_a_run_is_not_gone_on_with_under_other_terms(run, founded):
    with pytest.raises(RunPausedError):
        run(founded, silent_from(Request.UPLOAD, THIRD, 1))
    founded.experiment = replace(founded.experiment, strategy=replace(founded.experiment.strategy, learning_rate=0.1))

    with pytest.raises(AgreementMismatchError, match="began with"):
        run(founded)


def test_people_give_up_the_upload_of_a_site_that_is_gone_and_the_others_go_on(run, founded):
    with pytest.raises(RunPausedError, match="cipherward site overrule"):
        run(founded, silent_from(Request.UPLOAD, THIRD, 1))
    run_id = only_run(founded, 0)
    for position in (0, 1):
        founded.site(position).overrule(run_id, 1, "hospital-3")
    with pytest.raises(RunPausedError, match="hospital-4"):  # whose people have not decided yet
        run(founded, nodes=[100, 101, 103])
    founded.site(3).overrule(run_id, 1, "hospital-3")

    run(founded, nodes=[100, 101, 103])

    assert cohorts(founded) == [EVERYBODY, WITHOUT_THIRD, WITHOUT_THIRD, WITHOUT_THIRD]
    assert events(founded, "finished")[0]["not_closed"] == ["hospital-3"]
    assert_like_the_twin(founded, 0, 1, 3)
    assert RunFiles(founded.vault(2), run_id).has_epoch()

    founded.site(2).overrule(run_id, 1, "hospital-3")  # it was found again: its own people agree, and it catches up
    run(founded)

    assert events(founded, "finished")[-1]["closed"] == EVERYBODY
    assert not RunFiles(founded.vault(2), run_id).has_epoch()
    assert_like_the_twin(founded)


def test_a_late_answer_of_an_earlier_round_does_no_harm(grid_with, founded):
    late = []

    def at(grid, reply):
        kind, node = Request(reply.metadata.message_type), reply.metadata.src_node_id
        if node == THIRD and kind is Request.PREPARE and not late:
            late.append(reply)
            return None
        if node == THIRD and kind is Request.PREPARE and len(late) == 1:
            late.append(reply)
            reply.content = late[0].content
        return reply

    grid_with(founded, at)

    assert cohorts(founded)[0] == WITHOUT_THIRD
    assert events(founded, "finished")[0]["states_identical"] is True
    assert_like_the_twin(founded)


def test_nobody_is_advised_to_give_up_a_site_that_has_decided_or_that_answers(run, founded, monkeypatch):
    with pytest.raises(RunPausedError, match="cipherward site overrule"):
        run(founded, silent_from(Request.UPLOAD, THIRD, 1))
    founded.site(0).overrule(only_run(founded, 0), 1, "hospital-3")

    with pytest.raises(RunPausedError) as caught:  # the third is back, and the first, whose update has left, is missing
        run(founded)

    assert "hospital-1 gave up hospital-3" in str(caught.value)
    assert "cipherward site overrule" not in str(caught.value)


def test_a_site_that_answers_is_not_to_be_given_up(run, founded, monkeypatch):
    def refuse(self, *_):
        raise DataError("no")

    with pytest.raises(RunPausedError):
        run(founded, silent_from(Request.UPLOAD, THIRD, 1))
    monkeypatch.setattr(Rounds, "handle_upload", refuse)

    with pytest.raises(RunPausedError, match="not to be given up"):
        run(founded)


def signed(federation, position, data, **changes):
    """Change a note, and sign it as its site."""
    agreement, run_id = federation.agreement, only_run(federation, position)
    session = Session.from_bytes(RunFiles(federation.vault(position), run_id).session(), agreement, run_id).digest
    kind = changes.get("kind", NoteKind.READY)
    note = replace(SiteNote.from_bytes(data, kind=kind, agreement=agreement, session=session), **changes)
    signature = federation.member(position).identity.sign(note.signed_bytes())
    return pack_envelope({"note": replace(note, signature=signature).to_bytes()})


def test_a_void_note_of_another_state_is_not_kept_and_harms_nobody_s_history(run, founded, monkeypatch):
    handle_upload = Rounds.handle_upload

    def refuse_in_round_1(self, call):
        if self._membership.site == 2 and self._files.next_round() == 1:
            raise DataError("the disk is full")
        return handle_upload(self, call)

    def lie(reply):
        if reply.metadata.message_type == str(Request.VOID):
            data = unpack_envelope(reply.content, ["note"])["note"]
            reply.content = signed(founded, 2, data, kind=NoteKind.VOID, state=bytes(32))
        return reply

    monkeypatch.setattr(Rounds, "handle_upload", refuse_in_round_1)
    with pytest.raises(RunPausedError):
        run(founded, lie)
    assert events(founded, "voided") == []

    run(founded)  # an honest note now

    assert cohorts(founded) == [EVERYBODY, WITHOUT_THIRD, EVERYBODY, EVERYBODY]


def test_one_site_that_lies_about_whom_it_gave_up_is_left_out_and_the_cohort_stays_what_it_was(run, founded):
    is_first = []

    def lie(reply):
        if reply.metadata.message_type == str(Request.PREPARE) and reply.metadata.src_node_id == 100:
            is_first.append(reply)
            if len(is_first) == 2:
                reply.content = signed(founded, 0, unpack_envelope(reply.content, ["note"])["note"], voided=(3,))
        return reply

    run(founded, lie, patience_seconds=4)

    assert cohorts(founded) == [EVERYBODY, ["hospital-2", "hospital-3", "hospital-4"], EVERYBODY, EVERYBODY]
    assert_like_the_twin(founded)


def test_a_reply_of_a_kind_that_nobody_asked_for_is_passed_over(run, founded):
    def make_up(reply):
        if reply.metadata.message_type == str(Request.PREPARE) and reply.metadata.src_node_id == THIRD:
            reply.metadata.__dict__["_message_type"] = "system"  # as Flower says of a message that has expired
        return reply

    run(founded, make_up)

    assert cohorts(founded) == [WITHOUT_THIRD] * 4
    assert events(founded, "no-answer")[0]["request"] == "system"


def test_a_contribution_that_a_power_cut_emptied_is_made_again(run, founded):
    with pytest.raises(RunPausedError):
        run(founded, silent_from(Request.UPLOAD, THIRD, 1))
    for position in founded.everyone:
        (pending,) = founded.vault(position).path("runs").glob("*/pending.safetensors")
        pending.write_bytes(b"")

    run(founded)

    assert cohorts(founded) == [EVERYBODY] * 4
    assert_like_the_twin(founded)


def test_a_round_whose_sites_are_all_gone_when_it_begins_waits_until_they_are_back(run, founded):
    prepared: Counter[int] = Counter()

    def lose_first_of_round_1(reply):
        node = reply.metadata.src_node_id
        prepared[node] += reply.metadata.message_type == str(Request.PREPARE)
        if reply.metadata.message_type == str(Request.PREPARE) and prepared[node] == 2:
            return Message(Error(code=5, reason="gone"), reply_to=reply)  # as Flower: of the SuperLink, not of the node
        return reply

    run(founded, lose_first_of_round_1, patience_seconds=20)

    assert [entry["code"] for entry in events(founded, "no-answer")] == [5] * 4
    assert events(founded, "absent")[0]["sites"] == EVERYBODY
    assert [entry["site"] for entry in events(founded, "returned")] == EVERYBODY
    assert cohorts(founded) == [EVERYBODY] * 4
    assert [len(uploads(founded, site)) for site in founded.everyone] == [4] * 4
    assert_like_the_twin(founded)


def test_a_round_that_too_many_sites_refuse_is_not_waited_for(run, founded, monkeypatch):
    handle_prepare = Rounds.handle_prepare

    def refuse_round_1(self, round_number, *rest):
        if round_number == 1 and self._membership.site < 2:
            raise DataError("no")
        return handle_prepare(self, round_number, *rest)

    monkeypatch.setattr(Rounds, "handle_prepare", refuse_round_1)
    started = time.monotonic()

    with pytest.raises(CohortError, match="sites ready for round 1"):
        run(founded, patience_seconds=120)

    assert time.monotonic() - started < 60
    monkeypatch.undo()
    run(founded)
    assert cohorts(founded) == [EVERYBODY] * 4


def test_a_site_that_cannot_catch_up_still_deletes_the_run_s_secrets(run, found, founded, monkeypatch):
    monkeypatch.setattr("strategies.history._MOST_HISTORY_BYTES", 1)
    federation = found(replace(founded.experiment, strategy=replace(founded.experiment.strategy, rounds=3)))
    federation.vault(3).path("data.csv").write_text("nothing that the schema knows\n")

    run(federation, patience_seconds=4)

    assert not RunFiles(federation.vault(3), only_run(federation, 3)).has_epoch()
    assert events(federation, "finished")[0]["not_closed"] == ["hospital-4"]
