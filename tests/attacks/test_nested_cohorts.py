"""Two sums over cohorts that differ by one site: their difference is that site's update.

Who: the provider, and one site that decrypts for it. Want: the victim's update (or its statistics), bit for bit.
Answer: one upload per state, ever (`UploadJournal`; a process that starts anew reads the same
journal); and a state that begins with the agreement alone, so that a second run is no second chance. Fresh masks and
fresh ciphertexts do not help. Two client processes at once: `test_two_processes.py`.
"""

from __future__ import annotations

import os

import pytest
from coalition import Insider, call_parts, collect, journal, model_fields, open_again, prepare_parts, refusal, truth

import clients.run.state_chain
from clients.run.upload_journal import UploadJournal
from protocol.envelope import Request
from protocol.errors import SecondUploadError
from protocol.handshake import RUN_BYTES
from protocol.packing import RoundKind
from protocol.schedule import digest

INSIDER, VICTIM = 0, 3
EVERYONE, ALL_BUT_THE_VICTIM = (0, 1, 2, 3), (0, 1, 2)


@pytest.fixture
def forgetful(monkeypatch):
    """Sites that do not look up what has left them."""

    def forget():
        for question in ("uploaded", "first_cohort"):
            monkeypatch.setattr(UploadJournal, question, lambda self, state, cohort=None: None)

    return forget


def test_without_the_journal_two_training_sums_give_the_victim_s_update(started, forgetful):
    forgetful()
    secret = truth(started, VICTIM)
    insider = Insider(started, INSIDER)

    first = insider.read_sum(collect(started, EVERYONE))
    second = insider.read_sum(collect(started, ALL_BUT_THE_VICTIM))

    stolen = model_fields(started.agreement, 1, first - second)
    assert stolen == model_fields(started.agreement, 1, secret)
    assert any(stolen["output.weight"])


def test_without_the_journal_two_statistics_sums_give_the_victim_s_own(opened, forgetful):
    forgetful()
    opened.prepare_all()
    insider = Insider(opened, INSIDER)

    stolen = insider.read_sum(collect(opened, EVERYONE)) - insider.read_sum(collect(opened, ALL_BUT_THE_VICTIM))

    assert (stolen == truth(opened, VICTIM)).all()
    patients = opened.site(VICTIM).learner(opened.run).training_table.records
    assert opened.agreement.plan(RoundKind.STATISTICS).unpack(stolen)["records"].tolist() == [patients]


@pytest.mark.parametrize(
    ("first", "second"), [(EVERYONE, ALL_BUT_THE_VICTIM), (ALL_BUT_THE_VICTIM, EVERYONE)], ids=["less", "more"]
)
def test_a_second_cohort_for_one_state_is_refused_by_every_site(started, grid_of, first, second):
    grid = grid_of(started)
    uploads = {site: started.upload(site, first) for site in first}
    for site in ALL_BUT_THE_VICTIM:
        left = journal(started, site)

        assert refusal(grid, started, site, Request.UPLOAD, **call_parts(1, second)) == "SecondUploadError"

        started.prepare(site, 1)  # to train once more opens no way either
        assert refusal(grid, started, site, Request.UPLOAD, **call_parts(1, second)) == "SecondUploadError"
        assert started.upload(site, first) == uploads[site]
        assert journal(started, site) == left


def test_if_states_began_with_the_run_two_runs_would_give_the_victim_s_statistics(opened, monkeypatch):
    monkeypatch.setattr(
        clients.run.state_chain, "initial_state", lambda agreement: digest("state", agreement, opened.run)
    )
    opened.prepare_all()
    secret = truth(opened, VICTIM)
    first = Insider(opened, INSIDER).read_sum(collect(opened, EVERYONE))

    open_again(opened, ALL_BUT_THE_VICTIM)
    for site in ALL_BUT_THE_VICTIM:
        opened.prepare(site, 0)
    second = Insider(opened, INSIDER).read_sum(collect(opened, ALL_BUT_THE_VICTIM))

    assert (first - second == secret).all()


def test_a_second_run_of_one_agreement_is_not_joined(opened, grid_of):
    opened.prepare_all()
    collect(opened, EVERYONE)
    first_run, opened.run = opened.run, os.urandom(RUN_BYTES)
    grid = grid_of(opened)

    for site in ALL_BUT_THE_VICTIM:
        assert refusal(grid, opened, site, Request.ANNOUNCE) == SecondUploadError.__name__
        assert not opened.run_path(site).exists()
    opened.run = first_run
    for site in ALL_BUT_THE_VICTIM:
        assert opened.ask(site, Request.ANNOUNCE)["card"] == opened.cards[site]


def test_a_second_run_that_was_opened_before_the_first_one_began_gets_nothing(opened, grid_of):
    first = opened.run, opened.session
    open_again(opened, ALL_BUT_THE_VICTIM)
    second = opened.run, opened.session
    opened.run, opened.session = first
    opened.prepare_all()
    collect(opened, EVERYONE)
    opened.run, opened.session = second
    grid = grid_of(opened)

    for site in ALL_BUT_THE_VICTIM:
        assert refusal(grid, opened, site, Request.PREPARE, **prepare_parts(0, [])) == SecondUploadError.__name__
        for cohort in (ALL_BUT_THE_VICTIM, EVERYONE):
            assert refusal(grid, opened, site, Request.UPLOAD, **call_parts(0, cohort)) == SecondUploadError.__name__
        assert journal(opened, site).count(b"\n") == 1


def test_a_run_that_no_site_opened_gets_nothing(started, grid_of):
    grid = grid_of(started)
    started.run = os.urandom(RUN_BYTES)

    for site in ALL_BUT_THE_VICTIM:
        assert refusal(grid, started, site, Request.UPLOAD, **call_parts(1, EVERYONE)) == "SessionMismatchError"
