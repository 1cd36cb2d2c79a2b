"""A site's vault is stolen in the second key epoch, by somebody who has all that the provider ever recorded.

Who: the provider, and a thief (or a buyer of old disks). Want: what the provider recorded in the first epoch: its sums,
and the sum of the others' updates, for which the stolen site's masks have to come off.
Answer: a ratchet (`EpochSecrets.next`): both the secret that all sites share and those of each pair are replaced by a
one-way function of themselves, and the old ones deleted, with the run key that they came from. What comes after the
theft is lost, as these tests show, until the run ends: a ratchet only protects what lies behind it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from coalition import LEAST_LIKELY, Insider, stands_at, truth, uniform_noise_p
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from clients.run.files import RunFiles
from clients.run.run_keys import RunKeys
from clients.secrets.keys import EpochSecrets, PairKeys, agree_pairs
from clients.secrets.vault import Vault
from protocol.envelope import Request
from protocol.errors import ResidualError, SealError
from protocol.handshake import SealedSecret
from protocol.terms import CryptoTerms
from protocol.update import EncryptedAggregate, SealedUpdate
from strategies.round_sum import RoundSum

EVERYONE, STOLEN, OTHERS = (0, 1, 2, 3), 1, (0, 2, 3)
FIRST, SECOND = 1, 2
"""Rounds of the first and of the second epoch, with an epoch of two rounds."""


class Recording:
    """What the provider has of one training round, and what is true of it.

    Args:
        federation: The consortium, with the round prepared.
        round_number: The round.
    """

    def __init__(self, federation, round_number: int) -> None:
        site = Insider(federation, STOLEN)
        self.state = stands_at(federation, STOLEN)[1]
        self.terms = site.terms(round_number, EVERYONE, self.state)
        self.truth = {peer: truth(federation, peer) for peer in EVERYONE}
        total, uploads = RoundSum(self.terms), {peer: federation.upload(peer, EVERYONE) for peer in EVERYONE}
        for update in uploads.values():
            total.add(update)
        self.sum = total.close().to_bytes()
        self.updates = [SealedUpdate.from_bytes(uploads[peer], self.terms) for peer in OTHERS]
        federation.sums.append(self.sum)

    def sum_read_with(self, thief: Insider) -> np.ndarray:
        """Decrypt the sum."""
        return thief.read_sum(self.sum)

    def others_read_with(self, thief: Insider) -> np.ndarray:
        """Take off the masks that the others share with the stolen site, and decrypt."""
        return thief.read([thief.unmask(update, self.terms, self.state) for update in self.updates])

    def check_read(self, thief: Insider) -> None:
        """Check that a thief reads the round."""
        assert np.array_equal(self.sum_read_with(thief), sum(self.truth.values()))
        assert np.array_equal(self.others_read_with(thief), sum(self.truth[peer] for peer in OTHERS))

    def check_unreadable(self, thief: Insider) -> None:
        """Check that a thief reads nothing of the round, and nothing with the key or the masks alone."""
        for read in (self.sum_read_with, self.others_read_with):
            with pytest.raises(ResidualError):
                read(thief)
        total = EncryptedAggregate.from_bytes(self.sum, thief.agreement)
        as_update = replace(self.updates[0], residues=total.residues)
        assert uniform_noise_p(thief.agreement, thief.read_noise(as_update)) > LEAST_LIKELY


@pytest.fixture
def begun(found, founded_once):
    """A consortium with an epoch of two rounds; the first round of training is prepared."""
    experiment = founded_once.experiment
    federation = found(replace(experiment, crypto=CryptoTerms(epoch_rounds=2)))
    federation.announce()
    secrets = federation.entrust()
    for site, secret in secrets.items():
        federation.ask(site, Request.OPEN, session=federation.session, secret=secret)
    federation.sealed = secrets[STOLEN]
    federation.prepare_all()
    federation.sum_up()
    federation.prepare_all()
    return federation


def record(federation) -> list[Recording]:
    """Go on with the run up to the second epoch; return what the provider has of either."""
    recordings = [Recording(federation, FIRST)]
    federation.prepare_all()
    recordings.append(Recording(federation, SECOND))
    return recordings


@pytest.fixture
def kept(monkeypatch):
    """Sites whose disks forget nothing: secrets that are replaced, and run keys that are deleted, by site and name."""
    found = {}
    keep_epoch, delete = RunFiles.keep_epoch, Vault.delete

    def keep_all(self, secrets):
        if self.has_epoch():
            found[self._vault.directory.name, "epoch"] = self.epoch()
        keep_epoch(self, secrets)

    def delete_nothing(self, name):
        if name.endswith("ephemeral.secret") and self.has(name):
            found[self.directory.name, "run key"] = self.read_secret(name)
        delete(self, name)

    monkeypatch.setattr(RunFiles, "keep_epoch", keep_all)
    monkeypatch.setattr(Vault, "delete", delete_nothing)
    return lambda federation, what: found[federation.vault(STOLEN).directory.name, what]


def test_with_the_old_secrets_kept_the_first_epoch_is_read_too(kept, begun):
    first, _ = record(begun)

    first.check_read(Insider(begun, STOLEN, kept(begun, "epoch")))


def test_with_the_run_key_kept_the_first_epoch_s_secrets_are_opened_once_more(kept, begun):
    first, _ = record(begun)
    member, session = begun.member(STOLEN), begun.parsed_session()
    pairs = agree_pairs(
        agreement=member.agreement,
        session=session,
        site=STOLEN,
        identity=member.identity,
        ephemeral=X25519PrivateKey.from_private_bytes(kept(begun, "run key").reveal()),
        consortium_secret=member.consortium_secret,
    )
    keys = PairKeys(agreement=member.agreement, session=session, site=STOLEN, secrets=pairs)
    common = keys.open(SealedSecret.from_bytes(begun.sealed, member.agreement, session))

    first.check_read(Insider(begun, STOLEN, EpochSecrets(epoch=1, common=common, pairs=pairs)))


def test_with_secrets_that_only_count_on_the_first_epoch_is_read_too(begun, monkeypatch):
    monkeypatch.setattr(EpochSecrets, "next", lambda self: replace(self, epoch=self.epoch + 1))
    first, second = record(begun)

    for recording in (first, second):
        recording.check_read(Insider(begun, STOLEN))


def test_a_vault_of_the_second_epoch_reads_the_second_and_nothing_of_the_first(begun):
    first, second = record(begun)

    thief = Insider(begun, STOLEN)
    assert thief.keys.epoch == 2
    second.check_read(thief)
    first.check_unreadable(thief)


@pytest.mark.parametrize("known", ["common", "pairs"])
def test_either_half_of_the_first_epoch_s_secrets_opens_no_more_than_that_half(kept, begun, known):
    first, _ = record(begun)
    second_epoch, first_epoch = RunFiles(begun.vault(STOLEN), begun.run).epoch(), kept(begun, "epoch")

    thief = Insider(begun, STOLEN, replace(second_epoch, epoch=1, **{known: getattr(first_epoch, known)}))

    with pytest.raises(ResidualError):
        first.others_read_with(thief)
    if known == "common":
        assert np.array_equal(first.sum_read_with(thief), sum(first.truth.values()))
    else:
        with pytest.raises(ResidualError):
            first.sum_read_with(thief)


def test_after_the_run_key_is_gone_the_sealed_secret_opens_no_more(begun):
    record(begun)
    files = RunFiles(begun.vault(STOLEN), begun.run)
    session = begun.parsed_session()
    sealed = SealedSecret.from_bytes(begun.sealed, begun.agreement, session)

    assert not files.has_ephemeral()
    with pytest.raises(SealError):
        RunKeys.load(begun.member(STOLEN), begun.run).pairs.open(sealed)


def test_a_run_key_that_a_crash_left_over_does_not_outlive_the_first_epoch_even_if_there_is_another_crash(
    begun, monkeypatch
):
    files = RunFiles(begun.vault(STOLEN), begun.run)
    ephemeral = begun.vault(STOLEN).path(f"runs/{begun.run.hex()}/ephemeral.secret")
    Recording(begun, FIRST)
    ephemeral.write_bytes(bytes(32))  # the crash that came between session and deletion, when the run was opened
    with monkeypatch.context() as patch:
        patch.setattr(Vault, "delete", killed_at(Vault.delete, "ephemeral.secret"))
        with pytest.raises(KeyboardInterrupt):
            begun.prepare(STOLEN, SECOND)
    assert ephemeral.exists()

    begun.prepare(STOLEN, SECOND)

    assert files.epoch().epoch == 2
    assert not ephemeral.exists()


def killed_at(delete, name):
    def die(self, path):
        if path.endswith(name):
            raise KeyboardInterrupt
        delete(self, path)

    return die
