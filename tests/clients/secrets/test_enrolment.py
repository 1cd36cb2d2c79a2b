"""Enrolling: keys that stay, a card that goes."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from clients.secrets.enrolment import CARD, NODE_KEY, check_node_key, enrol, read_card
from clients.secrets.identity_file import IDENTITY, read_identity
from clients.secrets.secret import SecretBytes
from clients.secrets.vault import Vault
from protocol.agreement import SiteId
from protocol.enrolment import EnrolmentCard
from protocol.errors import ConfigurationError

NAME = SiteId("cleveland")


@pytest.fixture
def vault(tmp_path):
    return Vault(tmp_path / "vault")


def files_of(vault):
    return {path.name: path.read_bytes() for path in vault.directory.iterdir() if path.name != ".lock"}


def test_the_card_is_that_of_the_keys_in_the_vault(vault):
    enrolment = enrol(vault, NAME)

    assert EnrolmentCard.from_bytes(enrolment.to_bytes()) == enrolment
    assert read_card(vault) == enrolment
    assert enrolment.card == read_identity(vault).card(NAME)
    check_node_key(vault, enrolment)


def test_all_that_is_made_is_private(vault):
    enrol(vault, NAME)

    assert set(files_of(vault)) == {IDENTITY, NODE_KEY, CARD}
    for name in (IDENTITY, NODE_KEY):
        assert vault.path(name).stat().st_mode & 0o777 == 0o600


def test_the_node_s_key_is_one_that_flower_loads(vault):
    enrol(vault, NAME)

    key = load_ssh_private_key(vault.read(NODE_KEY), password=None)

    assert key.curve.name == "secp384r1"


def test_no_key_is_on_the_card(vault):
    enrolment = enrol(vault, NAME).to_bytes()
    raw = read_identity(vault).to_secret().reveal()
    node = load_ssh_private_key(vault.read(NODE_KEY), password=None).private_numbers().private_value

    for secret in (raw[:32], raw[32:], node.to_bytes(48)):
        assert secret not in enrolment
        assert secret.hex().encode() not in enrolment


def test_two_hospitals_have_nothing_in_common(vault, tmp_path):
    one, other = enrol(vault, NAME), enrol(Vault(tmp_path / "other"), NAME)

    assert one.card.signing_key != other.card.signing_key
    assert one.card.exchange_key != other.card.exchange_key
    assert one.node_key != other.node_key
    assert one.fingerprint != other.fingerprint


def test_an_identity_is_never_overwritten(vault):
    enrol(vault, NAME)
    before = files_of(vault)

    with pytest.raises(ConfigurationError, match="never overwritten"):
        enrol(vault, SiteId("hungary"))
    assert files_of(vault) == before


@pytest.mark.parametrize(
    ("name", "passphrase"), [("Cleveland", None), ("../up", None), ("", None), ("cleveland", SecretBytes(b"short"))]
)
def test_an_enrolment_that_fails_can_be_tried_again(vault, name, passphrase):
    with pytest.raises(ConfigurationError):
        enrol(vault, SiteId(name), passphrase)
    assert not vault.has(IDENTITY)

    assert enrol(vault, NAME) == read_card(vault)


def test_a_missing_or_damaged_card_is_named(vault):
    with pytest.raises(ConfigurationError, match="site enrol"):
        read_card(vault)
    enrol(vault, NAME)
    vault.write(CARD, vault.read(CARD)[:-1])

    with pytest.raises(ConfigurationError, match=r"card\.json is damaged"):
        read_card(vault)


def test_a_wrong_node_key_is_named(vault, tmp_path):
    enrolment = enrol(vault, NAME)
    other = Vault(tmp_path / "other")
    enrol(other, NAME)

    vault.write(NODE_KEY, other.read(NODE_KEY))
    with pytest.raises(ConfigurationError, match="is not the key of card"):
        check_node_key(vault, enrolment)
    for damage in (b"", b"key", other.read(NODE_KEY)[:-60]):
        vault.write(NODE_KEY, damage)
        with pytest.raises(ConfigurationError, match="is damaged"):
            check_node_key(vault, enrolment)
    vault.write(NODE_KEY, other.read(NODE_KEY))
    vault.path(NODE_KEY).chmod(0o644)
    with pytest.raises(ConfigurationError, match="read by others"):
        check_node_key(vault, enrolment)
