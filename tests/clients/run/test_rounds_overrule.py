"""People give up another site's upload: each site's people for themselves, for one round, and on the record."""

from __future__ import annotations

import numpy as np
import pytest
from recovery import read_note, ready, signed_void, stand, sum_up, void

from clients.run.upload_journal import JOURNAL
from protocol.envelope import Request, unpack_list
from protocol.errors import (
    CohortError,
    ConfigurationError,
    MalformedError,
    ProtocolError,
    RoundMismatchError,
    SecondUploadError,
    SiteMismatchError,
    StateMismatchError,
)
from protocol.notes import NoteKind

EVERYONE, THREE = (0, 1, 2, 3), (0, 1, 2)


def overrule(federation, site, name="hospital-4", round_number=1):
    """Have a site's people give up another's upload."""
    federation.site(site).overrule(federation.run, round_number, name)


def overruled(federation, site):
    return [entry for entry in federation.vault(site).lines(JOURNAL) if "overruled" in entry]


@pytest.fixture
def waiting(started):
    """A round in which site 3 was called and did not answer; the others have uploaded."""
    for site in THREE:
        started.upload(site, EVERYONE)
    return started


def test_the_sites_whose_people_decide_the_same_go_on_together(waiting):
    for site in THREE:
        overrule(waiting, site)

    history = [*waiting.sums, sum_up(waiting, THREE, waiting.sums)]

    assert len({ready(waiting, site, history).state for site in THREE}) == 1
    assert np.array_equal(stand(waiting, 0).learner.model, stand(waiting, 2).learner.model)


def test_a_decision_is_on_the_record_once_and_outlives_the_process(waiting):
    for _ in range(2):
        overrule(waiting, 1)

    (entry,) = overruled(waiting, 1)
    assert (entry["overruled"], entry["round"], entry["run"]) == (3, 1, waiting.run.hex())
    (event,) = [entry for entry in waiting.vault(1).lines("events.jsonl") if entry["event"] == "overruled"]
    assert "gave up hospital-4's upload for round 1" in event["text"]
    assert ready(waiting, 1, waiting.sums).voided == (3,)


def test_a_decision_and_a_void_note_lead_to_the_same_state(started):
    overrule(started, 0)
    note = void(started, 3, 1)

    decided = ready(started, 0, started.sums)
    told = ready(started, 1, [*started.sums, note])
    both = ready(started, 0, [*started.sums, note])

    assert decided.state == told.state == both.state
    assert decided.voided == told.voided == both.voided == (3,)
    sum_up(started, THREE, [*started.sums, note])


def test_who_has_uploaded_uploads_again_for_exactly_the_rest(waiting):
    overrule(waiting, 0)

    for cohort in (EVERYONE, (0, 1, 3), (0, 2, 3)):
        with pytest.raises(SecondUploadError):
            waiting.upload(0, cohort)
    waiting.upload(0, THREE)


def test_who_has_not_uploaded_uploads_for_no_cohort_with_the_site(started):
    overrule(started, 0)

    for cohort in (EVERYONE, (0, 1, 3)):
        with pytest.raises(CohortError):
            started.upload(0, cohort)
    started.upload(0, THREE)


@pytest.mark.parametrize("round_number", [0, 2, 3, 4, 2**32 - 1])
def test_only_the_round_that_the_site_stands_before_can_go_without_a_site(waiting, round_number):
    with pytest.raises(RoundMismatchError):
        overrule(waiting, 1, round_number=round_number)
    assert overruled(waiting, 1) == []


def test_after_the_last_sum_there_is_nothing_to_give_up(summed):
    with pytest.raises(MalformedError):
        ready(summed, 1, summed.sums)  # the last sum is applied, and there is nothing to prepare

    with pytest.raises(MalformedError):
        overrule(summed, 1, round_number=4)
    assert overruled(summed, 1) == []


@pytest.mark.parametrize("name", ["hospital-5", "", "Hospital-4"])
def test_a_site_that_does_not_exist_is_told_to_the_people(waiting, name):
    with pytest.raises(ConfigurationError):
        overrule(waiting, 1, name)
    assert overruled(waiting, 1) == []


def test_a_site_that_is_not_in_the_run_cannot_be_given_up(founded):
    founded.announce()
    founded.session = founded.session_of(*THREE)
    secrets = unpack_list(founded.ask(0, Request.ENTRUST, session=founded.session)["secrets"], limit=2)
    for site, secret in zip((1, 2), secrets, strict=True):
        founded.ask(site, Request.OPEN, session=founded.session, secret=secret)

    with pytest.raises(SiteMismatchError):
        overrule(founded, 1, round_number=0)
    overrule(founded, 1, "hospital-3", round_number=0)
    assert [entry["overruled"] for entry in overruled(founded, 1)] == [2]


def test_a_site_that_is_not_in_the_statistics_need_not_be_given_up(opened):
    history = [sum_up(opened, THREE, [])]
    ready(opened, 1, history)

    with pytest.raises(SiteMismatchError):
        overrule(opened, 1)


def test_a_decision_in_another_run_is_none_in_this_one(waiting):
    vault = waiting.vault(1)
    vault.append(JOURNAL, {"overruled": 3, "run": bytes(16).hex(), "round": 1}, is_durable=True)

    assert ready(waiting, 1, waiting.sums).voided == ()


def test_a_decision_ends_with_its_round(waiting):
    for site in THREE:
        overrule(waiting, site)
    history = [*waiting.sums, sum_up(waiting, THREE, waiting.sums)]

    for site in THREE:
        assert ready(waiting, site, history).voided == ()
        waiting.upload(site, THREE, 2)


def test_a_site_whose_people_did_not_decide_refuses_the_sum(waiting):
    for site in (0, 1):
        overrule(waiting, site)
    notes = {site: ready(waiting, site, waiting.sums) for site in THREE}
    assert notes[0].state == notes[1].state != notes[2].state

    with pytest.raises(SecondUploadError):
        waiting.upload(2, THREE)  # so there is no such sum
    overrule(waiting, 2)
    history = [*waiting.sums, sum_up(waiting, THREE, waiting.sums)]
    with pytest.raises(StateMismatchError):
        ready(waiting, 3, history)
    assert stand(waiting, 3).round == 1


def test_the_site_that_was_given_up_follows_once_its_own_people_agree(waiting):
    late = waiting.upload(3, EVERYONE)  # it has left after all
    for site in THREE:
        overrule(waiting, site)
    history = [*waiting.sums, sum_up(waiting, THREE, waiting.sums)]
    with pytest.raises(SecondUploadError):
        ready(waiting, 3, history)

    overrule(waiting, 3)

    with pytest.raises(SecondUploadError, match="given up"):
        waiting.upload(3, EVERYONE)
    states = {ready(waiting, site, history).state for site in EVERYONE}
    assert len(states) == 1
    assert late not in history
    sum_up(waiting, EVERYONE, history)  # and takes part again


def test_the_site_that_was_given_up_does_not_sign_that_nothing_left(waiting):
    waiting.upload(3, EVERYONE)
    overrule(waiting, 3)

    with pytest.raises(SecondUploadError):
        void(waiting, 3, 1)


def test_the_site_that_was_given_up_and_sent_nothing_may_sign_it(waiting):
    overrule(waiting, 3)

    note = void(waiting, 3, 1)

    assert read_note(waiting, note, NoteKind.VOID).site == 3
    sum_up(waiting, THREE, [*waiting.sums, note])
    assert signed_void(waiting, 3) == note


def test_too_few_sites_do_not_go_on(waiting):
    for name in ("hospital-3", "hospital-4"):
        overrule(waiting, 0, name)

    with pytest.raises(CohortError, match="at least 3"):
        waiting.upload(0, (0, 1))


def test_a_run_that_is_not_open_takes_no_decision(founded):
    founded.announce()

    with pytest.raises(ProtocolError):
        overrule(founded, 1, round_number=0)
    assert overruled(founded, 1) == []
