"""A hospital that was expelled reads on, or comes back under another's name.

Who: a hospital that the next agreement's roster does not hold, with its whole vault: identity, the old consortium
secret, the old run's keys, which it never deleted. The provider gives it all that the next run's sites send. Want: the
next run's sums, or a part in it.
How: it opens the sealed secret with what it has, in place of each site that got one; it decrypts with the old key; it
signs a card.
Answer: the next agreement is another roster with another consortium secret, and its run has fresh keys, which nothing
old leads to. What the expelled hospital keeps is what it had: the old run, and the model that the new one starts from.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from coalition import refusal, truth
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from next_agreement import next_agreement

from clients.run.files import RunFiles
from clients.run.start import start_of
from clients.secrets.ckks import Decryptor
from clients.secrets.identity import Identity
from clients.secrets.keys import EpochKeys, EpochSecrets, PairKeys, agree_pairs
from clients.secrets.secret import SecretBytes
from protocol.agreement import Agreement
from protocol.envelope import Request
from protocol.errors import ResidualError, SealError, SecondUploadError
from protocol.handshake import RunCard, SealedSecret, Session
from protocol.packing import Integers
from protocol.update import EncryptedAggregate

EXPELLED = 3
"""Roster position, the last one, so that the others keep theirs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loot:
    """What a hospital has of its time in the consortium.

    Attributes:
        identity: Its private keys.
        consortium_secret: P of the agreement that it was in.
        secrets: The old run's last epoch.
        run_key: Its X25519 key of a run.
    """

    identity: Identity
    consortium_secret: SecretBytes
    secrets: EpochSecrets
    run_key: X25519PrivateKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What the provider has of the next run's first training round.

    Attributes:
        agreement: The next agreement.
        session: The run cards.
        sealed: Recipient -> the sealed secret.
        total: The sum.
        truth: What the sum is of, for comparison.
    """

    agreement: Agreement
    session: Session
    sealed: dict[int, SealedSecret]
    total: EncryptedAggregate
    truth: Integers


@pytest.fixture
def loot(summed):
    """Everything of one hospital of the old run, which all have ended; it has never deleted anything."""
    member = summed.member(EXPELLED)
    loot = Loot(
        identity=member.identity,
        consortium_secret=member.consortium_secret,
        secrets=RunFiles(member.vault, summed.run).epoch(),
        run_key=X25519PrivateKey.generate(),
    )
    for site in summed.everyone:
        summed.close(site)
    return loot


def record(consortium) -> tuple[Traffic, X25519PrivateKey | None]:
    """Run two rounds; return what the provider has, and the run key of the site in question, if it has one."""
    consortium.announce()
    own = None
    if EXPELLED in consortium.everyone:
        own = RunFiles(consortium.vault(EXPELLED), consortium.run).ephemeral()
    session, agreement = consortium.parsed_session(), consortium.agreement
    sealed = consortium.entrust()
    for site, secret in sealed.items():
        consortium.ask(site, Request.OPEN, session=consortium.session, secret=secret)
    for _ in range(2):
        consortium.prepare_all()
        true = sum(truth(consortium, site) for site in consortium.everyone)
        total = consortium.sum_up()
    traffic = Traffic(
        agreement=agreement,
        session=session,
        sealed={site: SealedSecret.from_bytes(secret, agreement, session) for site, secret in sealed.items()},
        total=EncryptedAggregate.from_bytes(total, agreement),
        truth=true,
    )
    return traffic, own


def opened(traffic: Traffic, loot: Loot, recipient: int) -> SecretBytes:
    """Open what was sealed to a site as that site would, with other keys than its own."""
    pairs = agree_pairs(
        agreement=traffic.agreement,
        session=traffic.session,
        site=recipient,
        identity=loot.identity,
        ephemeral=loot.run_key,
        consortium_secret=loot.consortium_secret,
    )
    keys = PairKeys(agreement=traffic.agreement, session=traffic.session, site=recipient, secrets=pairs)
    return keys.open(traffic.sealed[recipient])


def read(traffic: Traffic, secret: SecretBytes) -> Integers:
    """Decrypt the sum with the key that follows from an epoch secret."""
    keys = EpochKeys(secret, traffic.agreement, traffic.session.digest)
    return Decryptor(keys.ckks).decrypt(traffic.total.residues, [proof.seeds for proof in traffic.total.proofs])


def test_a_hospital_that_stays_in_the_roster_opens_its_secret_and_reads_the_sum(summed, loot):
    stays = next_agreement(summed, sites=4, start_from=0)
    traffic, run_key = record(stays)
    within = replace(loot, run_key=run_key, consortium_secret=stays.member(EXPELLED).consortium_secret)

    assert np.array_equal(read(traffic, opened(traffic, within, EXPELLED)), traffic.truth)


@pytest.mark.parametrize("known", ["the old consortium secret", "the new consortium secret"])
def test_an_expelled_one_opens_nothing_that_was_sealed_to_the_others(summed, loot, known):
    expels = next_agreement(summed, sites=3, start_from=0)
    traffic, run_key = record(expels)
    assert run_key is None
    if known == "the new consortium secret":  # somebody has told it
        loot = replace(loot, consortium_secret=expels.member(0).consortium_secret)

    assert sorted(traffic.sealed) == [1, 2]
    for recipient in traffic.sealed:
        with pytest.raises(SealError):
            opened(traffic, loot, recipient)


def test_if_the_new_run_went_on_with_the_old_secret_the_expelled_one_would_read_it(summed, loot, monkeypatch):
    monkeypatch.setattr(EpochKeys, "draw", staticmethod(lambda: loot.secrets.common))
    traffic, _ = record(next_agreement(summed, sites=3, start_from=0))

    assert np.array_equal(read(traffic, loot.secrets.common), traffic.truth)


def test_with_the_old_run_s_keys_and_all_that_follows_from_them_it_reads_nothing_of_the_new_one(summed, loot):
    traffic, _ = record(next_agreement(summed, sites=3, start_from=0))
    secrets = loot.secrets
    for _ in range(4):
        for secret in (secrets.common, *secrets.pairs.values()):
            with pytest.raises(ResidualError):
                read(traffic, secret)
        secrets = secrets.next()


def test_it_shares_no_mask_with_anybody_in_the_new_run(summed, loot):
    expels = next_agreement(summed, sites=3, start_from=0)
    record(expels)

    for site in expels.everyone:
        pairs = RunFiles(expels.vault(site), expels.run).epoch().pairs
        assert sorted(pairs) == [other for other in expels.everyone if other != site]
        assert not {pair.reveal() for pair in pairs.values()} & {pair.reveal() for pair in loot.secrets.pairs.values()}


@pytest.mark.parametrize(
    ("place", "beside", "why"),
    [
        (2, (0, 1), "SignatureError"),  # in another's place
        (EXPELLED, (0, 1), "SiteMismatchError"),  # in its own, which is no more
        (EXPELLED, (0, 1, 2), "LengthError"),  # as one more
    ],
)
def test_its_card_is_in_no_session_of_the_new_run(summed, loot, grid_of, place, beside, why):
    expels = next_agreement(summed, sites=3, start_from=0)
    expels.announce()
    unsigned = RunCard(
        site=place,
        run=expels.run,
        agreement=expels.agreement.digest,
        exchange_key=loot.run_key.public_key().public_bytes_raw(),
        nonce=bytes(32),
        signature=b"",
    )
    card = replace(unsigned, signature=loot.identity.sign(unsigned.signed_bytes())).to_bytes()
    session = expels.session_of(*beside) + card

    assert refusal(grid_of(expels), expels, 0, Request.ENTRUST, session=session) == why
    assert RunFiles(expels.vault(0), expels.run).session() is None


def test_its_own_vault_still_stands_under_the_old_agreement_and_answers_for_no_other(closed):
    old = closed.agreement
    expels = next_agreement(closed, sites=3, start_from=0)
    outsider = replace(expels, experiment=closed.experiment)

    assert outsider.member(EXPELLED).agreement == old
    with pytest.raises(SecondUploadError):  # the old agreement's run has begun, and it knows no other agreement
        outsider.ask(EXPELLED, Request.ANNOUNCE)


def test_what_it_keeps_is_the_model_that_the_new_run_starts_from(closed):
    own = closed.values(EXPELLED)
    expels = next_agreement(closed, sites=3, start_from=0)
    expels.announce()

    assert np.array_equal(start_of(expels.member(0)).model.values, own)
