"""What a site keeps of a run: where it stands and what waits, and nothing secret that outlives the run."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from clients.learning.learner import Contribution
from clients.learning.learner_state import LearnerState
from clients.run.files import Position, RunFiles
from clients.secrets.keys import EpochSecrets
from clients.secrets.secret import SecretBytes
from clients.secrets.vault import Vault
from protocol.errors import SessionMismatchError
from protocol.state import voided_state

RUN = bytes(range(16))
STATE, OTHER_STATE = b"\x01" * 32, b"\x02" * 32
COHORT = (0, 1, 2)
PACKED = np.arange(8, dtype=np.int64).reshape(2, 4)
PERSONAL = np.array([0.1, -0.0, 2.5])
PENDING = Contribution(packed=PACKED, personal=PERSONAL)
SECRETS = EpochSecrets(
    epoch=1,
    common=SecretBytes(os.urandom(32)),
    pairs={site: SecretBytes(os.urandom(32)) for site in (0, 2)},
)


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


def keep_upload(files):
    files.journal.keep_upload(b"update", state=STATE, round_state=STATE, round_number=1, cohort=COHORT)


def raw_secrets(secrets):
    return [secrets.common.reveal(), *(pair.reveal() for pair in secrets.pairs.values())]


def holds(vault, *needles):
    """Tell whether any file below the vault holds one of the byte strings."""
    contents = [path.read_bytes() for path in vault.directory.rglob("*") if path.is_file()]
    return any(needle in content for needle in needles for content in contents)


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
    assert files.journal.uploaded(STATE) is None
    assert files.tries() == 0


def test_the_opening_s_files_are_read_back(files):
    ephemeral = X25519PrivateKey.generate()
    files.announce(ephemeral, b"card")

    assert files.has_ephemeral()
    assert files.ephemeral().private_bytes_raw() == ephemeral.private_bytes_raw()
    assert files.card() == b"card"
    assert not files.has_epoch()

    files.open(b"session", SECRETS)

    assert files.card() == b"card"
    assert files.session() == b"session"
    assert files.has_epoch()
    assert files.epoch() == SECRETS


def test_an_opened_run_s_key_is_gone_from_the_disk(files, vault):
    ephemeral = X25519PrivateKey.generate()
    files.announce(ephemeral, b"card")
    assert holds(vault, ephemeral.private_bytes_raw())

    files.open(b"session", SECRETS)

    assert not files.has_ephemeral()
    assert not holds(vault, ephemeral.private_bytes_raw())


def test_an_epoch_s_secrets_take_the_place_of_those_before(files, vault):
    files.open(b"session", SECRETS)

    files.keep_epoch(SECRETS.next())

    assert files.epoch() == SECRETS.next()
    assert not holds(vault, *raw_secrets(SECRETS))


def test_secrets_that_were_deleted_are_not_there(files):
    files.open(b"session", SECRETS)
    files.forget()

    assert not files.has_epoch()
    with pytest.raises(SessionMismatchError, match="forgotten"):
        files.epoch()


def test_a_position_is_read_back_bit_for_bit(files):
    files.move_to(position())

    kept = files.position()

    assert (kept.round, kept.state, kept.voided, kept.members) == (1, STATE, (), COHORT)
    assert kept.learner.shared_digest() == position().learner.shared_digest()
    assert kept.personal.tobytes() == PERSONAL.tobytes()


def test_a_position_keeps_whose_uploads_were_given_up(files):
    files.keep_position(replace(position(), voided=(0, 2)))

    assert files.position().voided == (0, 2)
    assert files.position().upload_state == voided_state(STATE, (0, 2))


def test_keeping_the_position_in_a_round_keeps_what_waits_in_it(files):
    files.move_to(position())
    files.keep_pending(PENDING, 1)
    files.count_tries(1)
    keep_upload(files)

    files.keep_position(replace(position(), voided=(2,)))

    assert np.array_equal(files.pending(1).packed, PACKED)
    assert files.tries() == 1
    assert files.journal.uploaded(STATE) == b"update"


def test_the_next_round_is_the_first_before_there_is_a_position(files):
    assert files.next_round() == 0

    files.move_to(position(3))

    assert files.next_round() == 3


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
    assert files.journal.uploaded(OTHER_STATE) is None


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
        assert files.journal.uploaded(OTHER_STATE) is None
    else:
        assert files.journal.uploaded(STATE, COHORT) == b"update"
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


@pytest.mark.parametrize(
    ("personal", "has_noise", "syncs"),
    [(PERSONAL, False, True), (np.zeros(0), False, False), (np.zeros(0), True, True)],
)
def test_what_cannot_be_made_again_is_on_disk_before_it_can_leave(files, monkeypatch, personal, has_noise, syncs):
    # integers can; noise cannot, nor can values that were trained with integers that have left
    written = []
    monkeypatch.setattr(Vault, "write", lambda vault, name, data, is_durable=True: written.append(is_durable))

    files.keep_pending(Contribution(packed=PACKED, personal=personal, has_noise=has_noise), 1)

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


def test_tries_are_counted_on_disk(files, vault):
    files.count_tries(1)
    files.count_tries(2)

    assert RunFiles(vault, RUN).tries() == 3


def test_closing_deletes_every_secret_also_after_a_crash_in_between(files, vault):
    ephemeral = X25519PrivateKey.generate()
    files.open(b"session", SECRETS)
    files.announce(ephemeral, b"card")  # as a crash in the opening leaves it
    files.keep_pending(PENDING, 1)
    keep_upload(files)
    vault.write(f"runs/{RUN.hex()}/closed.bin", b"note")  # what a crash right after the note leaves

    files.forget()

    assert files.closed() == b"note"
    needles = [ephemeral.private_bytes_raw(), *raw_secrets(SECRETS), b"update", PACKED.astype(np.int32).tobytes()]
    assert not holds(vault, *needles)
