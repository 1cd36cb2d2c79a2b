"""The keys of a run move on with its rounds, and leave nothing of the epochs before on the disk."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

import numpy as np
import pytest
from crash import killed_after
from recovery import files_of, ready, stand, sum_up, void

from clients.run.run_keys import RunKeys
from clients.secrets.ckks import KEY_SEED_BYTES
from protocol.envelope import Request
from protocol.errors import EpochMismatchError, ProtocolError, RoundMismatchError, SessionMismatchError
from protocol.schedule import expand
from protocol.terms import CryptoTerms

EVERYONE, THREE = (0, 1, 2, 3), (0, 1, 2)


@pytest.fixture(scope="module")
def epochs_once(founded_once, tmp_path_factory):
    """An opened run whose sites take fresh keys for each round."""
    experiment = replace(founded_once.experiment, crypto=CryptoTerms(epoch_rounds=1))
    federation = type(founded_once).found(tmp_path_factory.mktemp("epochs") / "run", experiment)
    federation.open()
    return federation


@pytest.fixture
def epochs(epochs_once, tmp_path):
    return epochs_once.copied_to(tmp_path / "epochs")


def secrets_of(federation, site):
    """Return all that must not outlive an epoch: what the site keeps of it, and the seed of the CKKS key."""
    secrets = files_of(federation, site).epoch()
    seed = expand(secrets.common.reveal(), "ckks", length=KEY_SEED_BYTES)
    return [secrets.common.reveal(), seed, *(pair.reveal() for pair in secrets.pairs.values())]


def found_below(federation, site, needles):
    """Name every file below a site's vault that holds one of the byte strings, as they are or in hex."""
    either = [form for needle in needles for form in (needle, needle.hex().encode())]
    files = [path for path in federation.vault(site).directory.rglob("*") if path.is_file()]
    return [path.name for path in files if any(needle in path.read_bytes() for needle in either)]


def test_the_keys_are_those_of_the_round_that_comes_next(epochs):
    history = []
    for epoch in (1, 2, 3, 4):
        assert {ready(epochs, site, history).epoch for site in EVERYONE} == {epoch}
        assert {RunKeys.load(epochs.member(site), epochs.run).epoch for site in EVERYONE} == {epoch}
        history.append(sum_up(epochs, EVERYONE, history))


def test_fresh_keys_for_each_round_lead_to_the_same_models(epochs, summed):
    history = []
    while len(history) <= epochs.agreement.last_round:
        history.append(sum_up(epochs, EVERYONE, history))
    epochs.sums = history

    for site in EVERYONE:
        epochs.close(site)
        summed.close(site)
        for name in ("last", "best"):
            assert np.array_equal(epochs.values(site, name), summed.values(site, name))


def test_a_whole_run_with_fresh_keys_for_each_round_ends_as_one_with_one_key(epochs_once, founded, run, tmp_path):
    epochs = type(epochs_once).found(tmp_path / "epochs", epochs_once.experiment)

    for federation in (epochs, founded):
        run(federation)

    for site in EVERYONE:
        assert np.array_equal(epochs.values(site), founded.values(site))


def test_nothing_of_an_epoch_is_on_the_disk_once_it_is_over(epochs):
    history, old = [], {site: [] for site in EVERYONE}
    while len(history) <= epochs.agreement.last_round:
        for site in EVERYONE:
            ready(epochs, site, history)
            assert found_below(epochs, site, old[site]) == []
            assert found_below(epochs, site, secrets_of(epochs, site)) == ["epoch.secret"]
            old[site] += secrets_of(epochs, site)
        history.append(sum_up(epochs, EVERYONE, history))
    epochs.sums = history

    for site in EVERYONE:
        epochs.close(site)
        assert found_below(epochs, site, old[site]) == []
    assert len({secret for secrets in old.values() for secret in secrets}) == 4 * (1 + 1 + 6)


@pytest.mark.parametrize("retry", ["prepare", "upload", "void"])
def test_a_crash_at_the_end_of_an_epoch_leaves_nothing_of_it_after_the_next_request(epochs, tmp_path, retry):
    history = [sum_up(epochs, EVERYONE, [])]
    old = secrets_of(epochs, 1)

    for operations in count():
        again = epochs.copied_to(tmp_path / f"crash-{operations}")
        with killed_after(operations) as death:
            ready(again, 1, history)
        has_moved_on = stand(again, 1).round == 1 if stand(again, 1) else False
        if retry == "prepare":
            assert ready(again, 1, history).epoch == 2
        elif has_moved_on and retry == "upload":
            with pytest.raises(RoundMismatchError):
                again.upload(1, EVERYONE, 0)
        elif has_moved_on:
            void(again, 1, 1)
        if retry == "prepare" or has_moved_on:
            assert found_below(again, 1, old) == []
        else:
            assert found_below(again, 1, old) == ["epoch.secret"]  # it is needed for the sum that did not come through
        if not death.came:
            break
    assert operations > 5


def test_a_site_keeps_the_secrets_that_a_missed_sum_needs_and_then_takes_part(epochs):
    history = [sum_up(epochs, EVERYONE, [])]
    history.append(sum_up(epochs, THREE, history))
    for site in THREE:
        ready(epochs, site, history)
    old = secrets_of(epochs, 3)

    epochs.ask(3, Request.ANNOUNCE)
    for refused in (lambda: epochs.upload(3, EVERYONE, 2), lambda: epochs.prepare(3, 2, history[1:])):
        with pytest.raises(ProtocolError):
            refused()
    assert files_of(epochs, 3).epoch().epoch == 1

    assert ready(epochs, 3, history) == replace(
        ready(epochs, 0, history), site=3, signature=ready(epochs, 3, history).signature
    )
    assert found_below(epochs, 3, old) == []
    history.append(sum_up(epochs, EVERYONE, history))
    assert len({ready(epochs, site, history).state for site in EVERYONE}) == 1


def test_secrets_of_a_later_epoch_than_the_position_are_refused(epochs):
    # a vault whose parts were put back from different times
    files = files_of(epochs, 1)
    files.keep_epoch(files.epoch().next())

    with pytest.raises(EpochMismatchError) as refusal:
        epochs.prepare(1, 0, [])
    assert (refusal.value.expected, refusal.value.got) == (1, 2)
    with pytest.raises(EpochMismatchError):
        void(epochs, 1, 0)


def test_a_position_that_was_put_back_does_not_go_with_the_keys(epochs):
    history = [sum_up(epochs, EVERYONE, [])]
    ready(epochs, 1, history)
    earlier = epochs.run_path(1).joinpath("position.safetensors").read_bytes()
    history.append(sum_up(epochs, EVERYONE, history))
    ready(epochs, 1, history)
    epochs.run_path(1).joinpath("position.safetensors").write_bytes(earlier)

    with pytest.raises(EpochMismatchError):
        epochs.prepare(1, 2, history)


def test_a_run_that_is_not_open_or_is_over_has_no_keys(founded, summed):
    with pytest.raises(SessionMismatchError):
        RunKeys.load(founded.member(1), founded.run)
    summed.close(1)
    with pytest.raises(SessionMismatchError):
        RunKeys.load(summed.member(1), summed.run)


def test_the_keys_do_not_show_themselves(opened):
    assert repr(RunKeys.load(opened.member(1), opened.run)) == "RunKeys(<redacted>)"
