"""A sealed epoch secret that is replayed, reflected, or handed to another site than the one it was sealed to.

Who: the provider, which carries them. Want: sites that take an old secret, one that it may have learnt since, for
new.
How: it presents the secret of an earlier run, of another epoch or of another recipient, or sends it back to its
sender, with its visible fields changed as needed. Answer: the steward's signature covers all of these fields; and the
key under which the secret is sealed is bound to each of them and to the run's fresh keys, so that a changed field
does not open.
"""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
from coalition import refusal, weaken_pairs
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

from clients.run.files import RunFiles
from clients.run.run_keys import RunKeys
from clients.secrets.keys import EpochKeys, PairKeys
from protocol.agreement import SiteCard
from protocol.envelope import Request
from protocol.errors import SealError
from protocol.handshake import RUN_BYTES, SealedSecret, Session
from protocol.schedule import expand, extract

STEWARD, VICTIM, OTHER = 0, 1, 2


@pytest.fixture
def announced(founded):
    """A run in which all sites have announced themselves, and the steward has drawn a secret."""
    founded.announce()
    founded.entrust()
    return founded


def pair_keys(federation, site: int) -> PairKeys:
    return RunKeys.load(federation.member(site), federation.run).pairs


def sealed_by_steward(federation, to: int, *, secret=None, epoch: int = 1) -> SealedSecret:
    """Seal a secret, by default the run's, with the steward's own keys."""
    member, session = federation.member(STEWARD), federation.parsed_session()
    secret = secret or RunFiles(member.vault, federation.run).epoch().common
    check = EpochKeys(secret, federation.agreement, session.digest).check()
    return pair_keys(federation, STEWARD).seal(secret, check, member.identity, epoch=epoch, to=to)


def of_another_recipient(federation):
    return sealed_by_steward(federation, OTHER), {"recipient": VICTIM}


def of_another_epoch(federation):
    return sealed_by_steward(federation, VICTIM, secret=EpochKeys.draw(), epoch=2), {"epoch": 1}


def of_an_earlier_run(federation):
    old = sealed_by_steward(federation, VICTIM)
    federation.run = os.urandom(RUN_BYTES)
    federation.announce()
    federation.entrust()
    return old, {"session": federation.parsed_session().digest}


PRESENTED = {
    of_another_recipient: "SiteMismatchError",
    of_another_epoch: "EpochMismatchError",
    of_an_earlier_run: "SessionMismatchError",
}


def present(federation, sealed: SealedSecret) -> dict[str, bytes]:
    return {"session": federation.session, "secret": sealed.to_bytes()}


@pytest.mark.parametrize("take", PRESENTED, ids=lambda take: take.__name__)
def test_a_secret_that_was_not_sealed_to_this_site_now_is_refused(announced, grid_of, take):
    sealed, _ = take(announced)

    got = refusal(grid_of(announced), announced, VICTIM, Request.OPEN, **present(announced, sealed))

    assert got == PRESENTED[take]
    assert RunFiles(announced.vault(VICTIM), announced.run).session() is None


@pytest.mark.parametrize("take", PRESENTED, ids=lambda take: take.__name__)
def test_changing_its_fields_to_fit_breaks_the_signature(announced, grid_of, take):
    sealed, changes = take(announced)
    changed = replace(sealed, **changes)

    got = refusal(grid_of(announced), announced, VICTIM, Request.OPEN, **present(announced, changed))

    assert got == "SignatureError"


@pytest.mark.parametrize("take", PRESENTED, ids=lambda take: take.__name__)
def test_even_without_the_signature_it_does_not_open(announced, grid_of, monkeypatch, take):
    sealed, changes = take(announced)
    monkeypatch.setattr(SiteCard, "verify", lambda *_: None)
    changed = replace(sealed, **changes)

    got = refusal(grid_of(announced), announced, VICTIM, Request.OPEN, **present(announced, changed))

    assert got == "SealError"


def static(monkeypatch):
    """Have pair keys, and the run's digest, say nothing about this run's fresh keys."""

    def agree(card, *, agreement, identity, consortium_secret, **_):
        peer = X25519PublicKey.from_public_bytes(bytes.fromhex(agreement.roster[card.site].exchange_key))
        return extract(consortium_secret.reveal(), identity.exchange_key.exchange(peer))

    weaken_pairs(monkeypatch, agree)
    monkeypatch.setattr(Session, "digest", property(lambda self: bytes(32)))


def test_with_static_keys_alone_the_secret_of_an_earlier_run_is_taken_for_new(announced, monkeypatch):
    static(monkeypatch)
    announced.run = os.urandom(RUN_BYTES)
    announced.announce()
    announced.entrust()
    learnt = RunFiles(announced.vault(STEWARD), announced.run).epoch().common  # say, from a backup of that time
    old, _ = of_an_earlier_run(announced)

    announced.ask(VICTIM, Request.OPEN, **present(announced, old))

    assert RunFiles(announced.vault(VICTIM), announced.run).epoch().common == learnt
    assert RunFiles(announced.vault(STEWARD), announced.run).epoch().common != learnt


def test_with_neither_signature_nor_epoch_in_the_key_another_epoch_s_secret_is_taken(announced, monkeypatch):
    monkeypatch.setattr(SiteCard, "verify", lambda *_: None)
    monkeypatch.setattr(PairKeys, "_sealing_key", key_without("epoch"))
    sealed, changes = of_another_epoch(announced)

    announced.ask(VICTIM, Request.OPEN, **present(announced, replace(sealed, **changes)))

    of_victim, of_steward = (RunFiles(announced.vault(site), announced.run).epoch() for site in (VICTIM, STEWARD))
    assert of_victim.common != of_steward.common


def test_with_one_key_for_all_sites_a_secret_opens_at_whom_it_was_not_sealed_to(founded, monkeypatch):
    monkeypatch.setattr(SiteCard, "verify", lambda *_: None)
    weaken_pairs(monkeypatch, lambda card, *, consortium_secret, **_: consortium_secret.reveal())
    monkeypatch.setattr(PairKeys, "_sealing_key", key_without("recipient"))
    founded.announce()
    founded.entrust()
    sealed, changes = of_another_recipient(founded)

    founded.ask(VICTIM, Request.OPEN, **present(founded, replace(sealed, **changes)))

    assert RunFiles(founded.vault(VICTIM), founded.run).session() is not None


def key_without(*names: str):
    """Return the derivation of sealing keys, less some of the fields that it binds."""

    def sealing_key(self, epoch, sender, recipient):
        peer = recipient if sender == self._site else sender
        fields = {
            "agreement": self._agreement.digest,
            "session": self._session.digest,
            "epoch": epoch,
            "sender": sender,
            "recipient": recipient,
        }
        for left_out in names:
            del fields[left_out]
        return expand(self._secrets[peer].reveal(), "seal", *fields.values())

    return sealing_key


def reflected(federation) -> SealedSecret:
    """Turn a secret of the steward's around, as if the victim had sealed it to the steward."""
    return replace(sealed_by_steward(federation, VICTIM), sender=VICTIM, recipient=STEWARD)


def test_without_the_direction_in_the_key_a_reflected_secret_opens(announced, monkeypatch):
    monkeypatch.setattr(PairKeys, "_sealing_key", key_without("sender", "recipient"))

    opened = pair_keys(announced, STEWARD).open(reflected(announced))

    assert opened == RunFiles(announced.vault(STEWARD), announced.run).epoch().common


def test_a_reflected_secret_does_not_open_and_is_not_the_steward_s_to_take(announced, grid_of):
    sealed = reflected(announced)

    with pytest.raises(SealError):
        pair_keys(announced, STEWARD).open(sealed)
    got = refusal(grid_of(announced), announced, STEWARD, Request.OPEN, **present(announced, sealed))
    assert got == "SiteMismatchError"
    back = sealed_by_steward(announced, VICTIM)
    got = refusal(grid_of(announced), announced, STEWARD, Request.OPEN, **present(announced, back))
    assert got == "SiteMismatchError"
