"""A site's rounds: one upload per state, sums in order, and nothing left to steal at the end."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace

import pytest
from next_agreement import next_agreement

from clients.run.files import MAX_TRIES, RunFiles
from clients.run.run_keys import RunKeys
from clients.run.upload_journal import JOURNAL
from protocol.envelope import Request, pack_list
from protocol.errors import (
    CohortError,
    DataError,
    LengthError,
    MalformedError,
    RoundMismatchError,
    SecondUploadError,
    SessionMismatchError,
    SiteMismatchError,
    TagError,
)
from protocol.notes import NoteKind, SiteNote

EVERYONE = (0, 1, 2, 3)
THREE = (0, 1, 2)


def files_of(federation, position):
    return RunFiles(federation.vault(position), federation.run)


def parsed_note(federation, data, kind, round_number):
    return SiteNote.from_bytes(
        data,
        kind=kind,
        agreement=federation.agreement,
        session=federation.parsed_session().digest,
        round_number=round_number,
    )


def secrets_of(files):
    epoch = files.epoch()
    return [epoch.common.reveal(), *(pair.reveal() for pair in epoch.pairs.values())]


def files_with(federation, position, *needles):
    """Name every file below a site's vault that holds one of the byte strings."""
    paths = (path for path in federation.vault(position).directory.rglob("*") if path.is_file())
    return [path.name for path in paths if any(needle in path.read_bytes() for needle in needles)]


# --- One upload per state -----------------------------------------------------------------------------------------


def test_the_same_cohort_gets_the_same_bytes_also_after_a_restart(started):
    assert len({started.upload(1, EVERYONE) for _ in range(3)}) == 1


@pytest.mark.parametrize("second", [THREE, (0, 1, 3), (1, 2, 3)])
def test_a_second_cohort_for_one_state_is_refused_for_ever(started, second):
    started.upload(1, EVERYONE)

    for _ in range(2):  # each call loads the site anew from its vault
        with pytest.raises(SecondUploadError):
            started.upload(1, second)


def test_a_larger_cohort_after_a_smaller_one_is_refused_too(started):
    # the difference of the two sums would be one site's update
    for site in THREE:
        started.upload(site, THREE)

    for site in THREE:
        with pytest.raises(SecondUploadError):
            started.upload(site, EVERYONE)


def test_preparing_again_after_the_upload_changes_nothing(started):
    uploaded = started.upload(1, EVERYONE)

    started.prepare(1, 1)

    assert started.upload(1, EVERYONE) == uploaded
    with pytest.raises(SecondUploadError):
        started.upload(1, THREE)


def test_a_crash_between_the_update_s_file_and_its_journal_line_leads_to_one_upload(started, monkeypatch):
    def crash(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("clients.secrets.vault.Vault.append", crash)
        with pytest.raises(KeyboardInterrupt):
            started.upload(1, EVERYONE)
    never_left = started.run_path(1).joinpath("upload.bin").read_bytes()

    # it has not left, so another cohort may still be named, once
    left = started.upload(1, THREE)

    assert left != never_left
    assert started.upload(1, THREE) == left
    with pytest.raises(SecondUploadError):
        started.upload(1, EVERYONE)


def test_a_journal_line_that_a_crash_cut_off_does_not_open_the_way_to_two_uploads(started):
    started.upload(1, EVERYONE)
    vault = started.vault(1)
    journal = vault.read(JOURNAL).splitlines(keepends=True)
    vault.write(JOURNAL, b"".join(journal[:-1]) + journal[-1][:30])  # the crash came before the update left

    left = started.upload(1, THREE)

    with pytest.raises(SecondUploadError):
        started.upload(1, EVERYONE)
    assert started.upload(1, THREE) == left


def test_an_update_whose_bytes_are_lost_is_not_made_again(started):
    started.upload(1, EVERYONE)
    started.run_path(1).joinpath("upload.bin").unlink()

    for cohort in (EVERYONE, THREE):
        with pytest.raises(SecondUploadError):
            started.upload(1, cohort)


def test_the_update_is_on_disk_before_it_leaves(started):
    uploaded = started.upload(1, EVERYONE)

    assert started.run_path(1).joinpath("upload.bin").read_bytes() == uploaded
    *_, entry = started.vault(1).lines(JOURNAL)
    assert (entry["round"], entry["cohort"], entry["bytes"]) == (1, list(EVERYONE), len(uploaded))


# --- Cohorts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cohort", "error"),
    [
        ((), CohortError),
        ((1,), CohortError),
        ((0, 1), CohortError),
        ((0, 2, 3), SiteMismatchError),
        ((0, 1, 4), CohortError),
        ((1, 0, 2), CohortError),
        ((0, 1, 1), CohortError),
        ((0, 1, 2, 65535), CohortError),
    ],
    ids=str,
)
def test_a_cohort_that_no_honest_provider_names_is_refused_and_costs_nothing(started, cohort, error):
    with pytest.raises(error):
        started.upload(1, cohort)

    assert files_of(started, 1).journal.uploaded(files_of(started, 1).position().state) is None
    started.upload(1, EVERYONE)


def test_after_the_statistics_only_their_sites_may_be_in_a_cohort(opened):
    # whose records are not in the statistics sum must not be weighted by it
    opened.prepare_all()
    opened.sum_up(THREE)
    for site in THREE:
        opened.prepare(site, 1)

    assert files_of(opened, 1).position().members == THREE
    with pytest.raises(CohortError, match="among"):
        opened.upload(1, (0, 1, 3))
    with pytest.raises(CohortError, match="among"):
        opened.upload(1, EVERYONE)
    opened.upload(1, THREE)


def test_a_site_that_was_not_in_a_training_sum_stays_in_the_run(started):
    started.sum_up(THREE)  # site 3 was too slow
    started.prepare_all()
    started.sum_up(EVERYONE)

    started.prepare_all()
    assert len({files_of(started, site).position().state for site in EVERYONE}) == 1


# --- The right round of the right run -----------------------------------------------------------------------------


def test_a_ready_note_is_signed_and_says_round_and_state_only(started):
    notes = [parsed_note(started, started.prepare(site, 1), NoteKind.READY, 1) for site in EVERYONE]

    assert [note.site for note in notes] == list(EVERYONE)
    assert len({note.state for note in notes}) == 1
    state = files_of(started, 0).position().state
    assert state not in notes[0].to_bytes()


@pytest.mark.parametrize("round_number", [0, 2, 3, 2**32 - 1])
def test_another_round_than_the_next_is_refused(started, round_number):
    with pytest.raises(RoundMismatchError):
        started.prepare(1, round_number)
    with pytest.raises(RoundMismatchError):
        started.upload(1, EVERYONE, round_number=round_number)


def test_an_upload_before_the_round_was_prepared_is_refused(opened):
    with pytest.raises(RoundMismatchError, match="prepared"):
        opened.upload(1, EVERYONE)


@pytest.mark.parametrize("call", [b"", b"CWC1", b"CWC1" + bytes(8), b"XXXX" + bytes(8), bytes(100)])
def test_a_call_that_is_none_is_refused(started, call):
    with pytest.raises((LengthError, MalformedError, RoundMismatchError)):
        started.ask(1, Request.UPLOAD, call=call)


def test_another_run_is_refused(started):
    started.run = os.urandom(16)

    with pytest.raises(SessionMismatchError):
        started.prepare(1, 1)
    with pytest.raises(SessionMismatchError):
        started.upload(1, EVERYONE)
    with pytest.raises(SessionMismatchError):
        started.close(1)


def test_rounds_before_the_run_is_opened_are_refused(founded):
    founded.announce()

    with pytest.raises(SessionMismatchError):
        founded.prepare(1, 0)


# --- Sums ---------------------------------------------------------------------------------------------------------


def test_a_sum_that_was_applied_before_is_passed_over(started):
    before = files_of(started, 1).position()

    started.prepare(1, 1, [started.sums[0]] * 3)

    assert files_of(started, 1).position().state == before.state


def test_a_site_that_missed_a_sum_applies_both_in_order(started):
    started.sum_up()
    for site in THREE:
        started.prepare(site, 2)
    started.sum_up(THREE)
    started.prepare(0, 3)

    started.prepare(3, 3, started.sums[1:])

    assert files_of(started, 3).position().state == files_of(started, 0).position().state


def test_a_sum_cannot_be_skipped(started):
    started.sum_up()
    for site in THREE:
        started.prepare(site, 2)
    started.sum_up(THREE)

    with pytest.raises(RoundMismatchError):
        started.prepare(3, 3, started.sums[2:])
    with pytest.raises(RoundMismatchError):
        started.prepare(3, 3, started.sums[:1])
    assert files_of(started, 3).position().round == 1


def test_an_old_sum_in_a_new_round_s_place_is_refused(started):
    started.sum_up()
    relabelled = started.sums[0][:4] + (1).to_bytes(4, "little") + started.sums[0][8:]

    with pytest.raises((RoundMismatchError, LengthError)):
        started.prepare(1, 2, [relabelled])
    started.prepare(1, 2)


def test_a_site_whose_state_was_turned_aside_does_not_find_its_way_into_the_sum(started):
    # a provider with an insider feeds one victim another model: the states differ, and so do all masks
    member, terms = started.member(3), started.terms(EVERYONE)
    keys = RunKeys.load(member, started.run).pairs
    state = files_of(started, 3).position().state

    others = keys.mask_keys(terms, bytes(32))

    assert not others.keys() & keys.mask_keys(terms, state).keys()


def test_a_broken_table_stops_the_site_and_names_no_value(opened):
    table = opened.vault(1).path("data.csv")
    table.write_text(table.read_text().replace("\n", "\n987654.25x,1,1,1\n", 1))

    with pytest.raises(DataError) as refusal:
        opened.prepare(1, 0)
    assert "987654" not in str(refusal.value)


# --- The end ------------------------------------------------------------------------------------------------------


def test_closing_applies_the_last_sum_and_all_sites_end_in_one_state(summed):
    notes = [parsed_note(summed, summed.close(site), NoteKind.CLOSED, 4) for site in EVERYONE]

    assert len({note.state for note in notes}) == 1
    assert len({files_of(summed, site).position().state for site in EVERYONE}) == 1


def test_closing_again_gives_the_same_note_whatever_comes_with_it(summed):
    note = summed.close(1)

    assert summed.close(1) == note
    assert summed.ask(1, Request.CLOSE, history=pack_list([]))["note"] == note


def test_closing_deletes_every_secret_of_the_run_from_the_disk(summed):
    files = files_of(summed, 1)
    needles = secrets_of(files)
    assert all(files_with(summed, 1, needle) == ["epoch.secret"] for needle in needles)
    kept_update = summed.run_path(1).joinpath("upload.bin").read_bytes()

    summed.close(1)

    assert files_with(summed, 1, *needles, kept_update) == []
    assert sorted(path.name for path in summed.run_path(1).iterdir()) == [
        "card.bin",
        "closed.bin",
        "position.safetensors",
        "session.bin",
    ]


@pytest.mark.parametrize("where", ["Vault.delete", "RunFiles.forget"])
def test_a_crash_in_the_middle_of_closing_is_made_good_by_the_next_request(summed, monkeypatch, where):
    files = files_of(summed, 1)
    needles = secrets_of(files)

    def crash(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"clients.run.files.{where}", crash)
        with pytest.raises(KeyboardInterrupt):
            summed.close(1)
    assert files_with(summed, 1, *needles) == ["epoch.secret"]

    summed.close(1)

    assert files_with(summed, 1, *needles) == []


def test_a_closed_run_takes_no_more_requests(summed):
    summed.close(1)

    with pytest.raises(SessionMismatchError):
        summed.prepare(1, 3)
    with pytest.raises(SessionMismatchError):
        summed.upload(1, EVERYONE, round_number=3)


def test_closing_before_the_end_is_refused_and_deletes_nothing(started):
    with pytest.raises(RoundMismatchError):
        started.close(1)

    assert files_of(started, 1).has_epoch()
    started.prepare(1, 1)


def test_every_upload_of_a_run_stands_in_the_journal(summed):
    entries = list(summed.vault(1).lines(JOURNAL))

    assert [entry["round"] for entry in entries] == [0, 1, 2, 3]
    assert len({entry["state"] for entry in entries}) == 4


def test_one_agreement_carries_one_run(started):
    # two runs' sums of the same data over nested cohorts would give away the difference
    started.sum_up(THREE)
    started.run = os.urandom(16)

    for site in THREE:
        with pytest.raises(SecondUploadError):
            started.ask(site, Request.ANNOUNCE)


def test_a_new_consortium_secret_makes_another_agreement_which_carries_its_own_run(started):
    started.upload(0, EVERYONE)
    before = started.agreement

    renewed = next_agreement(started, sites=4, start_from=None)

    assert renewed.agreement == replace(before, secret_digest=renewed.agreement.secret_digest)
    assert renewed.agreement.digest != before.digest
    renewed.open()
    renewed.run_all()
    for site in renewed.everyone:
        renewed.close(site)


def test_a_run_that_ended_before_any_upload_does_not_use_up_the_agreement(opened):
    opened.prepare_all()
    opened.run = os.urandom(16)
    opened.open()

    opened.prepare_all()
    opened.sum_up()


def test_a_vault_put_back_to_before_its_upload_notices_when_the_sum_comes(started, tmp_path):
    directory, backup = started.vault(1).directory, tmp_path / "backup"
    shutil.copytree(directory, backup)
    started.sum_up()
    shutil.rmtree(directory)
    shutil.copytree(backup, directory)

    with pytest.raises(TagError, match="did not upload"):
        started.prepare(1, 2)


def test_the_site_s_log_tells_its_own_people_what_happened(summed):
    summed.close(1)

    events = [entry["event"] for entry in summed.vault(1).lines("events.jsonl")]
    assert events.count("trained") == events.count("sealed") == events.count("released") == 4
    assert events[-1] == "closed"
    assert MAX_TRIES == 1000
