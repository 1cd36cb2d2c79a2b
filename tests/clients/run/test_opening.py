"""Opening a run: a site takes part with its own fresh card only, and takes one epoch secret, from the steward only."""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import count

import pytest
from crash import killed_after
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from next_agreement import next_agreement
from recovery import ready, sum_up

from clients.run.files import RunFiles
from clients.run.opening import MAX_RUNS, Opening
from clients.run.run_keys import RunKeys
from clients.secrets.identity import Identity
from clients.secrets.keys import EpochKeys
from protocol.envelope import Request
from protocol.errors import (
    AgreementMismatchError,
    CohortError,
    EpochMismatchError,
    LengthError,
    MalformedError,
    ProtocolError,
    SealError,
    SessionMismatchError,
    SignatureError,
    SiteMismatchError,
)
from protocol.handshake import RunCard, SealedSecret
from protocol.terms import CryptoTerms


@pytest.fixture
def announced(founded):
    """A run in which all sites have announced themselves."""
    founded.announce()
    return founded


def new_card(federation, position, *, signer=None, **changes):
    """Make another card for a site, properly signed with its own or another identity."""
    fields = {
        "site": position,
        "run": federation.run,
        "agreement": federation.agreement.digest,
        "exchange_key": X25519PrivateKey.generate().public_key().public_bytes_raw(),
        "nonce": os.urandom(32),
        "signature": b"",
    }
    unsigned = RunCard(**fields | changes)
    identity = signer or federation.member(position).identity
    return replace(unsigned, signature=identity.sign(unsigned.signed_bytes())).to_bytes()


def files_with(federation, position, needle):
    """Name every file below a site's vault that holds a byte string."""
    paths = (path for path in federation.vault(position).directory.rglob("*") if path.is_file())
    return [path.name for path in paths if needle in path.read_bytes()]


def seal_for(federation, recipient, *, secret=None, check=None, epoch=1, signer=None):
    """Seal an epoch secret with the steward's own keys, as only the steward can."""
    steward, session = federation.member(0), federation.parsed_session()
    secret = secret or RunFiles(steward.vault, federation.run).epoch().common
    check = check or EpochKeys(secret, federation.agreement, session.digest).check()
    pair_keys = RunKeys.load(steward, federation.run).pairs
    return pair_keys.seal(secret, check, signer or steward.identity, epoch=epoch, to=recipient).to_bytes()


def test_a_site_announces_itself_with_one_card_per_run_also_after_a_restart(founded):
    cards = [founded.ask(1, Request.ANNOUNCE)["card"] for _ in range(3)]

    assert len(set(cards)) == 1
    card = RunCard.from_bytes(cards[0], founded.agreement, founded.run)
    assert card.site == 1
    assert card.exchange_key == RunFiles(founded.vault(1), founded.run).ephemeral().public_key().public_bytes_raw()


def test_every_run_has_its_own_key_and_nonce(founded):
    cards = []
    for _ in range(2):
        founded.run = os.urandom(16)
        founded.announce()
        cards += [founded.card_of(site) for site in founded.everyone]

    assert len({card.exchange_key for card in cards}) == len({card.nonce for card in cards}) == 8


def test_a_provider_cannot_fill_the_vault_with_runs(founded):
    membership = founded.site(0).membership
    for number in range(MAX_RUNS):
        Opening(membership, number.to_bytes(16, "big")).handle_announce()

    with pytest.raises(SessionMismatchError, match="runs announced"):
        Opening(membership, bytes([255] * 16)).handle_announce()
    Opening(membership, bytes(16)).handle_announce()  # a run that it knows goes on


def test_runs_of_earlier_agreements_do_not_count(founded):
    earlier = founded.agreement.digest
    for number in range(MAX_RUNS):
        Opening(founded.member(0), number.to_bytes(16, "big")).handle_announce()

    later = next_agreement(founded, sites=3, start_from=None)

    later.announce()
    files = RunFiles(later.vault(0), later.run)
    assert (files.other_runs(earlier), files.other_runs(later.agreement.digest)) == (MAX_RUNS, 0)
    assert RunFiles(later.vault(0), bytes(16)).other_runs(later.agreement.digest) == 1


def test_a_closed_run_is_announced_with_the_same_card_and_no_new_key(summed):
    # a provider that starts again has to find the site
    summed.close(1)

    assert summed.ask(1, Request.ANNOUNCE)["card"] == summed.cards[1]
    assert not RunFiles(summed.vault(1), summed.run).has_ephemeral()


def test_an_opened_run_is_announced_with_the_same_card_and_no_new_key(opened):
    assert opened.ask(1, Request.ANNOUNCE)["card"] == opened.cards[1]
    assert not RunFiles(opened.vault(1), opened.run).has_ephemeral()


def test_a_closed_run_is_not_opened_again(summed):
    secret = summed.entrust()[1]
    summed.close(1)
    summed.close(0)

    with pytest.raises(SessionMismatchError):
        summed.ask(1, Request.OPEN, session=summed.session, secret=secret)
    with pytest.raises(SessionMismatchError):
        summed.ask(0, Request.ENTRUST, session=summed.session)
    assert not RunFiles(summed.vault(1), summed.run).has_epoch()


def test_the_steward_s_secret_reaches_every_site(announced):
    for site, secret in announced.entrust().items():
        assert announced.ask(site, Request.OPEN, session=announced.session, secret=secret) == {}

    secrets = [RunFiles(announced.vault(site), announced.run).epoch() for site in announced.everyone]
    assert len({(epoch.epoch, epoch.common.reveal()) for epoch in secrets}) == 1
    assert all(epoch.common.reveal() not in announced.session for epoch in secrets)


def test_the_steward_draws_one_secret_however_often_it_is_asked(announced):
    assert announced.entrust() == announced.entrust() == announced.entrust()


def test_a_sealed_secret_may_come_again(opened):
    secrets = opened.entrust()

    for site, secret in secrets.items():
        opened.ask(site, Request.OPEN, session=opened.session, secret=secret)


def test_the_run_key_is_gone_from_the_disk_when_the_run_is_open(announced):
    run_keys = {
        site: RunFiles(announced.vault(site), announced.run).ephemeral().private_bytes_raw()
        for site in announced.everyone
    }
    assert all(files_with(announced, site, run_keys[site]) == ["ephemeral.secret"] for site in announced.everyone)

    for site, secret in announced.entrust().items():
        announced.ask(site, Request.OPEN, session=announced.session, secret=secret)

    assert all(files_with(announced, site, run_keys[site]) == [] for site in announced.everyone)


@pytest.mark.parametrize("site", [0, 1])
@pytest.mark.parametrize("is_asked_again", [True, False])
def test_a_crash_while_opening_leaves_no_run_key_and_no_second_secret(announced, tmp_path, site, is_asked_again):
    run_key = RunFiles(announced.vault(site), announced.run).ephemeral().private_bytes_raw()
    secret = announced.entrust()[1] if site == 1 else b""
    deaths_while_open = 0

    def open_again(federation):
        if site == 0:
            return federation.entrust()
        return federation.ask(1, Request.OPEN, session=federation.session, secret=secret)

    for operations in count():
        again = announced.copied_to(tmp_path / f"crash-{operations}")
        files = RunFiles(again.vault(site), again.run)
        with killed_after(operations) as death:
            open_again(again)
        is_open = files.session() is not None
        deaths_while_open += is_open and death.came
        kept = files.epoch() if is_open else None
        if is_asked_again or not is_open:
            open_again(again)
        if not is_asked_again:
            again.prepare(site, 0, [])  # a provider that goes on at once must not keep the key alive
        assert files_with(again, site, run_key) == []
        assert kept is None or files.epoch() == kept
        if not death.came:
            break
    assert operations > 3
    assert deaths_while_open > 1


def test_when_the_first_epoch_is_over_no_secret_is_taken_or_given(found, founded):
    epochs = found(replace(founded.experiment, crypto=CryptoTerms(epoch_rounds=1)))
    epochs.open()
    secrets = epochs.entrust()
    history = [sum_up(epochs, epochs.everyone, [])]
    kept = {site: RunFiles(epochs.vault(site), epochs.run).epoch() for site in epochs.everyone}

    for site, secret in secrets.items():  # they have not applied the sum yet: still the first epoch
        epochs.ask(site, Request.OPEN, session=epochs.session, secret=secret)
        assert RunFiles(epochs.vault(site), epochs.run).epoch() == kept[site]
    for site in epochs.everyone:
        ready(epochs, site, history)

    for site, secret in secrets.items():
        with pytest.raises(EpochMismatchError):
            epochs.ask(site, Request.OPEN, session=epochs.session, secret=secret)
        assert RunFiles(epochs.vault(site), epochs.run).epoch() == kept[site].next()
    with pytest.raises(EpochMismatchError):
        epochs.ask(0, Request.ENTRUST, session=epochs.session)


@pytest.mark.parametrize("epoch_rounds", [0, 1])
def test_a_site_that_the_secret_reaches_late_replays_what_it_missed(found, founded, epoch_rounds):
    run = found(replace(founded.experiment, crypto=CryptoTerms(epoch_rounds=epoch_rounds)))
    run.announce()
    secrets = run.entrust()
    for site in (1, 2):
        run.ask(site, Request.OPEN, session=run.session, secret=secrets[site])
    history = []
    for _ in range(2):
        history.append(sum_up(run, (0, 1, 2), history))
    with pytest.raises(SessionMismatchError):
        ready(run, 3, history)

    run.ask(3, Request.OPEN, session=run.session, secret=secrets[3])

    states = {ready(run, site, history).state for site in run.everyone}
    assert len(states) == 1
    assert len({RunFiles(run.vault(site), run.run).epoch().common.reveal() for site in run.everyone}) == 1
    with pytest.raises(CohortError):  # its records are not in the statistics
        run.upload(3, run.everyone, 2)


def test_only_the_session_s_first_site_is_steward(announced):
    for site in (1, 2, 3):
        with pytest.raises(SiteMismatchError):
            announced.ask(site, Request.ENTRUST, session=announced.session)
    assert RunFiles(announced.vault(1), announced.run).session() is None


@pytest.mark.parametrize("request_", [Request.ENTRUST, Request.OPEN])
@pytest.mark.parametrize(
    ("session_of", "error"),
    [
        (lambda run: run.session_of(0, 1), CohortError),
        (lambda run: b"", CohortError),
        (lambda run: run.session_of(1, 0, 2, 3), CohortError),
        (lambda run: run.session_of(0, 0, 1, 2), CohortError),
        (lambda run: run.session_of(0, 1, 2, 3, 3), LengthError),
        (lambda run: run.session[:-1], LengthError),
        (lambda run: run.session_of(0, 1) + new_card(run, 2, signer=Identity.generate()), SignatureError),
        (lambda run: run.session_of(0, 1) + new_card(run, 2, signer=run.member(3).identity), SignatureError),
        (lambda run: run.session_of(0, 1) + new_card(run, 2, run=os.urandom(16)), SessionMismatchError),
        (lambda run: run.session_of(0, 1) + new_card(run, 2, agreement=bytes(32)), AgreementMismatchError),
        (lambda run: run.session_of(0, 1) + new_card(run, 9, signer=Identity.generate()), SiteMismatchError),
        (
            lambda run: run.session_of(0, 1, 2) + new_card(run, 3, exchange_key=run.card_of(2).exchange_key),
            MalformedError,
        ),
        (
            lambda run: run.session_of(0, 1) + replace(run.card_of(3), site=2).to_bytes(),
            SignatureError,
        ),
    ],
    ids=[
        "too small",
        "empty",
        "not in order",
        "a site twice",
        "more than the roster",
        "torn",
        "a stranger's card",
        "a card signed by another site",
        "a card of another run",
        "a card of another agreement",
        "a site outside the roster",
        "two sites with one key",
        "another site's card at this site's place",
    ],
)
def test_a_session_that_no_honest_provider_makes_is_refused(announced, request_, session_of, error):
    site, secret = (0, b"") if request_ is Request.ENTRUST else (1, announced.entrust()[1])
    session = session_of(announced)

    with pytest.raises(error):
        announced.ask(site, request_, session=session, **({} if request_ is Request.ENTRUST else {"secret": secret}))


def test_a_session_without_this_site_is_refused(announced):
    with pytest.raises(SiteMismatchError):
        announced.ask(0, Request.ENTRUST, session=announced.session_of(1, 2, 3))
    with pytest.raises(SiteMismatchError):
        announced.ask(3, Request.OPEN, session=announced.session_of(0, 1, 2), secret=b"")


def test_a_session_with_another_card_of_this_site_s_own_is_refused(announced):
    # as a copy of this site's vault in another place would make it
    session = announced.session_of(0) + new_card(announced, 1) + announced.session_of(2, 3)

    with pytest.raises(SessionMismatchError, match="own card"):
        announced.ask(1, Request.OPEN, session=session, secret=announced.entrust()[1])


def test_a_run_is_opened_with_one_session_for_ever(opened):
    other_card = new_card(opened, 3)
    for session in (opened.session_of(0, 1, 2), opened.session_of(0, 1, 2) + other_card):
        with pytest.raises(SessionMismatchError, match="session"):
            opened.ask(0, Request.ENTRUST, session=session)
        with pytest.raises(SessionMismatchError, match="session"):
            opened.ask(1, Request.OPEN, session=session, secret=opened.entrust()[1])


def test_another_recipient_s_secret_is_refused(announced):
    secrets = announced.entrust()

    with pytest.raises(SiteMismatchError, match="recipient"):
        announced.ask(1, Request.OPEN, session=announced.session, secret=secrets[2])


def test_a_secret_of_another_epoch_is_refused(announced):
    announced.entrust()

    with pytest.raises(EpochMismatchError):
        announced.ask(1, Request.OPEN, session=announced.session, secret=seal_for(announced, 1, epoch=2))


def test_a_planted_key_is_refused(announced):
    # The provider knows every public key, but has no identity in the roster to sign with.
    announced.entrust()
    planted = seal_for(announced, 1, secret=EpochKeys.draw(), signer=Identity.generate())

    with pytest.raises(SignatureError):
        announced.ask(1, Request.OPEN, session=announced.session, secret=planted)
    assert RunFiles(announced.vault(1), announced.run).session() is None


def test_another_site_than_the_steward_cannot_seal_a_secret(announced):
    announced.entrust()
    sealed = SealedSecret.from_bytes(seal_for(announced, 1), announced.agreement, announced.parsed_session())
    other = announced.member(2)
    unsigned = replace(sealed, sender=2, signature=b"")
    forged = replace(unsigned, signature=other.identity.sign(unsigned.signed_bytes())).to_bytes()

    with pytest.raises(SiteMismatchError, match="sender"):
        announced.ask(1, Request.OPEN, session=announced.session, secret=forged)


def test_a_secret_of_an_earlier_run_is_refused(announced):
    old = announced.entrust()[1]
    announced.run = os.urandom(16)
    announced.announce()
    announced.entrust()

    with pytest.raises(SessionMismatchError):
        announced.ask(1, Request.OPEN, session=announced.session, secret=old)


def test_a_second_secret_is_refused_even_from_the_steward(opened):
    kept = RunFiles(opened.vault(1), opened.run).epoch()

    with pytest.raises(SealError, match="epoch secret"):
        opened.ask(1, Request.OPEN, session=opened.session, secret=seal_for(opened, 1, secret=EpochKeys.draw()))
    assert RunFiles(opened.vault(1), opened.run).epoch() == kept


def test_a_site_that_derives_another_ckks_key_does_not_open(announced):
    # what another SEAL version's generator would do
    announced.entrust()
    sealed = seal_for(announced, 1, check=bytes(32))

    with pytest.raises(SealError, match="CKKS key"):
        announced.ask(1, Request.OPEN, session=announced.session, secret=sealed)
    assert RunFiles(announced.vault(1), announced.run).session() is None


@pytest.mark.parametrize("at", [0, 5, 20, 60, 100, 150, -1])
def test_a_secret_with_any_bit_changed_is_refused(announced, at):
    secret = bytearray(announced.entrust()[1])
    secret[at] ^= 1

    with pytest.raises(ProtocolError):
        announced.ask(1, Request.OPEN, session=announced.session, secret=bytes(secret))
    assert RunFiles(announced.vault(1), announced.run).session() is None
