"""What has left a site is never forgotten: one update per state, one cohort per round, none after a promise."""

from __future__ import annotations

import pytest

from clients.run.files import RunFiles
from clients.run.upload_journal import JOURNAL, UploadJournal
from clients.secrets.vault import Vault
from protocol.errors import SecondUploadError

RUN, OTHER_RUN = bytes(range(16)), bytes(16)
STATE, OTHER_STATE, ROUND_STATE = b"\x01" * 32, b"\x02" * 32, b"\x03" * 32
COHORT = (0, 1, 2)


@pytest.fixture
def vault(tmp_path):
    return Vault(tmp_path / "vault")


@pytest.fixture
def journal(vault):
    return UploadJournal(vault, RUN)


def keep_upload(journal, data=b"update", state=STATE, round_state=STATE, cohort=COHORT):
    journal.keep_upload(data, state=state, round_state=round_state, round_number=1, cohort=cohort)


def test_an_empty_journal_promises_nothing(journal):
    assert journal.uploaded(STATE) is journal.uploaded(STATE, COHORT) is journal.first_cohort(STATE) is None
    assert not journal.has_voided(STATE)
    assert journal.overruled(0) == set()


def test_the_same_update_is_found_again_and_no_other_cohort_gets_one(journal):
    keep_upload(journal)

    assert journal.uploaded(STATE) == b"update"
    assert journal.uploaded(STATE, COHORT) == b"update"
    assert journal.uploaded(OTHER_STATE) is None
    with pytest.raises(SecondUploadError) as refusal:
        journal.uploaded(STATE, (0, 1, 3))
    assert (refusal.value.expected, refusal.value.got) == ([0, 1, 2], [0, 1, 3])


@pytest.mark.parametrize("damage", ["other bytes", "no bytes"])
def test_an_update_whose_bytes_are_lost_is_never_made_again(journal, vault, damage):
    keep_upload(journal)
    name = f"runs/{RUN.hex()}/upload.bin"
    vault.delete(name) if damage == "no bytes" else vault.write(name, b"other")

    with pytest.raises(SecondUploadError):
        journal.uploaded(STATE)
    with pytest.raises(SecondUploadError):
        journal.uploaded(STATE, COHORT)


def test_the_journal_outlives_its_run(journal, vault):
    keep_upload(journal)
    RunFiles(vault, RUN).close(b"note")

    (entry,) = vault.lines(JOURNAL)
    assert entry["state"] == STATE.hex()
    assert entry["cohort"] == list(COHORT)
    with pytest.raises(SecondUploadError):
        journal.uploaded(STATE)


def test_an_update_that_reached_the_disk_but_not_the_journal_has_not_left(journal, vault):
    keep_upload(journal)
    vault.write(JOURNAL, b"")

    assert journal.uploaded(STATE) is None
    keep_upload(journal, b"another", cohort=(0, 1, 3))
    assert journal.uploaded(STATE, (0, 1, 3)) == b"another"
    with pytest.raises(SecondUploadError):
        journal.uploaded(STATE, COHORT)


def test_a_journal_line_cut_off_by_a_crash_does_not_hide_the_update_after_it(journal, vault):
    keep_upload(journal)
    lines = vault.read(JOURNAL)
    vault.write(JOURNAL, lines[: len(lines) // 2])
    keep_upload(journal, b"another", cohort=(0, 1, 3))

    assert journal.uploaded(STATE, (0, 1, 3)) == b"another"
    with pytest.raises(SecondUploadError):
        journal.uploaded(STATE, COHORT)


def test_a_round_is_known_by_the_state_that_it_began_in(journal):
    keep_upload(journal, state=STATE, round_state=ROUND_STATE, cohort=(0, 1, 2, 3))
    keep_upload(journal, b"second", state=OTHER_STATE, round_state=ROUND_STATE, cohort=COHORT)

    assert journal.first_cohort(ROUND_STATE) == (0, 1, 2, 3)
    assert journal.first_cohort(STATE) is journal.first_cohort(OTHER_STATE) is None
    assert journal.uploaded(OTHER_STATE, COHORT) == b"second"
    with pytest.raises(SecondUploadError):
        journal.uploaded(STATE, (0, 1, 2, 3))


def test_a_promise_holds_for_one_state_and_in_every_run(journal, vault):
    journal.keep_void(ROUND_STATE, 1)

    for run in (RUN, OTHER_RUN):
        assert UploadJournal(vault, run).has_voided(ROUND_STATE)
        assert not UploadJournal(vault, run).has_voided(STATE)
    assert journal.uploaded(ROUND_STATE) is journal.first_cohort(ROUND_STATE) is None


def test_what_people_gave_up_holds_for_one_round_of_one_run(journal, vault):
    journal.keep_overruled(2, 1)
    journal.keep_overruled(0, 1)
    journal.keep_overruled(3, 2)

    again = UploadJournal(vault, RUN)
    assert (again.overruled(1), again.overruled(2), again.overruled(0)) == ({0, 2}, {3}, set())
    assert UploadJournal(vault, OTHER_RUN).overruled(1) == set()


@pytest.mark.parametrize(
    "promise",
    [keep_upload, lambda journal: journal.keep_void(STATE, 1), lambda journal: journal.keep_overruled(2, 1)],
    ids=["upload", "void", "overruled"],
)
def test_every_promise_is_on_disk_when_it_is_made(journal, monkeypatch, promise):
    kept = []
    append = Vault.append

    def noted(vault, name, entry, *, is_durable=False):
        kept.append((name, is_durable))
        append(vault, name, entry, is_durable=is_durable)

    monkeypatch.setattr(Vault, "append", noted)

    promise(journal)

    assert kept == [(JOURNAL, True)]
