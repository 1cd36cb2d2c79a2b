"""What a site keeps of a run: nothing that has left is forgotten, nothing secret outlives the run."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from clients.learner import Contribution
from clients.learner_state import LearnerState
from clients.run_files import JOURNAL, Position, RunFiles
from clients.secret import SecretBytes
from clients.vault import Vault
from protocol.errors import SecondUploadError

RUN = bytes(range(16))
STATE, OTHER_STATE = b"\x01" * 32, b"\x02" * 32
COHORT = (0, 1, 2)
PACKED = np.arange(8, dtype=np.int64).reshape(2, 4)
PERSONAL = np.array([0.1, -0.0, 2.5])
PENDING = Contribution(packed=PACKED, personal=PERSONAL)


@pytest.fixture
def vault(tmp_path):
    return Vault(tmp_path / "vault")


@pytest.fixture
def files(vault):
    return RunFiles(vault, RUN)


def position(round_number=1, state=STATE):
    learner = LearnerState(
        model=np.array([0.5, -0.25]), step_exponents=np.array([-3, 2]), least_exponents=np.array([-30, -30])
    )
    return Position(round=round_number, state=state, members=COHORT, learner=learner, personal=PERSONAL)


def keep_upload(files, data=b"update", state=STATE, cohort=COHORT):
    files.keep_upload(data, state=state, round_number=1, cohort=cohort)


def crash_after(steps, monkeypatch):
    """Let a vault change that many files, and die at the next."""
    left = iter(range(steps))

    def until_the_crash(change):
        def step(*arguments, **options):
            if next(left, None) is None:
                raise KeyboardInterrupt
            return change(*arguments, **options)

        return step

    for name in ("write", "delete"):
        monkeypatch.setattr(Vault, name, until_the_crash(getattr(Vault, name)))


def test_a_new_run_has_nothing(files):
    assert not files.has_ephemeral()
    assert files.session() is files.position() is files.pending(0) is files.closed() is None
    assert files.uploaded(STATE) is None
    assert files.tries() == 0


def test_the_opening_s_files_are_read_back(files):
    ephemeral, secret = X25519PrivateKey.generate(), SecretBytes(bytes(range(32)))
    files.announce(ephemeral, b"card")
    files.open(b"session", secret, 7)

    assert files.has_ephemeral()
    assert files.ephemeral().private_bytes_raw() == ephemeral.private_bytes_raw()
    assert files.card() == b"card"
    assert files.session() == b"session"
    assert files.epoch() == (7, secret)


def test_a_position_is_read_back_bit_for_bit(files):
    files.move_to(position())

    kept = files.position()

    assert (kept.round, kept.state, kept.members) == (1, STATE, COHORT)
    assert kept.learner.shared_digest() == position().learner.shared_digest()
    assert kept.personal.tobytes() == PERSONAL.tobytes()


def test_runs_are_kept_apart(files, vault):
    keep_upload(files)
    files.move_to(position())
    files.keep_pending(PENDING, 1)

    other = RunFiles(vault, bytes(16))

    assert other.position() is other.pending(1) is None


def test_moving_on_drops_what_belongs_to_the_round_before(files):
    files.keep_pending(PENDING, 1)
    files.count_tries(1)
    keep_upload(files)

    files.move_to(position(2, OTHER_STATE))

    assert files.pending(1) is files.pending(2) is None
    assert files.tries() == 0
    assert files.uploaded(OTHER_STATE) is None


@pytest.mark.parametrize("steps", range(5))
def test_a_crash_while_moving_on_never_leaves_a_contribution_for_the_wrong_round(files, monkeypatch, steps):
    files.move_to(position(1))
    files.keep_pending(PENDING, 1)
    keep_upload(files)
    crash_after(steps, monkeypatch)

    with suppress(KeyboardInterrupt):
        files.move_to(position(2, OTHER_STATE))

    if files.position().round == 2:
        assert files.pending(2) is None
        assert files.uploaded(OTHER_STATE) is None
    else:
        assert files.uploaded(STATE, COHORT) == b"update"
        assert np.array_equal(files.pending(1).personal, PERSONAL)


def test_a_contribution_waits_for_its_cohort(files):
    files.keep_pending(PENDING, 1)

    kept = files.pending(1)
    assert np.array_equal(kept.packed, PACKED)
    assert kept.packed.dtype == np.int64
    assert kept.personal.tobytes() == PERSONAL.tobytes()


@pytest.mark.parametrize("value", [2**31 - 1, -(2**31), 2**31, 2**53, -(2**53)])
def test_integers_of_any_width_wait_unchanged(files, value):
    files.keep_pending(Contribution(packed=np.array([[0, value]]), personal=np.zeros(0)), 1)

    assert files.pending(1).packed.tolist() == [[0, value]]


@pytest.mark.parametrize("asked", [0, 2, 1000])
def test_another_round_s_contribution_is_not_returned(files, asked):
    files.keep_pending(PENDING, 1)

    assert files.pending(asked) is None


@pytest.mark.parametrize(("personal", "syncs"), [(PERSONAL, True), (np.zeros(0), False)])
def test_personal_values_are_on_disk_before_the_contribution_can_leave(files, monkeypatch, personal, syncs):
    # integers can be made again; values that were trained with integers that have left cannot
    written = []
    monkeypatch.setattr(Vault, "write", lambda vault, name, data, is_durable=True: written.append(is_durable))

    files.keep_pending(Contribution(packed=PACKED, personal=personal), 1)

    assert written == [syncs]


def test_a_crash_between_the_position_and_the_deletion_hides_the_contribution_that_was_used(files, vault):
    files.keep_pending(PENDING, 1)
    name = f"runs/{RUN.hex()}/pending.safetensors"
    used = vault.read(name)
    files.move_to(position(2, OTHER_STATE))
    vault.write(name, used)

    assert files.pending(2) is None
    files.keep_pending(PENDING, 2)
    assert np.array_equal(files.pending(2).packed, PACKED)


def test_the_same_update_is_found_again_and_no_other_cohort_gets_one(files):
    keep_upload(files)

    assert files.uploaded(STATE) == b"update"
    assert files.uploaded(STATE, COHORT) == b"update"
    assert files.uploaded(OTHER_STATE) is None
    with pytest.raises(SecondUploadError) as refusal:
        files.uploaded(STATE, (0, 1, 3))
    assert (refusal.value.expected, refusal.value.got) == ([0, 1, 2], [0, 1, 3])


@pytest.mark.parametrize("damage", ["other bytes", "no bytes"])
def test_an_update_whose_bytes_are_lost_is_never_made_again(files, vault, damage):
    keep_upload(files)
    name = f"runs/{RUN.hex()}/upload.bin"
    vault.delete(name) if damage == "no bytes" else vault.write(name, b"other")

    with pytest.raises(SecondUploadError):
        files.uploaded(STATE)
    with pytest.raises(SecondUploadError):
        files.uploaded(STATE, COHORT)


def test_the_journal_outlives_its_run(files, vault):
    keep_upload(files)
    files.close(b"note")

    (entry,) = vault.lines(JOURNAL)
    assert entry["state"] == STATE.hex()
    assert entry["cohort"] == list(COHORT)
    with pytest.raises(SecondUploadError):
        files.uploaded(STATE)


def test_an_update_that_reached_the_disk_but_not_the_journal_has_not_left(files, vault):
    keep_upload(files)
    vault.write(JOURNAL, b"")

    assert files.uploaded(STATE) is None
    keep_upload(files, b"another", cohort=(0, 1, 3))
    assert files.uploaded(STATE, (0, 1, 3)) == b"another"
    with pytest.raises(SecondUploadError):
        files.uploaded(STATE, COHORT)


def test_a_journal_line_cut_off_by_a_crash_does_not_hide_the_update_after_it(files, vault):
    keep_upload(files)
    journal = vault.read(JOURNAL)
    vault.write(JOURNAL, journal[: len(journal) // 2])
    keep_upload(files, b"another", cohort=(0, 1, 3))

    assert files.uploaded(STATE, (0, 1, 3)) == b"another"
    with pytest.raises(SecondUploadError):
        files.uploaded(STATE, COHORT)


def test_tries_are_counted_on_disk(files, vault):
    files.count_tries(1)
    files.count_tries(2)

    assert RunFiles(vault, RUN).tries() == 3


def test_closing_deletes_every_secret_also_after_a_crash_in_between(files, vault):
    ephemeral, secret = X25519PrivateKey.generate(), SecretBytes(bytes(range(32)))
    files.announce(ephemeral, b"card")
    files.open(b"session", secret, 1)
    files.keep_pending(PENDING, 1)
    keep_upload(files)
    vault.write(f"runs/{RUN.hex()}/closed.bin", b"note")  # what a crash right after the note leaves

    files.forget()

    assert files.closed() == b"note"
    contents = [path.read_bytes() for path in vault.directory.rglob("*") if path.is_file()]
    for needle in (ephemeral.private_bytes_raw(), secret.reveal(), b"update", PACKED.astype(np.int32).tobytes()):
        assert not any(needle in content for content in contents)
