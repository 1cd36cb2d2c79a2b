"""A site refuses to start with anything else than what it pinned."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from clients.code import code_digest
from clients.identity import Identity
from clients.membership import AGREEMENT, CONSORTIUM_SECRET, IDENTITY, PIN, Membership
from clients.secret import SecretBytes
from clients.vault import Vault
from protocol.agreement import Agreement, SiteId
from protocol.errors import ConfigurationError, MalformedError


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


def test_pinning_writes_a_membership_that_loads(founded, tmp_path):
    member = founded.member(2)
    vault = Vault(tmp_path / "another-machine")
    consortium_secret = SecretBytes(os.urandom(32))

    pinned = Membership.pin(
        vault, agreement=member.agreement, identity=member.identity, consortium_secret=consortium_secret
    )

    assert pinned.site == Membership.load(vault).site == 2
    assert Membership.load(vault).consortium_secret == consortium_secret
    assert vault.path(IDENTITY).stat().st_mode & 0o777 == 0o600
    assert vault.path(CONSORTIUM_SECRET).stat().st_mode & 0o777 == 0o600
