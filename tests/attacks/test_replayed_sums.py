"""A sum is delivered in another place than its own: an old round's, an old run's, another session's, in another order.

Who: the provider. Want: a site that applies one change twice, or changes of other patients, or in another order, and so
ends with another model than its peers. Answer: every proof in a sum is signed and tagged for agreement, session, epoch,
round, cohort and state (`check_aggregate`), and each run has a fresh CKKS key.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from coalition import Insider, collect, prepare_parts, refusal, stands_at

import clients.secrets.release
from clients.run.files import RunFiles
from clients.secrets.keys import EpochKeys
from clients.secrets.secret import SecretBytes
from protocol.envelope import Request
from protocol.errors import ResidualError
from protocol.packing import RoundKind
from protocol.update import EncryptedAggregate

INSIDER, VICTIM = 0, 3
EVERYONE, ALL_BUT_THE_VICTIM = (0, 1, 2, 3), (0, 1, 2)


@pytest.fixture
def unchecked(monkeypatch):
    """Sites that decrypt whatever has the form of a sum."""
    return lambda: monkeypatch.setattr(clients.secrets.release, "check_aggregate", lambda *_, **__: None)


@pytest.fixture
def waiting(started):
    """A run in which the sum of round 2 is made and not delivered."""
    started.sum_up()
    started.prepare_all()
    started.sum_up()
    return started


@pytest.fixture
def away(started):
    """A run in which the victim has missed the training rounds; their sums are still to be delivered to it."""
    for number in (1, 2):
        for site in ALL_BUT_THE_VICTIM:
            started.prepare(site, number)
        started.sum_up(ALL_BUT_THE_VICTIM)
    for site in ALL_BUT_THE_VICTIM:
        started.prepare(site, 3)
    return started


def relabelled(data, number):
    """Return a sum with another round's number on it."""
    return data[:4] + number.to_bytes(4, "little") + data[8:]


def with_headers(data, agreement, number, changes):
    """Return a relabelled sum whose headers say what another round's do; their signatures do not fit."""
    total = EncryptedAggregate.from_bytes(data, agreement)
    proofs = tuple(replace(proof, header=replace(proof.header, **changes, round=number)) for proof in total.proofs)
    return replace(total, round=number, proofs=proofs).to_bytes()


def learner_of(federation, site):
    return RunFiles(federation.vault(site), federation.run).position().learner


# --- An old round's -----------------------------------------------------------------------------------------------


def test_unchecked_an_old_round_s_sum_is_applied_twice(waiting, unchecked):
    unchecked()
    before, again = learner_of(waiting, VICTIM), Insider(waiting, INSIDER).read_sum(waiting.sums[1])

    waiting.prepare(VICTIM, 3, [relabelled(waiting.sums[1], 2)])

    twice = waiting.site(VICTIM).learner(waiting.run).apply(before, RoundKind.TRAIN, again)
    assert learner_of(waiting, VICTIM).shared_digest() == twice.shared_digest()
    waiting.prepare(1, 3)
    assert stands_at(waiting, VICTIM) != stands_at(waiting, 1)


def test_an_old_round_s_sum_is_refused(waiting, grid_of):
    grid, agreement, (statistics, old, new) = grid_of(waiting), waiting.agreement, waiting.sums
    state = EncryptedAggregate.from_bytes(new, agreement).proofs[0].header.state
    for data, error in [
        (old, "RoundMismatchError"),
        (relabelled(old, 2), "RoundMismatchError"),
        (relabelled(statistics, 2), "RoundMismatchError"),
        (with_headers(old, agreement, 2, {}), "StateMismatchError"),
        (with_headers(old, agreement, 2, {"state": state}), "SignatureError"),
    ]:
        assert refusal(grid, waiting, VICTIM, Request.PREPARE, **prepare_parts(3, [data])) == error

    for site in EVERYONE:
        waiting.prepare(site, 3, [new])
    assert len({stands_at(waiting, site) for site in EVERYONE}) == 1


# --- In another order ---------------------------------------------------------------------------------------------


def test_unchecked_sums_are_applied_in_another_order(away, unchecked):
    unchecked()
    statistics, first, second = away.sums

    away.prepare(VICTIM, 3, [statistics, relabelled(second, 1), relabelled(first, 2)])

    assert stands_at(away, VICTIM)[0] == 3
    assert stands_at(away, VICTIM) != stands_at(away, INSIDER)
    assert learner_of(away, VICTIM).shared_digest() != learner_of(away, INSIDER).shared_digest()


def test_sums_in_another_order_are_refused(away, grid_of):
    grid, (statistics, first, second) = grid_of(away), away.sums
    for sums in (
        [statistics, second, first],
        [statistics, relabelled(second, 1), relabelled(first, 2)],
        [second],
        [relabelled(second, 1)],
    ):
        assert refusal(grid, away, VICTIM, Request.PREPARE, **prepare_parts(3, sums)) == "RoundMismatchError"

    away.prepare(VICTIM, 3, [statistics, first, second])
    assert stands_at(away, VICTIM) == stands_at(away, INSIDER)


# --- Another run's ------------------------------------------------------------------------------------------------


def other_run(federation, directory):
    """Return the sum of a run of the same agreement in which one site had fewer patients."""
    other = federation.copied_to(directory)
    other.run, other.sums = bytes(16), []
    table = other.vault(1).path("data.csv")
    table.write_text("\n".join(table.read_text().splitlines()[:-8]) + "\n")
    other.open()
    other.prepare_all()
    return other, other.sum_up()


def test_unchecked_an_old_run_s_sum_is_applied_if_both_runs_have_one_key(founded, tmp_path, unchecked, monkeypatch):
    monkeypatch.setattr(EpochKeys, "draw", lambda: SecretBytes(bytes(range(32))))
    unchecked()
    other, old = other_run(founded, tmp_path / "other")
    founded.open()
    founded.prepare_all()
    new = collect(founded, EVERYONE)

    founded.prepare(VICTIM, 1, [old])
    founded.prepare(1, 1, [new])

    other.prepare(VICTIM, 1)
    assert stands_at(founded, VICTIM) == stands_at(other, VICTIM) != stands_at(founded, 1)


def test_unchecked_an_old_run_s_sum_is_noise_because_each_run_has_its_own_key(opened, tmp_path, unchecked):
    unchecked()
    _, old = other_run(opened, tmp_path / "other")
    opened.prepare_all()
    collect(opened, EVERYONE)

    with pytest.raises(ResidualError):
        opened.prepare(VICTIM, 1, [old])


def test_an_old_run_s_sum_is_refused_also_if_both_runs_had_one_key(founded, tmp_path, grid_of, monkeypatch):
    monkeypatch.setattr(EpochKeys, "draw", lambda: SecretBytes(bytes(range(32))))
    _, old = other_run(founded, tmp_path / "other")
    founded.open()
    founded.prepare_all()
    new = collect(founded, EVERYONE)

    parts = prepare_parts(1, [old])
    assert refusal(grid_of(founded), founded, VICTIM, Request.PREPARE, **parts) == "SessionMismatchError"
    founded.prepare(VICTIM, 1, [new])


def test_another_consortium_s_sum_is_refused(opened, found, grid_of):
    other = found(opened.experiment)
    other.open()
    other.prepare_all()
    foreign = other.sum_up()
    opened.prepare_all()
    collect(opened, EVERYONE)

    parts = prepare_parts(1, [foreign])
    assert refusal(grid_of(opened), opened, VICTIM, Request.PREPARE, **parts) == "AgreementMismatchError"
