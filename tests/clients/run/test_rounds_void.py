"""A site that signs that nothing of it left: from then on nothing does, and the others go on with exactly the rest."""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
from crash import killed_after
from recovery import files_of, read_note, read_sum, ready, signed_void, stand, sum_up, void

from clients.run.upload_journal import JOURNAL
from protocol.envelope import Request, pack_list
from protocol.errors import (
    AgreementMismatchError,
    CohortError,
    DataError,
    EpochMismatchError,
    MalformedError,
    ProtocolError,
    RoundMismatchError,
    SecondUploadError,
    SessionMismatchError,
    SignatureError,
    SiteMismatchError,
    StateMismatchError,
)
from protocol.notes import NoteKind
from protocol.packing import RoundKind

EVERYONE, THREE = (0, 1, 2, 3), (0, 1, 2)
ALL_FIVE = (0, 1, 2, 3, 4)


@pytest.fixture(scope="module")
def five_once(founded_once, tmp_path_factory):
    """Five sites, so that some cohorts without one of them are still large enough; round 1 is prepared."""
    experiment = founded_once.experiment
    five = replace(experiment, federation=replace(experiment.federation, sites=5))
    federation = type(founded_once).found(tmp_path_factory.mktemp("five") / "run", five)
    federation.open()
    federation.sums = [sum_up(federation, ALL_FIVE, [])]
    for site in ALL_FIVE:
        ready(federation, site, federation.sums)
    return federation


@pytest.fixture
def five(five_once, tmp_path):
    return five_once.copied_to(tmp_path / "five")


def journal_of(federation, site):
    return list(federation.vault(site).lines(JOURNAL))


def events_of(federation, site):
    return [entry["event"] for entry in federation.vault(site).lines("events.jsonl")]


# --- The promise --------------------------------------------------------------------------------------------------


def test_a_void_note_says_round_and_state_that_the_round_began_in(started):
    note = read_note(started, void(started, 3, 1), NoteKind.VOID)

    assert (note.site, note.round, note.voided) == (3, 1, ())
    assert note.state == ready(started, 0, started.sums).state
    assert stand(started, 3).state not in note.to_bytes()


def test_after_the_promise_nothing_leaves_in_that_round_for_any_cohort(started):
    void(started, 3, 1)

    for cohort in (EVERYONE, (1, 2, 3), (0, 1, 3)):
        for _ in range(2):  # each call loads the site anew from its vault
            with pytest.raises(SecondUploadError, match="given up"):
                started.upload(3, cohort)
        started.prepare(3, 1)
    assert not started.run_path(3).joinpath("upload.bin").exists()


def test_after_the_promise_nothing_leaves_when_another_site_is_given_up_too(five):
    void(five, 3, 1)

    ready(five, 3, [*five.sums, void(five, 4, 1)])

    for cohort in (ALL_FIVE, EVERYONE, (0, 1, 3)):
        with pytest.raises(SecondUploadError):
            five.upload(3, cohort)


def test_a_promise_about_the_statistics_binds_in_every_run_of_the_agreement(opened):
    # all runs of an agreement begin in one state: their sums of the same patients are sums of one round
    opened.prepare_all()
    void(opened, 3, 0)
    opened.run = os.urandom(16)
    opened.open()
    opened.prepare_all()

    with pytest.raises(SecondUploadError):
        opened.upload(3, EVERYONE)


def test_who_has_uploaded_in_one_run_goes_on_without_a_site_in_no_other(opened):
    # the state of its own that a given-up site makes must not open the way to a second run of the agreement
    first_run = opened.run
    opened.run = os.urandom(16)
    opened.open()
    second_run, opened.run = opened.run, first_run
    opened.prepare_all()
    for site in THREE:
        opened.upload(site, EVERYONE)
    opened.run = second_run
    note = void(opened, 3, 0)

    for site in THREE:
        ready(opened, site, [note])
        with pytest.raises(SecondUploadError, match="has begun already"):
            opened.upload(site, THREE, 0)


def test_what_has_left_cannot_be_denied(started):
    started.upload(3, EVERYONE)

    for _ in range(2):
        with pytest.raises(SecondUploadError, match="update for this round"):
            void(started, 3, 1)
    assert [entry for entry in journal_of(started, 3) if "void" in entry] == []


def test_what_has_left_cannot_be_denied_because_another_site_was_given_up(five):
    five.upload(3, ALL_FIVE)
    ready(five, 3, [*five.sums, void(five, 4, 1)])

    with pytest.raises(SecondUploadError, match="update for this round"):
        void(five, 3, 1)


def test_what_has_left_cannot_be_denied_although_its_bytes_are_lost(started):
    started.upload(3, EVERYONE)
    started.run_path(3).joinpath("upload.bin").unlink()

    with pytest.raises(SecondUploadError):
        void(started, 3, 1)


def test_the_note_is_the_same_however_often_it_is_asked_for(started):
    assert len({void(started, 3, 1) for _ in range(3)}) == 1
    assert len([entry for entry in journal_of(started, 3) if "void" in entry]) == 1
    assert events_of(started, 3).count("voided") == 1


def test_nothing_is_promised_that_would_leave_too_few_for_a_sum(founded_once, found):
    experiment = founded_once.experiment
    three = found(replace(experiment, federation=replace(experiment.federation, sites=3)))
    three.open()

    with pytest.raises(CohortError, match="at least 3, got 2"):
        void(three, 2, 0)
    assert [entry for entry in journal_of(three, 2) if "void" in entry] == []


@pytest.mark.parametrize("round_number", [0, 2, 3, 4, 2**32 - 1])
def test_a_promise_is_given_for_the_round_that_the_site_stands_before_alone(started, round_number):
    with pytest.raises(ProtocolError):
        void(started, 3, round_number)
    assert [entry for entry in journal_of(started, 3) if "void" in entry] == []


def test_after_the_last_sum_there_is_no_round_to_promise_anything_about(summed):
    # or the closing notes of one run could be made to differ
    with pytest.raises(MalformedError):
        ready(summed, 3, summed.sums)  # the last sum is applied, and there is nothing to prepare
    assert stand(summed, 3).round == 4

    with pytest.raises(MalformedError):
        void(summed, 3, 4)


def test_a_promise_about_no_round_does_not_make_the_closing_notes_differ(summed):
    for site in (0, 3):
        with pytest.raises(MalformedError):
            ready(summed, site, summed.sums)
    note = signed_void(summed, 3)

    with pytest.raises(MalformedError):
        summed.ask(0, Request.CLOSE, history=pack_list([*summed.sums, note]))

    closed = [read_note(summed, summed.close(site), NoteKind.CLOSED) for site in EVERYONE]
    assert len({note.state for note in closed}) == 1
    assert {note.voided for note in closed} == {()}


def promise(federation):
    return void(federation, 3, 1)


def upload(federation):
    return federation.upload(3, EVERYONE)


def is_granted(request, federation):
    try:
        request(federation)
    except SecondUploadError:
        return False
    return True


@pytest.mark.parametrize(("first", "second"), [(promise, upload), (upload, promise)])
def test_a_crash_anywhere_leaves_a_promise_or_an_update_and_never_both(started, tmp_path, first, second):
    outcomes = set()

    for operations in count():
        again = started.copied_to(tmp_path / f"crash-{operations}")
        with killed_after(operations) as death:
            first(again)
        granted = is_granted(second, again)
        assert is_granted(first, again) is not granted
        if not death.came:
            break
        outcomes.add(granted)

    assert not granted
    assert outcomes == {True, False}  # of the crashes, some came before the first request stood, some after


def break_the_tables(federation, site):
    federation.vault(site).write("data.csv", b"no table")
    copy = federation.run_path(site).joinpath("table.safetensors")
    if copy.exists():
        copy.write_bytes(b"no table either")


def test_a_site_whose_table_is_damaged_from_the_start_lets_the_others_go_on(opened):
    break_the_tables(opened, 3)
    with pytest.raises(DataError):
        opened.prepare(3, 0)

    note = void(opened, 3, 0)

    sum_up(opened, THREE, [note])


def test_a_site_whose_table_is_damaged_later_lets_the_others_go_on(started):
    break_the_tables(started, 3)

    note = void(started, 3, 1)

    sum_up(started, THREE, [*started.sums, note])


# --- The others ---------------------------------------------------------------------------------------------------


def test_the_others_go_on_without_the_site_and_all_end_in_one_state(started):
    for site in THREE:
        started.upload(site, EVERYONE)  # they wait for site 3
    note = void(started, 3, 1)

    history = [*started.sums, note]
    history.append(sum_up(started, THREE, history))

    notes = {site: ready(started, site, history) for site in EVERYONE}
    assert len({note.state for note in notes.values()}) == 1
    assert {note.voided for note in notes.values()} == {()}
    assert np.array_equal(stand(started, 0).learner.model, stand(started, 3).learner.model)
    history.append(sum_up(started, EVERYONE, history))  # and the site takes part again
    assert len({ready(started, site, history).state for site in EVERYONE}) == 1


def test_their_notes_say_whose_uploads_were_given_up(started):
    note = void(started, 3, 1)
    before = ready(started, 0, started.sums)

    after = ready(started, 0, [*started.sums, note])

    assert (before.voided, after.voided) == ((), (3,))
    assert before.state != after.state
    assert ready(started, 3, started.sums).state == after.state


def test_a_site_is_told_once_whom_it_goes_on_without(started):
    note = void(started, 3, 1)

    for _ in range(2):
        ready(started, 0, [*started.sums, note, note])

    assert events_of(started, 0).count("given-up") == 1


@pytest.mark.parametrize("other", [ALL_FIVE, (0, 1, 2), (0, 1, 3), (0, 2, 3), (0, 1, 2, 4), (0, 1, 4)], ids=str)
def test_who_has_uploaded_uploads_again_for_exactly_the_rest(five, other):
    # two sums then differ by the site that was given up, and by nothing else
    five.upload(0, ALL_FIVE)
    ready(five, 0, [*five.sums, void(five, 4, 1)])

    for _ in range(2):
        with pytest.raises(SecondUploadError, match="cohort for this round"):
            five.upload(0, other)
    five.upload(0, EVERYONE)
    with pytest.raises(SecondUploadError):
        five.upload(0, other)


def test_who_has_uploaded_for_some_uploads_again_for_those_alone(five):
    five.upload(0, EVERYONE)
    ready(five, 0, [*five.sums, void(five, 3, 1)])

    for other in ((0, 1, 2, 4), (0, 1, 4)):
        with pytest.raises(SecondUploadError, match="cohort for this round"):
            five.upload(0, other)
    five.upload(0, THREE)


def test_a_site_outside_the_cohort_is_given_up_without_a_change_of_the_cohort(five):
    five.upload(0, EVERYONE)
    ready(five, 0, [*five.sums, void(five, 4, 1)])

    five.upload(0, EVERYONE)
    with pytest.raises(SecondUploadError):
        five.upload(0, THREE)


def test_who_has_not_uploaded_uploads_for_no_cohort_with_the_site(five):
    ready(five, 0, [*five.sums, void(five, 4, 1)])

    for cohort in (ALL_FIVE, (0, 1, 4)):
        with pytest.raises(CohortError, match="among"):
            five.upload(0, cohort)
    five.upload(0, THREE)


def test_a_cohort_does_not_shrink_below_the_smallest(started):
    for site in (0, 1):
        started.upload(site, EVERYONE)
    notes = [void(started, site, 1) for site in (2, 3)]
    ready(started, 0, [*started.sums, *notes])

    with pytest.raises(CohortError, match="at least 3"):
        started.upload(0, (0, 1))


def test_the_order_of_two_void_notes_does_not_matter(five):
    notes = [void(five, site, 1) for site in (3, 4)]

    orders = (notes, notes[::-1], [*notes, notes[0]], notes)
    states = {ready(five, site, [*five.sums, *order]).state for site, order in zip(EVERYONE, orders, strict=True)}

    assert len(states) == 1
    assert stand(five, 0).voided == stand(five, 1).voided == (3, 4)
    sum_up(five, THREE, [*five.sums, *notes])


def test_two_sites_may_be_given_up_one_after_the_other(five):
    for site in EVERYONE:
        five.upload(site, ALL_FIVE)
    history = [*five.sums, void(five, 4, 1)]
    for site in THREE:
        ready(five, site, history)
        five.upload(site, EVERYONE)
    with pytest.raises(SecondUploadError):
        void(five, 3, 1)  # its update is in the first sum, were it ever completed

    assert len({ready(five, site, history).state for site in ALL_FIVE}) == 1
    sum_up(five, EVERYONE, history)


def test_a_site_that_missed_the_round_replays_note_and_sum(five):
    history = [*five.sums, void(five, 4, 1)]
    history.append(sum_up(five, THREE, history))

    states = {ready(five, site, history).state for site in ALL_FIVE}

    assert len(states) == 1
    assert len({stand(five, site).learner.shared_digest() for site in ALL_FIVE}) == 1


def test_the_sum_without_the_site_does_not_go_without_its_note(five):
    note = void(five, 4, 1)
    total = sum_up(five, THREE, [*five.sums, note])

    with pytest.raises(StateMismatchError):
        ready(five, 3, [*five.sums, total])
    with pytest.raises(StateMismatchError):
        ready(five, 3, [*five.sums, total, note])
    ready(five, 3, [*five.sums, note, total])


def test_a_note_for_a_round_that_is_summed_changes_nothing(started):
    late = signed_void(started, 3)
    history = [*started.sums, sum_up(started, EVERYONE, started.sums)]
    before = ready(started, 0, history)

    assert ready(started, 0, [history[0], history[1], late]) == before
    assert stand(started, 0).voided == ()


def test_a_round_s_promises_end_with_it(started):
    history = [*started.sums, void(started, 3, 1)]
    history.append(sum_up(started, THREE, history))
    for site in (0, 3):
        ready(started, site, history)

    assert stand(started, 3).voided == stand(started, 0).voided == ()
    started.upload(3, EVERYONE, 2)


# --- Notes that are none ------------------------------------------------------------------------------------------


def test_another_site_s_signature_is_no_promise(started):
    note = read_note(started, signed_void(started, 3), NoteKind.VOID)
    by_another = replace(note, signature=started.member(2).identity.sign(note.signed_bytes()))

    with pytest.raises(SignatureError):
        ready(started, 0, [*started.sums, by_another.to_bytes()])
    assert stand(started, 0).voided == ()


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"round": 2}, RoundMismatchError),
        ({"round": 3}, RoundMismatchError),
        ({"state": bytes(32)}, StateMismatchError),
        ({"session": bytes(32)}, SessionMismatchError),
        ({"agreement": bytes(32)}, AgreementMismatchError),
        ({"epoch": 2}, EpochMismatchError),
        ({"kind": NoteKind.READY}, MalformedError),
        ({"kind": NoteKind.CLOSED}, MalformedError),
    ],
    ids=str,
)
def test_a_promise_about_something_else_is_refused_and_changes_nothing(started, changes, error):
    before = started.run_path(0).joinpath("position.safetensors").read_bytes()

    with pytest.raises(error):
        ready(started, 0, [*started.sums, signed_void(started, 3, **changes)])

    assert started.run_path(0).joinpath("position.safetensors").read_bytes() == before
    started.upload(0, EVERYONE)


def test_a_promise_made_in_another_state_is_refused(started):
    # a site that was led aside says nothing about the others' round
    history = [*started.sums, void(started, 3, 1)]
    aside = read_note(started, signed_void(started, 2), NoteKind.VOID)
    state = ready(started, 0, history).state

    moved = replace(aside, state=state)  # the state after a note, not the one that the round began in
    signed = replace(moved, signature=started.member(2).identity.sign(moved.signed_bytes())).to_bytes()
    with pytest.raises(StateMismatchError):
        ready(started, 0, [*history, signed])


def test_a_site_that_cannot_be_in_a_sum_is_not_given_up(opened):
    history = [sum_up(opened, THREE, [])]
    note = read_note(opened, opened.prepare(3, 1, history))
    void_note = replace(note, kind=NoteKind.VOID)
    signed = replace(void_note, signature=opened.member(3).identity.sign(void_note.signed_bytes())).to_bytes()

    with pytest.raises(SiteMismatchError):
        ready(opened, 0, [*history, signed])
    assert stand(opened, 0).voided == ()


def test_a_site_that_knows_of_no_promise_of_its_own_does_not_believe_in_one(started):
    # its vault was put back, or its identity was copied: only its people can tell
    note = signed_void(started, 3)

    with pytest.raises(SiteMismatchError):
        ready(started, 3, [*started.sums, note])
    started.upload(3, EVERYONE)


# --- What the provider gains --------------------------------------------------------------------------------------


def test_a_site_that_breaks_its_promise_gives_away_its_own_update_and_nobody_else_s(started):
    plan = started.agreement.plan(RoundKind.TRAIN)
    own = {site: plan.unpack(files_of(started, site).pending(1).packed) for site in EVERYONE}
    with_all = sum_up(started, EVERYONE, started.sums)  # the provider keeps it to itself

    history = [*started.sums, signed_void(started, 3)]
    with_three = sum_up(started, THREE, history)

    first, second = read_sum(started, with_all), read_sum(started, with_three)
    shapes = started.agreement.terms.model.shared_shapes(len(started.agreement.terms.data.inputs))
    for name in shapes:
        assert np.array_equal(first[name], sum(own[site][name] for site in EVERYONE))
        assert np.array_equal(second[name], sum(own[site][name] for site in THREE))
        assert np.array_equal(first[name] - second[name], own[3][name])
    withheld = [field.name for field in plan.fields if field.name not in shapes]
    assert "weight" in withheld
    assert all(not second[name].any() for name in withheld)
    assert all(first[name].any() for name in ("weight", "records"))


def test_who_went_on_without_a_site_never_takes_the_sum_with_it(started):
    with_all = sum_up(started, EVERYONE, started.sums)
    ready(started, 0, [*started.sums, signed_void(started, 3)])

    with pytest.raises(ProtocolError):
        ready(started, 0, [*started.sums, with_all])


# --- Every kind of round ------------------------------------------------------------------------------------------


def test_a_site_that_voids_the_statistics_is_in_no_later_cohort_but_follows_the_run(opened):
    opened.prepare_all()
    for site in THREE:
        opened.upload(site, EVERYONE)
    history = [void(opened, 3, 0)]
    history.append(sum_up(opened, THREE, history))

    notes = [ready(opened, site, history) for site in EVERYONE]

    assert len({note.state for note in notes}) == 1
    assert {stand(opened, site).members for site in EVERYONE} == {THREE}
    for cohort in (EVERYONE, (1, 2, 3)):
        with pytest.raises(CohortError):
            opened.upload(3, cohort, 1)
    history.append(sum_up(opened, THREE, history))
    assert ready(opened, 3, history).state == ready(opened, 0, history).state


def test_the_statistics_without_a_site_are_those_of_the_others(opened):
    opened.prepare_all()
    plan = opened.agreement.plan(RoundKind.STATISTICS)
    own = {site: plan.unpack(files_of(opened, site).pending(0).packed) for site in EVERYONE}

    total = read_sum(opened, sum_up(opened, THREE, [void(opened, 3, 0)]))

    for name in total:
        assert np.array_equal(total[name], sum(own[site][name] for site in THREE))


def test_a_run_whose_last_round_lost_a_site_is_closed_by_all(started):
    history = list(started.sums)
    while len(history) < started.agreement.last_round:
        history.append(sum_up(started, EVERYONE, history))
    for site in EVERYONE:
        ready(started, site, history)
    history.append(void(started, 3, 3))
    history.append(sum_up(started, THREE, history))

    notes = [
        read_note(started, started.ask(site, Request.CLOSE, history=pack_list(history))["note"], NoteKind.CLOSED)
        for site in EVERYONE
    ]
    assert len({note.state for note in notes}) == 1
    assert {note.voided for note in notes} == {()}
