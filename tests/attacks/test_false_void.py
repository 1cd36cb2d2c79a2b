"""A site signs that nothing of it has left, and something has; or a void note is forged, replayed, or told to some.

Who: the provider, and one site that signs what it likes (an insider, which decrypts for it as well). Want: a second sum
of one round, over other sites than the first: the difference is an honest site's update.
Answer: who has uploaded for a cohort uploads for exactly that cohort without the sites that were given up since
(`Rounds._check_cohort`), in the run in which it did, so two sums differ by what was given up and by nothing else; an
honest site never signs "void" after an upload and never uploads after it signed (`Rounds.handle_void`,
`UploadJournal.has_voided`). Notes are signed for agreement, session, epoch, round and state; and sites that were told
of other notes are in other states, whose masks do not cancel.
"""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
from coalition import (
    LEAST_LIKELY,
    Insider,
    call_parts,
    collect,
    journal,
    model_fields,
    open_again,
    prepare_parts,
    refusal,
    stands_at,
    truth,
    uniform_noise_p,
    void_parts,
)
from forgery import patients

from clients.run.rounds import Rounds
from clients.run.upload_journal import UploadJournal
from protocol.agreement import SiteCard
from protocol.envelope import Request
from protocol.errors import ResidualError
from protocol.notes import NoteKind, SiteNote
from protocol.packing import RoundKind
from protocol.state import initial_state, voided_state
from protocol.update import SealedUpdate

HONEST, VICTIM, INSIDER = (0, 1, 2), 3, 4
EVERYONE, WITHOUT_INSIDER, WITHOUT_BOTH = (0, 1, 2, 3, 4), (0, 1, 2, 3), (0, 1, 2)


@pytest.fixture(scope="module")
def consortium_once(founded_once, tmp_path_factory):
    experiment = founded_once.experiment
    federation = type(founded_once).found(
        tmp_path_factory.mktemp("five") / "run",
        replace(experiment, federation=replace(experiment.federation, sites=len(EVERYONE))),
    )
    federation.open()
    federation.prepare_all()
    federation.sum_up()
    federation.prepare_all()
    return federation


@pytest.fixture
def consortium(consortium_once, tmp_path):
    """Five hospitals that tolerate one colluder, with round 1 prepared; cohorts of three and more are allowed."""
    return consortium_once.copied_to(tmp_path / "five")


def tell(federation, note: bytes, sites, round_number: int = 1) -> None:
    """Bring sites a void note."""
    for site in sites:
        federation.prepare(site, round_number, [note])


def cohort_of_any(patch) -> None:
    """Have sites upload for any cohort that the agreement allows, once per state."""
    patch.setattr(
        Rounds, "_check_cohort", lambda self, cohort, position: self._agreement.check_cohort(cohort, members=EVERYONE)
    )


# a site uploads, and says that it has not


def test_without_the_rule_for_cohorts_a_false_void_gives_the_victim_s_update(consortium, monkeypatch):
    cohort_of_any(monkeypatch)
    insider, secret, own = Insider(consortium, INSIDER), truth(consortium, VICTIM), truth(consortium, INSIDER)
    first = insider.read_sum(collect(consortium, EVERYONE))

    tell(consortium, insider.void_note(1, stands_at(consortium, INSIDER)[1]), WITHOUT_INSIDER)
    second = insider.read_sum(collect(consortium, WITHOUT_BOTH))

    stolen = model_fields(consortium.agreement, 1, first - second - own)
    assert stolen == model_fields(consortium.agreement, 1, secret)
    assert any(stolen["output.weight"])


def test_sites_that_uploaded_upload_for_the_same_cohort_without_the_void_site_and_for_no_other(consortium, grid_of):
    insider, grid = Insider(consortium, INSIDER), grid_of(consortium)
    first = insider.read_sum(collect(consortium, EVERYONE))
    tell(consortium, insider.void_note(1, stands_at(consortium, INSIDER)[1]), WITHOUT_INSIDER)

    for site in HONEST:
        for cohort in (WITHOUT_BOTH, (0, 1, 2, 4), EVERYONE):
            assert refusal(grid, consortium, site, Request.UPLOAD, **call_parts(1, cohort)) == "SecondUploadError"
    second = insider.read_sum(collect(consortium, WITHOUT_INSIDER))

    # all that the second sum adds is what the insider had itself
    assert model_fields(consortium.agreement, 1, first - second) == model_fields(
        consortium.agreement, 1, truth(consortium, INSIDER)
    )


def test_nor_may_a_site_that_was_not_in_the_first_cohort_be_added_in_the_place_of_the_void_one(consortium, grid_of):
    insider, grid = Insider(consortium, INSIDER), grid_of(consortium)
    collect(consortium, (0, 1, 2, 4))
    tell(consortium, insider.void_note(1, stands_at(consortium, INSIDER)[1]), WITHOUT_INSIDER)

    for site in HONEST:
        assert refusal(grid, consortium, site, Request.UPLOAD, **call_parts(1, WITHOUT_INSIDER)) == "SecondUploadError"
    assert len(collect(consortium, WITHOUT_BOTH))


# an honest site is asked for both


def test_if_a_site_signed_void_after_its_upload_the_difference_would_be_its_update(consortium, monkeypatch):
    insider, secret = Insider(consortium, INSIDER), truth(consortium, VICTIM)
    first = insider.read_sum(collect(consortium, EVERYONE))
    with monkeypatch.context() as patch:
        patch.setattr(UploadJournal, "first_cohort", lambda self, state: None)
        note = consortium.ask(VICTIM, Request.VOID, **void_parts(1))["note"]

    tell(consortium, note, (*HONEST, INSIDER))
    second = insider.read_sum(collect(consortium, (*HONEST, INSIDER)))

    assert model_fields(consortium.agreement, 1, first - second) == model_fields(consortium.agreement, 1, secret)


def test_if_a_site_uploaded_after_its_void_the_difference_would_be_its_update(consortium, monkeypatch):
    insider, secret = Insider(consortium, INSIDER), truth(consortium, VICTIM)
    note = consortium.ask(VICTIM, Request.VOID, **void_parts(1))["note"]
    with monkeypatch.context() as patch:
        patch.setattr(UploadJournal, "has_voided", lambda self, state: False)
        first = insider.read_sum(collect(consortium, EVERYONE))

    tell(consortium, note, (*HONEST, INSIDER))
    second = insider.read_sum(collect(consortium, (*HONEST, INSIDER)))

    assert model_fields(consortium.agreement, 1, first - second) == model_fields(consortium.agreement, 1, secret)


@pytest.mark.parametrize("first", [EVERYONE, (0, 1, 3)])
def test_a_site_that_uploaded_signs_no_void(consortium, grid_of, first):
    consortium.upload(VICTIM, first)
    left = journal(consortium, VICTIM)

    assert refusal(grid_of(consortium), consortium, VICTIM, Request.VOID, **void_parts(1)) == "SecondUploadError"

    assert journal(consortium, VICTIM) == left


def test_nor_after_it_was_told_of_another_s_void(consortium, grid_of):
    # its upload left in the state before that
    insider, grid = Insider(consortium, INSIDER), grid_of(consortium)
    consortium.upload(VICTIM, EVERYONE)
    tell(consortium, insider.void_note(1, stands_at(consortium, INSIDER)[1]), [VICTIM])

    assert refusal(grid, consortium, VICTIM, Request.VOID, **void_parts(1)) == "SecondUploadError"


def test_a_site_that_signed_void_uploads_nothing_in_that_round_whatever_it_is_told(consortium, grid_of):
    insider, grid = Insider(consortium, INSIDER), grid_of(consortium)
    note = consortium.ask(VICTIM, Request.VOID, **void_parts(1))["note"]
    assert consortium.ask(VICTIM, Request.VOID, **void_parts(1))["note"] == note
    of_insider = insider.void_note(1, stands_at(consortium, INSIDER)[1])

    for history in ([], [note], [of_insider]):
        consortium.prepare(VICTIM, 1, history)
        for cohort in (EVERYONE, WITHOUT_INSIDER):
            assert refusal(grid, consortium, VICTIM, Request.UPLOAD, **call_parts(1, cohort)) == "SecondUploadError"
    assert journal(consortium, VICTIM).count(b"\n") == 2  # the statistics, and the promise


# notes that are not what they say


def changed(note: bytes, federation, **fields: object) -> SiteNote:
    """Return a note of the insider's with fields changed, as the provider can."""
    parsed = SiteNote.from_bytes(
        note, kind=NoteKind.VOID, agreement=federation.agreement, session=federation.parsed_session().digest
    )
    return replace(parsed, **fields)


def forged(federation, insider, state):
    """Sign in the victim's name with the insider's key."""
    note = changed(insider.void_note(1, state), federation, site=VICTIM)
    return replace(note, signature=insider.identity.sign(note.signed_bytes())).to_bytes()


def of_another_kind(federation, insider, state):
    """Say "void" with the signature of the victim's "ready"."""
    ready = SiteNote.from_bytes(
        federation.prepare(VICTIM, 1),
        kind=NoteKind.READY,
        agreement=federation.agreement,
        session=federation.parsed_session().digest,
    )
    return replace(ready, kind=NoteKind.VOID).to_bytes()


def of_another_round(federation, insider, state):
    """Say that the promise that the victim gave for the statistics is one for this round."""
    return changed(insider.void_note(0, state), federation, round=1).to_bytes()


def of_a_round_to_come(federation, insider, state):
    return insider.void_note(2, state)


def of_another_state(federation, insider, state):
    """A note of the same round in another course of the run."""
    return insider.void_note(1, voided_state(state, (INSIDER,)))


def of_another_session(federation, insider, state):
    """A note of the agreement's other run."""
    return insider.void_note(1, state, session=os.urandom(32))


def of_a_stranger(federation, insider, state):
    """A note of a site that the roster does not have."""
    note = changed(insider.void_note(1, state), federation, site=len(EVERYONE))
    return replace(note, signature=insider.identity.sign(note.signed_bytes())).to_bytes()


def that_says_ready(federation, insider, state):
    return federation.prepare(VICTIM, 1)


FALSE_NOTES = {
    forged: "SignatureError",
    of_another_kind: "SignatureError",
    of_another_round: "SignatureError",
    of_a_round_to_come: "RoundMismatchError",
    of_another_state: "StateMismatchError",
    of_another_session: "SessionMismatchError",
    of_a_stranger: "SiteMismatchError",
    that_says_ready: "MalformedError",
}


@pytest.mark.parametrize("make", FALSE_NOTES, ids=lambda make: make.__name__)
def test_a_note_that_is_not_of_its_site_session_round_and_state_is_refused(consortium, grid_of, make):
    insider, state = Insider(consortium, INSIDER), stands_at(consortium, INSIDER)[1]
    note, grid = make(consortium, insider, state), grid_of(consortium)

    for site in HONEST:
        assert refusal(grid, consortium, site, Request.PREPARE, **prepare_parts(1, [note])) == FALSE_NOTES[make]
        assert stands_at(consortium, site) == (1, state)
    assert len(collect(consortium, EVERYONE))  # the round goes on as if nothing had come


def test_an_old_note_changes_nothing(consortium):
    insider = Insider(consortium, INSIDER)
    old = insider.void_note(0, stands_at(consortium, INSIDER)[1])
    before = {site: stands_at(consortium, site) for site in HONEST}

    tell(consortium, old, HONEST)

    assert {site: stands_at(consortium, site) for site in HONEST} == before
    assert len(collect(consortium, EVERYONE))


def test_a_site_takes_no_note_of_its_own_that_it_has_not_signed(consortium, grid_of, monkeypatch):
    insider, state = Insider(consortium, INSIDER), stands_at(consortium, INSIDER)[1]
    note = replace(changed(insider.void_note(1, state), consortium), site=VICTIM).to_bytes()
    monkeypatch.setattr(SiteCard, "verify", lambda *_: None)  # were its signing key known

    parts = prepare_parts(1, [note])
    assert refusal(grid_of(consortium), consortium, VICTIM, Request.PREPARE, **parts) == "SiteMismatchError"


def test_without_signatures_a_note_that_nobody_signed_gives_the_victim_s_update(consortium, monkeypatch):
    monkeypatch.setattr(SiteCard, "verify", lambda *_: None)
    insider, secret = Insider(consortium, INSIDER), truth(consortium, VICTIM)
    first = insider.read_sum(collect(consortium, EVERYONE))

    tell(consortium, forged(consortium, insider, stands_at(consortium, INSIDER)[1]), (*HONEST, INSIDER))
    second = insider.read_sum(collect(consortium, (*HONEST, INSIDER)))

    assert model_fields(consortium.agreement, 1, first - second) == model_fields(consortium.agreement, 1, secret)


# some sites are told, and others are not


def mixture(federation):
    """Have half of the sites told; return the updates of all for one cohort, and what they should add up to."""
    insider, state = Insider(federation, INSIDER), stands_at(federation, INSIDER)[1]
    tell(federation, insider.void_note(1, state), HONEST[:2])
    updates = []
    for site in WITHOUT_INSIDER:
        terms = insider.terms(1, WITHOUT_INSIDER, stands_in(federation, site))
        updates.append(SealedUpdate.from_bytes(federation.upload(site, WITHOUT_INSIDER), terms))
    return insider, updates, sum(truth(federation, site) for site in WITHOUT_INSIDER)


def stands_in(federation, site: int) -> bytes:
    """Return the state that a site uploads in."""
    return Insider(federation, site).files.position().upload_state


def test_if_the_state_did_not_tell_who_was_given_up_sites_that_know_less_would_sum_with_the_others(
    consortium, monkeypatch
):
    monkeypatch.setattr("clients.run.files.voided_state", lambda state, voided: state)
    insider, updates, whole = mixture(consortium)
    assert model_fields(consortium.agreement, 1, insider.read(updates)) == model_fields(consortium.agreement, 1, whole)


def test_if_only_some_sites_are_told_nobody_s_sum_can_be_read(consortium):
    insider, updates, _ = mixture(consortium)
    for chosen in (updates, updates[:2], updates[2:], updates[1:]):
        with pytest.raises(ResidualError):
            insider.read(chosen)
        assert uniform_noise_p(consortium.agreement, insider.read_noise(*chosen)) > LEAST_LIKELY


def test_nor_if_all_have_uploaded_before_and_the_victim_is_not_told(consortium):
    insider, state = Insider(consortium, INSIDER), stands_at(consortium, INSIDER)[1]
    first = {site: consortium.upload(site, EVERYONE) for site in EVERYONE}
    tell(consortium, insider.void_note(1, state), HONEST)
    second = insider.terms(1, WITHOUT_INSIDER, voided_state(state, (INSIDER,)))
    of_victim = insider.unmask(
        SealedUpdate.from_bytes(first[VICTIM], insider.terms(1, EVERYONE, state)),
        insider.terms(1, EVERYONE, state),
        state,
    )
    updates = [SealedUpdate.from_bytes(consortium.upload(site, WITHOUT_INSIDER), second) for site in HONEST]

    with pytest.raises(ResidualError):
        insider.read([*updates, of_victim])
    assert uniform_noise_p(consortium.agreement, insider.read_noise(*updates)) > LEAST_LIKELY


# the agreement's other run


def another_run(federation) -> Insider:
    """Open another run, in which the insider says that nothing of it has left, and have the others prepare that."""
    open_again(federation, EVERYONE)
    insider = Insider(federation, INSIDER)
    tell(federation, insider.void_note(0, initial_state(federation.agreement.digest)), WITHOUT_INSIDER, 0)
    return insider


def upload_in_any_run(patch) -> None:
    """Have sites not look in which run a round's first update has left."""
    patch.setattr(UploadJournal, "check_run", lambda self, state: None)


def model_change(federation, packed) -> np.ndarray:
    """Return the integers that change the model, in one row."""
    return np.concatenate(list(model_fields(federation.agreement, 1, packed).values())).astype(np.float64)


def test_in_a_second_run_other_cohorts_would_be_trained_on_the_same_model_and_the_victim_s_update_follow(
    consortium, monkeypatch
):
    upload_in_any_run(monkeypatch)
    secret, insider = model_change(consortium, truth(consortium, VICTIM)), Insider(consortium, INSIDER)
    records = [patients(consortium, site)[0] for site in EVERYONE]
    first = model_change(consortium, insider.read_sum(collect(consortium, WITHOUT_INSIDER)))

    insider = another_run(consortium)
    consortium.sums = [collect(consortium, WITHOUT_INSIDER)]
    for site in HONEST:
        consortium.prepare(site, 1)
    second = model_change(consortium, insider.read_sum(collect(consortium, HONEST)))

    # weights are shares of all records, so they differ from run to run by a factor that statistics give away
    stolen = first - second * (sum(records) - records[INSIDER]) / sum(records)
    assert np.linalg.norm(stolen - secret) < 0.2 * np.linalg.norm(secret)


def test_in_a_second_run_one_table_that_has_grown_since_would_give_the_new_patients(consortium, monkeypatch):
    upload_in_any_run(monkeypatch)
    plan, statistics = consortium.agreement.plan(RoundKind.STATISTICS), consortium.sums[0]
    first, own = Insider(consortium, INSIDER).read_sum(statistics), patients(consortium, INSIDER)[0]
    table, before = consortium.vault(VICTIM).path("data.csv"), patients(consortium, VICTIM)[0]
    header, *rows = table.read_text().splitlines()
    table.write_text("\n".join([header, *rows, *rows[:4]]) + "\n")

    second = another_run(consortium).read_sum(collect(consortium, WITHOUT_INSIDER))

    grown = patients(consortium, VICTIM)[0] - before
    assert grown > 0
    assert plan.unpack(second - first)["records"].item() == grown - own


def test_a_run_in_which_somebody_was_given_up_is_no_second_run_of_the_agreement(consortium, grid_of, monkeypatch):
    with monkeypatch.context() as patch:  # as if the sites had been asked into it before the first one began
        upload_in_any_run(patch)
        another_run(consortium)
    grid = grid_of(consortium)

    for site in WITHOUT_INSIDER:
        for cohort in (WITHOUT_INSIDER, EVERYONE):
            assert refusal(grid, consortium, site, Request.UPLOAD, **call_parts(0, cohort)) == "SecondUploadError"
        assert refusal(grid, consortium, site, Request.VOID, **void_parts(0)) == "SecondUploadError"
        assert journal(consortium, site).count(b"\n") == 1


def test_nor_is_the_first_run_once_the_other_one_has_begun(opened, grid_of):
    opened.prepare_all()
    first_run = opened.run
    open_again(opened, opened.everyone)
    opened.prepare_all()
    tell(opened, opened.ask(VICTIM, Request.VOID, **void_parts(0))["note"], HONEST, 0)
    collect(opened, HONEST)
    opened.run = first_run
    grid = grid_of(opened)

    for site in opened.everyone:
        assert refusal(grid, opened, site, Request.UPLOAD, **call_parts(0, HONEST)) == "SecondUploadError"
