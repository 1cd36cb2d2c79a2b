"""A site's identity: made at the site, kept in its vault, shown to others as a card only."""

from __future__ import annotations

import copy
import pickle

import pytest

from clients.secrets.identity import Identity
from clients.secrets.secret import SecretBytes
from protocol.agreement import SiteId
from protocol.errors import ConfigurationError, SecretMaterialError, SignatureError

NAME = SiteId("hospital-1")


def test_each_identity_is_new():
    one, other = Identity.generate(), Identity.generate()

    assert one.to_secret() != other.to_secret()
    assert one.card(NAME) != other.card(NAME)


def test_an_identity_is_restored_from_its_secret():
    identity = Identity.generate()

    restored = Identity.from_secret(identity.to_secret())

    assert restored.card(NAME) == identity.card(NAME)
    assert restored.to_secret() == identity.to_secret()
    assert restored.sign(b"message") == identity.sign(b"message")


def test_the_secret_holds_two_different_keys():
    raw = Identity.generate().to_secret().reveal()

    assert len(raw) == 64
    assert raw[:32] != raw[32:]


@pytest.mark.parametrize("length", [0, 32, 63, 65])
def test_a_damaged_secret_is_refused_without_showing_it(length):
    raw = b"\xa7" * length
    with pytest.raises(ConfigurationError) as refusal:
        Identity.from_secret(SecretBytes(raw))
    assert "a7a7" not in str(refusal.value)
    assert "\\xa7" not in str(refusal.value)


def test_the_card_verifies_what_its_identity_signed_and_nothing_else():
    identity, stranger = Identity.generate(), Identity.generate()
    card = identity.card(NAME)

    card.verify(identity.sign(b"message"), b"message")

    with pytest.raises(SignatureError):
        card.verify(identity.sign(b"message"), b"another message")
    with pytest.raises(SignatureError):
        card.verify(stranger.sign(b"message"), b"message")


def test_the_card_holds_no_private_key():
    identity = Identity.generate()
    raw = identity.to_secret().reveal()

    card = repr(identity.card(NAME))

    assert raw[:32].hex() not in card
    assert raw[32:].hex() not in card


def test_an_identity_does_not_show_or_duplicate_itself():
    identity = Identity.generate()

    assert repr(identity) == "Identity(<redacted>)"
    for duplicate in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(SecretMaterialError):
            duplicate(identity)
