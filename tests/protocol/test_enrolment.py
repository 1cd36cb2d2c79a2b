from __future__ import annotations

import json
from dataclasses import replace

import pytest
from consortium import fixed_bytes
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, SECP384R1, derive_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hostile import flips, hostile_bytes
from hypothesis import given
from hypothesis import strategies as st

from protocol.agreement import SiteCard
from protocol.enrolment import MAX_ENROLMENT_BYTES, EnrolmentCard, fingerprint, in_groups, signed_bytes
from protocol.errors import ConfigurationError, LengthError, MalformedError, ProtocolError, SignatureError

SIGNER = Ed25519PrivateKey.from_private_bytes(fixed_bytes("enrolment-signer"))


def ssh_line(public):
    return public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def node_key(number=76, curve=None):
    return ssh_line(derive_private_key(number, curve or SECP384R1()).public_key())


CARD = SiteCard(
    name="cleveland",
    signing_key=SIGNER.public_key().public_bytes_raw().hex(),
    exchange_key=fixed_bytes("enrolment-exchange").hex(),
)


def enrolment_of(card=CARD, key=None, signer=SIGNER):
    key = key or node_key()
    return EnrolmentCard(card=card, node_key=key, signature=signer.sign(signed_bytes(card, key)).hex())


ENROLMENT = enrolment_of()
DATA = ENROLMENT.to_bytes()


def encoded(table):
    return json.dumps(table, sort_keys=True, separators=(",", ":")).encode()


def test_a_card_is_read_back():
    assert EnrolmentCard.from_bytes(DATA) == ENROLMENT
    assert len(DATA) < MAX_ENROLMENT_BYTES


@pytest.mark.parametrize(
    "other",
    [
        replace(ENROLMENT, card=replace(CARD, name="hungary")),
        replace(ENROLMENT, card=replace(CARD, exchange_key="00" * 32)),
        replace(ENROLMENT, card=replace(CARD, signing_key="00" * 31 + "01")),
        replace(ENROLMENT, node_key=node_key(77)),
        replace(ENROLMENT, signature="00" * 64),
        enrolment_of(signer=Ed25519PrivateKey.from_private_bytes(fixed_bytes("another-signer"))),
    ],
)
def test_every_field_is_signed(other):
    with pytest.raises(SignatureError):
        EnrolmentCard.from_bytes(other.to_bytes())


@pytest.mark.parametrize(
    "key",
    [
        "",
        node_key() + " it@cleveland",
        node_key() + "\n",
        " " + node_key(),
        node_key().replace("nistp384", "nistp256"),
        node_key(curve=SECP256R1()),
        node_key(curve=SECP256R1()).replace("ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384"),
        ssh_line(SIGNER.public_key()),
        node_key()[:-3] + chr(ord(node_key()[-3]) + 1) + "==",  # bits that decoding throws away
        node_key()[:-8],
        node_key()[:-8] + "AAAAAAAA",
        "ecdsa-sha2-nistp384 AAAA",
    ],
)
def test_only_the_one_encoding_of_a_p384_key_is_a_node_key(key):
    with pytest.raises(ConfigurationError, match="node key"):
        enrolment_of(key=key or "-")
    table = json.loads(DATA) | {"node_key": key}
    with pytest.raises(MalformedError):
        EnrolmentCard.from_bytes(encoded(table))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"null",
        b"[" * 4000,
        DATA + b"\n",
        b" " + DATA,
        json.dumps(json.loads(DATA)).encode(),
        encoded(json.loads(DATA) | {"note": "hello"}),
        encoded({**json.loads(DATA), "card": {**json.loads(DATA)["card"], "vault": "/srv"}}),
        encoded({**json.loads(DATA), "card": {**json.loads(DATA)["card"], "name": "../cleveland"}}),
        encoded(json.loads(DATA) | {"signature": json.loads(DATA)["signature"].upper()}),
        encoded(json.loads(DATA) | {"signature": "00"}),
        encoded(json.loads(DATA) | {"signature": 7}),
        DATA.replace(b'"card":', b'"card":{},"card":', 1),
        DATA.replace(b"cleveland", b"\\ud800"),
    ],
)
def test_what_is_not_the_canonical_card_is_refused(data):
    with pytest.raises(MalformedError):
        EnrolmentCard.from_bytes(data)


def test_a_card_that_is_too_long_is_not_even_parsed():
    with pytest.raises(LengthError):
        EnrolmentCard.from_bytes(b" " * (MAX_ENROLMENT_BYTES + 1))


def test_no_flipped_bit_is_accepted():
    for _, data in flips(DATA, range(len(DATA))):
        with pytest.raises(ProtocolError):
            EnrolmentCard.from_bytes(data)


@given(hostile_bytes(DATA))
def test_hostile_bytes_are_refused(data):
    if data != DATA:
        with pytest.raises(ProtocolError) as refusal:
            EnrolmentCard.from_bytes(data)
        assert len(str(refusal.value)) < 200


@given(st.from_regex(r"[a-z0-9]{1,64}", fullmatch=True), st.binary(min_size=32, max_size=32), st.integers(1, 1 << 200))
def test_every_card_that_its_keys_signed_is_read_back(name, exchange_key, number):
    enrolment = enrolment_of(replace(CARD, name=name, exchange_key=exchange_key.hex()), node_key(number))

    assert EnrolmentCard.from_bytes(enrolment.to_bytes()) == enrolment


def test_the_fingerprint_is_fixed_for_ever_and_can_be_read_on_the_telephone():
    assert ENROLMENT.fingerprint == "ed65 354c 4d4b 4ae5 ebec 9420 9769 41a6"
    assert fingerprint(ENROLMENT.card) == ENROLMENT.fingerprint


@pytest.mark.parametrize(
    "changes", [{"name": "hungary"}, {"signing_key": "00" * 32}, {"exchange_key": "00" * 32}], ids=str
)
def test_another_name_or_key_has_another_fingerprint(changes):
    assert fingerprint(replace(CARD, **changes)) != fingerprint(CARD)


def test_digits_are_grouped_by_four():
    assert in_groups("0123456789") == "0123 4567 89"
