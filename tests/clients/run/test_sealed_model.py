"""A starting model opens for the site it was sealed to, under one agreement; whatever else comes changes nothing."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
from hostile import flips, hostile_bytes, resized
from hypothesis import HealthCheck, given, settings
from next_agreement import next_agreement

from clients.learning.starting_model import starting_model_bytes
from clients.run import sealed_model
from clients.run.sealed_model import SealedModel, open_starting_model, seal_starting_model
from clients.run.start import STARTING_MODELS, share_starting_model, start_of, take_starting_model
from clients.secrets.identity import Identity
from clients.secrets.secret import SecretBytes
from protocol.agreement import SiteCard
from protocol.errors import (
    AgreementMismatchError,
    ConfigurationError,
    LengthError,
    MalformedError,
    ProtocolError,
    SealError,
    SignatureError,
    SiteMismatchError,
)

SENDER, OTHER, NEW = 0, 1, 4
HEAD, SEAL, SIGNATURE = (4, 2, 2, 32, 32), 16, 64


@pytest.fixture(scope="module")
def joined(closed_once, tmp_path_factory):
    """Four sites that have ended a run, and a fifth that joins them."""
    federation = closed_once.copied_to(tmp_path_factory.mktemp("joined") / "run")
    return next_agreement(federation, sites=5, start_from=SENDER)


@pytest.fixture(scope="module")
def sealed(joined):
    return share_starting_model(joined.member(SENDER), joined.member(NEW).name)


@pytest.fixture
def refused(joined):
    """Have a site refuse what it is to take, and check that nothing in its vault has changed."""

    def contents(member):
        files = [path for path in member.vault.directory.rglob("*") if path.is_file() and path.name != ".lock"]
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}

    def check(error, data, member=None):
        member = member or joined.member(NEW)
        before = contents(member)
        with pytest.raises(error):
            take_starting_model(member, data)
        assert contents(member) == before
        assert not member.vault.has(STARTING_MODELS)

    return check


def forged(joined, sealed, *, signer=SENDER, **changes):
    """Return a sealed model with other fields, signed by a site."""
    changed = replace(SealedModel.from_bytes(sealed, joined.agreement), **changes)
    return replace(changed, signature=joined.member(signer).identity.sign(changed.signed_bytes())).to_bytes()


def test_the_recipient_opens_the_sender_s_model(joined, sealed):
    model = open_starting_model(joined.member(NEW), sealed)

    assert model.to_bytes() == start_of(joined.member(SENDER)).model.to_bytes()
    assert len(sealed) == sum(HEAD) + starting_model_bytes(joined.agreement.terms) + SEAL + SIGNATURE


def test_nothing_of_the_model_is_to_be_read_in_it_and_no_two_are_alike(joined, sealed):
    model = start_of(joined.member(SENDER)).model

    assert model.values.tobytes()[:8] not in sealed
    assert model.purpose.to_bytes() not in sealed
    again = share_starting_model(joined.member(SENDER), joined.member(NEW).name)
    first, second = (SealedModel.from_bytes(data, joined.agreement) for data in (sealed, again))
    assert first.exchange_key != second.exchange_key
    assert first.sealed != second.sealed


def test_taking_it_twice_or_from_two_sites_is_the_same(closed_once, tmp_path):
    joined = next_agreement(closed_once.copied_to(tmp_path / "run"), sites=5, start_from=SENDER)
    member, kept = joined.member(NEW), []
    for sender in (SENDER, SENDER, OTHER):
        take_starting_model(member, share_starting_model(joined.member(sender), member.name))
        (file,) = member.vault.path(STARTING_MODELS).iterdir()
        kept.append((file.name, file.read_bytes(), file.stat().st_mode & 0o777))

    assert len(set(kept)) == 1
    assert kept[0][2] == 0o600


def test_another_site_cannot_open_it_whatever_name_it_writes_on_it(joined, sealed):
    other = joined.member(OTHER)
    with pytest.raises(SiteMismatchError):
        take_starting_model(other, sealed)
    with pytest.raises(SignatureError):
        take_starting_model(
            other, replace(SealedModel.from_bytes(sealed, joined.agreement), recipient=OTHER).to_bytes()
        )
    with pytest.raises(SealError):  # even if the sender itself signs it
        take_starting_model(other, forged(joined, sealed, recipient=OTHER))


def test_a_sender_that_another_site_poses_as_is_refused(joined, sealed, refused):
    refused(SignatureError, forged(joined, sealed, signer=OTHER))
    refused(SealError, forged(joined, sealed, signer=OTHER, sender=OTHER))


def test_who_is_no_member_can_seal_nothing_even_with_the_consortium_secret(joined, refused, monkeypatch):
    stranger = replace(joined.member(SENDER), identity=Identity.generate())
    data = seal_starting_model(stranger, joined.agreement.roster[NEW], start_of(joined.member(SENDER)).model)

    refused(SignatureError, data)
    monkeypatch.setattr(SiteCard, "verify", lambda *_: None)
    refused(SealError, data)  # the key is that of the site that it poses as


def test_who_lacks_the_consortium_secret_can_neither_seal_nor_open(joined, sealed, monkeypatch):
    outsider = replace(joined.member(SENDER), consortium_secret=SecretBytes(os.urandom(32)))
    model = start_of(joined.member(SENDER)).model
    with pytest.raises(ConfigurationError, match="not the model that the agreement starts from"):
        seal_starting_model(outsider, joined.agreement.roster[NEW], model)

    thief = replace(joined.member(NEW), consortium_secret=SecretBytes(os.urandom(32)))
    with pytest.raises(SealError):
        open_starting_model(thief, sealed)


def test_another_agreement_s_is_refused(joined, sealed, closed_once, tmp_path):
    secret = joined.member(SENDER).consortium_secret
    elsewhere = closed_once.copied_to(tmp_path / "run")
    vault = joined.vault(NEW).directory
    identity = Identity.from_secret(joined.vault(NEW).read_secret("identity.secret"))
    other = next_agreement(elsewhere, sites=5, start_from=SENDER, consortium_secret=secret)
    member = replace(other.member(NEW), identity=identity, site=NEW)
    assert vault != member.vault.directory

    with pytest.raises(AgreementMismatchError):
        take_starting_model(member, sealed)
    with pytest.raises(SignatureError):
        take_starting_model(
            member,
            replace(SealedModel.from_bytes(sealed, joined.agreement), agreement=other.agreement.digest).to_bytes(),
        )


@pytest.mark.parametrize("fields", [{"sender": 5}, {"recipient": 5}, {"sender": NEW}, {"recipient": SENDER}])
def test_places_outside_the_roster_and_a_site_s_own_are_refused(joined, sealed, refused, fields):
    refused(SiteMismatchError, replace(SealedModel.from_bytes(sealed, joined.agreement), **fields).to_bytes())


def test_another_model_than_the_agreed_one_is_refused_even_from_a_member(joined, refused, monkeypatch):
    member, model = joined.member(SENDER), start_of(joined.member(SENDER)).model
    other = replace(model, values=model.values + 1)
    with pytest.raises(ConfigurationError, match="not the model that the agreement starts from"):
        seal_starting_model(member, joined.agreement.roster[NEW], other)
    with monkeypatch.context() as patch:
        patch.setattr(sealed_model.hmac, "compare_digest", lambda *_: True)
        data = seal_starting_model(member, joined.agreement.roster[NEW], other)

    refused(MalformedError, data)


def test_without_that_check_a_member_chooses_the_model_that_the_new_site_starts_from(joined, monkeypatch):
    member, model = joined.member(SENDER), start_of(joined.member(SENDER)).model
    other = replace(model, values=model.values + 1)
    monkeypatch.setattr(sealed_model.hmac, "compare_digest", lambda *_: True)
    data = seal_starting_model(member, joined.agreement.roster[NEW], other)

    assert open_starting_model(joined.member(NEW), data).to_bytes() == other.to_bytes()


def test_no_bit_can_be_changed(joined, sealed):
    member = joined.member(NEW)
    for _, data in flips(sealed, [*range(0, len(sealed), 7), *range(sum(HEAD))]):
        with pytest.raises(ProtocolError):
            open_starting_model(member, data)


def test_without_the_signature_the_seal_still_finds_every_change_but_not_whose_it_was(joined, sealed, monkeypatch):
    monkeypatch.setattr(SiteCard, "verify", lambda *_: None)
    member = joined.member(NEW)
    for _, data in flips(sealed[:-SIGNATURE], [*range(4, sum(HEAD)), *range(sum(HEAD), len(sealed) - SIGNATURE, 9)]):
        with pytest.raises(ProtocolError):
            open_starting_model(member, data + sealed[-SIGNATURE:])


def test_every_other_length_is_refused(joined, sealed, refused):
    body = len(sealed) - sum(HEAD) - SIGNATURE
    for data in resized(sealed, (*HEAD, body, SIGNATURE)):
        refused(LengthError, data)
    refused(LengthError, sealed + bytes(1 << 24))


@pytest.mark.parametrize("key", [bytes(32), b"\1" + bytes(31)])
def test_a_key_of_small_order_is_refused(joined, sealed, refused, key):
    refused(SealError, forged(joined, sealed, exchange_key=key))


def test_hostile_bytes_raise_nothing_but_a_refusal(joined, sealed):
    member = joined.member(NEW)

    @settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(hostile_bytes(sealed))
    def check(data):
        try:
            open_starting_model(member, data)
        except ProtocolError:
            return
        assert data == sealed

    check()


def test_a_site_seals_to_another_one_of_the_roster_only(joined):
    member, model = joined.member(SENDER), start_of(joined.member(SENDER)).model
    for card in (
        member.agreement.roster[SENDER],
        replace(member.agreement.roster[NEW], exchange_key="22" * 32),
        replace(member.agreement.roster[NEW], name="hospital-9"),
    ):
        with pytest.raises(ConfigurationError):
            seal_starting_model(member, card, model)


def test_where_no_model_was_agreed_there_is_nothing_to_share_or_take(founded, sealed):
    with pytest.raises(ConfigurationError, match="there is nothing to share"):
        share_starting_model(founded.member(SENDER), founded.member(OTHER).name)
    with pytest.raises(ConfigurationError, match="there is nothing to take"):
        take_starting_model(founded.member(OTHER), sealed)
