"""A site refuses to start with anything else than what it pinned."""

from __future__ import annotations

import base64
import os
from dataclasses import replace

import pytest

from clients.run.code import code_digest
from clients.run.membership import AGREEMENT, CONSORTIUM_SECRET, PIN, Membership, Place, commitment, pin
from clients.secrets.enrolment import enrol
from clients.secrets.identity import Identity
from clients.secrets.identity_file import IDENTITY, read_identity
from clients.secrets.secret import SecretBytes
from clients.secrets.vault import Vault
from protocol.agreement import Agreement, SiteId
from protocol.errors import ConfigurationError, MalformedError

P = SecretBytes(os.urandom(32))
NOT_THE_ONE = "consortium.secret is not the one that the agreement was made with: ask the coordinator"


def edit(vault, name, old, new):
    content = vault.read(name)
    assert old in content
    vault.write(name, content.replace(old, new))


def pin_as_edited(vault):
    """Pin whatever agreement lies there, as somebody with the site's keyboard could."""
    vault.write(PIN, Agreement.from_bytes(vault.read(AGREEMENT)).digest.hex().encode())


def test_each_site_finds_its_place_in_the_roster(founded):
    members = [founded.member(position) for position in founded.everyone]

    assert [member.site for member in members] == [0, 1, 2, 3]
    assert [member.name for member in members] == [f"hospital-{number}" for number in range(1, 5)]
    assert len({member.agreement.digest for member in members}) == 1
    assert all(member.consortium_secret == members[0].consortium_secret for member in members)


def test_a_membership_does_not_show_its_secrets(founded):
    member = founded.member(0)

    shown = repr(member)

    assert member.identity.to_secret().reveal()[:32].hex() not in shown
    assert repr(member.consortium_secret.reveal())[2:-1] not in shown
    assert shown.count("redacted") == 2


def test_an_edited_agreement_is_refused(founded):
    edit(founded.vault(1), AGREEMENT, b'"smallest_cohort":3', b'"smallest_cohort":4')

    with pytest.raises(ConfigurationError, match="not the agreement that this site pinned"):
        founded.member(1)
    founded.member(0)


def test_a_damaged_agreement_is_refused(founded):
    vault = founded.vault(1)
    vault.write(AGREEMENT, vault.read(AGREEMENT)[:-1])

    with pytest.raises(MalformedError):
        founded.member(1)


def test_an_edited_pin_is_refused(founded):
    vault = founded.vault(1)
    pin = vault.read(PIN)
    vault.write(PIN, (b"0" if pin[:1] != b"0" else b"1") + pin[1:])

    with pytest.raises(ConfigurationError, match="not the agreement that this site pinned"):
        founded.member(1)


@pytest.mark.parametrize("pin", [b"", b"\n", b"\xff\xfe", "é".encode()])
def test_a_damaged_pin_is_refused(founded, pin):
    founded.vault(1).write(PIN, pin)

    with pytest.raises(ConfigurationError, match="not the agreement that this site pinned"):
        founded.member(1)


def test_an_agreement_for_other_code_is_refused_even_if_it_is_pinned(founded):
    vault = founded.vault(1)
    edit(vault, AGREEMENT, code_digest().encode(), b"0" * 64)
    pin_as_edited(vault)

    with pytest.raises(ConfigurationError, match="install the release"):
        founded.member(1)


def test_an_agreement_without_this_site_s_keys_is_refused_even_if_it_is_pinned(founded):
    vault, agreement = founded.vault(1), founded.agreement
    roster = list(agreement.roster)
    roster[1] = Identity.generate().card(SiteId(roster[1].name))
    vault.write(AGREEMENT, replace(agreement, roster=tuple(roster)).to_bytes())
    pin_as_edited(vault)

    with pytest.raises(ConfigurationError, match="this site's public keys"):
        founded.member(1)


def test_an_agreement_that_holds_half_of_this_site_s_keys_is_refused(founded):
    vault, agreement = founded.vault(1), founded.agreement
    roster = list(agreement.roster)
    stranger = Identity.generate().card(SiteId(roster[1].name))
    roster[1] = replace(roster[1], exchange_key=stranger.exchange_key)
    vault.write(AGREEMENT, replace(agreement, roster=tuple(roster)).to_bytes())
    pin_as_edited(vault)

    with pytest.raises(ConfigurationError, match="this site's public keys"):
        founded.member(1)


@pytest.mark.parametrize("name", [IDENTITY, CONSORTIUM_SECRET])
def test_a_secret_that_others_may_read_is_refused(founded, name):
    founded.vault(1).path(name).chmod(0o640)

    with pytest.raises(ConfigurationError, match="may be read by others"):
        founded.member(1)


@pytest.mark.parametrize("name", [IDENTITY, CONSORTIUM_SECRET])
def test_a_secret_of_another_length_is_refused_without_showing_it(founded, name):
    founded.vault(1).write_secret(name, SecretBytes(b"Z" * 31))

    with pytest.raises(ConfigurationError) as refusal:
        founded.member(1)
    assert "ZZ" not in str(refusal.value)


@pytest.mark.parametrize("name", [AGREEMENT, PIN, IDENTITY, CONSORTIUM_SECRET])
def test_a_missing_file_is_named(founded, name):
    founded.vault(1).delete(name)

    with pytest.raises(ConfigurationError, match=name):
        founded.member(1)


@pytest.mark.parametrize("load", [Membership.load, Membership.read])
def test_another_consortium_secret_than_the_agreement_s_is_refused_without_showing_either(founded, load):
    vault, real = founded.vault(1), founded.member(1).consortium_secret
    vault.write_secret(CONSORTIUM_SECRET, P)

    with pytest.raises(ConfigurationError, match=NOT_THE_ONE) as refusal:
        load(vault)
    for secret in (P, real):
        assert secret.reveal().hex() not in str(refusal.value)
        assert commitment(secret) not in str(refusal.value)
    vault.write_secret(CONSORTIUM_SECRET, real)
    assert load(vault).consortium_secret == real


def test_what_an_agreement_commits_to_a_secret_by_is_fixed_for_ever():
    assert (
        commitment(SecretBytes(bytes(range(32)))) == "9878b7582ff8801a9cae91dd98687dc76eed710e3136f2c7346a407fd811e4e7"
    )


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_there_is_no_commitment_to_a_secret_of_another_length(length):
    with pytest.raises(ConfigurationError, match="does not hold 32 bytes"):
        commitment(SecretBytes(bytes(length)))


def test_the_consortium_secret_is_nowhere_in_the_agreement(founded):
    secret = founded.member(0).consortium_secret

    public = founded.vault(0).read(AGREEMENT)

    assert commitment(secret).encode() in public
    raw = secret.reveal()
    for form in (raw, raw.hex().encode(), base64.b64encode(raw), base64.urlsafe_b64encode(raw)):
        for start in range(0, len(form), 8):
            assert form[start : start + 8] not in public


@pytest.fixture
def newcomer(founded, tmp_path):
    """The vault of a site that has enrolled, and an agreement of a consortium that it is in."""
    vault = Vault(tmp_path / "newcomer")
    card = enrol(vault, SiteId("newcomer")).card
    roster = (*founded.agreement.roster, card)
    agreement = replace(founded.agreement, roster=roster, secret_digest=commitment(P))
    return vault, agreement


def test_pinning_writes_a_membership_that_loads(newcomer):
    vault, agreement = newcomer

    place = pin(vault, agreement=agreement, consortium_secret=P)

    assert (place.site, place.name, place.agreement) == (4, "newcomer", agreement)
    assert Place.read(vault).site == Membership.load(vault).site == 4
    assert Membership.load(vault).consortium_secret == P
    assert vault.path(CONSORTIUM_SECRET).stat().st_mode & 0o777 == 0o600
    assert pin(vault, agreement=agreement, consortium_secret=P).site == 4


@pytest.mark.parametrize(
    ("changes", "secret", "match"),
    [
        ({"code_digest": "0" * 64}, P, "install the release"),
        ({"roster": None}, P, "does not hold the card of this site, newcomer"),
        ({}, SecretBytes(bytes(31)), "does not hold 32 bytes"),
        ({}, SecretBytes(bytes(32)), NOT_THE_ONE),
        ({"secret_digest": "0" * 64}, P, NOT_THE_ONE),
    ],
)
def test_what_cannot_work_is_not_pinned(newcomer, founded, changes, secret, match):
    vault, agreement = newcomer
    if "roster" in changes:
        stranger = Identity.generate().card(SiteId("newcomer"))
        changes = {"roster": (*founded.agreement.roster, stranger)}

    with pytest.raises(ConfigurationError, match=match):
        pin(vault, agreement=replace(agreement, **changes), consortium_secret=secret)
    assert not any(vault.has(name) for name in (AGREEMENT, PIN, CONSORTIUM_SECRET))


def test_a_pin_is_only_replaced_if_people_say_so(newcomer):
    vault, agreement = newcomer
    pin(vault, agreement=agreement, consortium_secret=P)
    other = replace(agreement, roster=agreement.roster[1:])

    with pytest.raises(ConfigurationError, match="--replace"):
        pin(vault, agreement=other, consortium_secret=P)
    assert Membership.load(vault).agreement == agreement

    pin(vault, agreement=other, consortium_secret=P, may_replace=True)
    assert Membership.load(vault).agreement == other


def test_a_new_secret_makes_another_agreement_and_comes_with_no_old_one(newcomer):
    vault, agreement = newcomer
    pin(vault, agreement=agreement, consortium_secret=P)
    secret = SecretBytes(os.urandom(32))
    renewed = replace(agreement, secret_digest=commitment(secret))
    assert renewed.digest != agreement.digest

    with pytest.raises(ConfigurationError, match="pinned another agreement"):
        pin(vault, agreement=renewed, consortium_secret=secret)
    for given, its in ((agreement, secret), (renewed, P)):
        with pytest.raises(ConfigurationError, match=NOT_THE_ONE):
            pin(vault, agreement=given, consortium_secret=its, may_replace=True)
    assert Membership.load(vault).consortium_secret == P

    pin(vault, agreement=renewed, consortium_secret=secret, may_replace=True)
    assert Membership.load(vault).consortium_secret == secret


def test_an_encrypted_identity_is_unlocked_by_whoever_has_the_passphrase(founded, tmp_path):
    passphrase = SecretBytes(b"correct horse battery")
    vault = Vault(tmp_path / "locked")
    card = enrol(vault, SiteId("locked"), passphrase).card
    roster = (*founded.agreement.roster, card)
    agreement = replace(founded.agreement, roster=roster, secret_digest=commitment(P))

    assert pin(vault, agreement=agreement, consortium_secret=P).site == 4
    assert Place.read(vault).name == "locked"
    with pytest.raises(ConfigurationError, match="CIPHERWARD_PASSPHRASE_FILE"):
        Membership.load(vault)
    with pytest.raises(ConfigurationError, match="this site's public keys"):
        Membership.load(vault, Identity.generate())
    assert Membership.load(vault, read_identity(vault, passphrase)).name == "locked"


def test_a_place_needs_no_secret(founded):
    for name in (IDENTITY, CONSORTIUM_SECRET):
        founded.vault(2).delete(name)

    assert Place.read(founded.vault(2)).site == 2
