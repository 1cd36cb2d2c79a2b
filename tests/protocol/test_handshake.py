from __future__ import annotations

from dataclasses import replace

import pytest
from consortium import Consortium, fixed_bytes, golden
from hostile import flips, hostile_bytes, resized
from hypothesis import given

from protocol.errors import (
    AgreementMismatchError,
    CohortError,
    LengthError,
    MalformedError,
    ProtocolError,
    SessionMismatchError,
    SignatureError,
    SiteMismatchError,
)
from protocol.handshake import CARD_BYTES, RunCard, SealedSecret, Session, agreement_named_in

CONSORTIUM = Consortium()
AGREEMENT, RUN, SESSION = CONSORTIUM.agreement, CONSORTIUM.run, CONSORTIUM.session
OTHER_AGREEMENT = Consortium(clip=2.0)
OTHER_RUN = Consortium(run="another")

CARD, SESSION_BYTES, SECRET = golden("run_card"), golden("session"), golden("sealed_secret")
CARD_FIELDS = {"magic": 4, "site": 2, "zero": 2, "run": 16, "agreement": 32, "key": 32, "nonce": 32, "signature": 64}
SECRET_FIELDS = {
    "magic": 4,
    "sender": 2,
    "recipient": 2,
    "epoch": 4,
    "agreement": 32,
    "session": 32,
    "sealed": 48,
    "check": 32,
    "signature": 64,
}


def places(sizes, name):
    """Return the byte positions of a field."""
    names = list(sizes)
    start = sum(sizes[other] for other in names[: names.index(name)])
    return range(start, start + sizes[name])


def read_card(data):
    return RunCard.from_bytes(data, AGREEMENT, RUN)


def read_session(data):
    return Session.from_bytes(data, AGREEMENT, RUN)


def read_secret(data):
    return SealedSecret.from_bytes(data, AGREEMENT, SESSION)


def session_of(*sites, cards=CONSORTIUM):
    return b"".join(cards.card(site).to_bytes() for site in sites)


def test_the_opening_messages_are_fixed_for_ever():
    assert CONSORTIUM.card(1).to_bytes() == CARD
    assert SESSION.to_bytes() == SESSION_BYTES
    assert CONSORTIUM.sealed_secret(2).to_bytes() == SECRET


def test_good_messages_are_read_back():
    assert read_card(CARD) == CONSORTIUM.card(1)
    assert read_session(SESSION_BYTES) == SESSION
    assert read_secret(SECRET) == CONSORTIUM.sealed_secret(2)
    assert agreement_named_in(CARD) == AGREEMENT.digest
    assert agreement_named_in(CARD[:-1]) is None
    assert SESSION.digest.hex() == "6ce11750624c62c90b9705ff2aedcddfd3e1110ffff99af62e00ecdc8babd7ce"


@pytest.mark.parametrize("data", resized(CARD, [*CARD_FIELDS.values()]), ids=len)
def test_a_card_of_another_length_is_refused(data):
    with pytest.raises(LengthError) as refusal:
        read_card(data)

    assert (refusal.value.expected, refusal.value.got) == (CARD_BYTES, len(data))


@pytest.mark.parametrize("data", resized(SECRET, [*SECRET_FIELDS.values()]), ids=len)
def test_a_sealed_secret_of_another_length_is_refused(data):
    with pytest.raises(LengthError) as refusal:
        read_secret(data)

    assert (refusal.value.expected, refusal.value.got) == (len(SECRET), len(data))


@pytest.mark.parametrize(
    ("field", "errors"),
    [
        ("magic", MalformedError),
        ("site", (SiteMismatchError, SignatureError)),
        ("zero", MalformedError),
        ("run", SessionMismatchError),
        ("agreement", AgreementMismatchError),
        ("key", SignatureError),
        ("nonce", SignatureError),
        ("signature", SignatureError),
    ],
)
def test_every_flipped_bit_of_a_card_is_refused(field, errors):
    for _, data in flips(CARD, places(CARD_FIELDS, field)):
        with pytest.raises(errors):
            read_card(data)


@pytest.mark.parametrize(
    ("field", "errors"),
    [
        ("magic", MalformedError),
        ("sender", SiteMismatchError),
        ("recipient", (SiteMismatchError, SignatureError)),
        ("epoch", SignatureError),
        ("agreement", AgreementMismatchError),
        ("session", SessionMismatchError),
        ("sealed", SignatureError),
        ("check", SignatureError),
        ("signature", SignatureError),
    ],
)
def test_every_flipped_bit_of_a_sealed_secret_is_refused(field, errors):
    for _, data in flips(SECRET, places(SECRET_FIELDS, field)):
        with pytest.raises(errors):
            read_secret(data)


def test_a_bit_flipped_anywhere_in_a_session_is_refused():
    for place, data in flips(SESSION_BYTES, range(0, len(SESSION_BYTES), 3)):
        with pytest.raises(ProtocolError):
            read_session(data)
        assert data[place] != SESSION_BYTES[place]


@pytest.mark.parametrize(
    ("card", "error"),
    [
        (OTHER_AGREEMENT.card(1), AgreementMismatchError),
        (OTHER_RUN.card(1), SessionMismatchError),
        (replace(CONSORTIUM.card(1), site=4), SiteMismatchError),
        (replace(CONSORTIUM.card(1), site=65535), SiteMismatchError),
        (replace(CONSORTIUM.card(1), site=0), SignatureError),
        (replace(CONSORTIUM.card(1), signature=CONSORTIUM.card(0).signature), SignatureError),
        (replace(CONSORTIUM.card(1), exchange_key=CONSORTIUM.card(0).exchange_key), SignatureError),
        (replace(CONSORTIUM.card(1), nonce=fixed_bytes("other")), SignatureError),
    ],
)
def test_a_card_of_another_run_agreement_or_site_is_refused(card, error):
    with pytest.raises(error) as refusal:
        read_card(card.to_bytes())

    assert refusal.type is error


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"agreement": OTHER_AGREEMENT.agreement.digest}, AgreementMismatchError),
        ({"session": OTHER_RUN.session.digest}, SessionMismatchError),
        ({"sender": 1}, SiteMismatchError),
        ({"recipient": 4}, SiteMismatchError),
        ({"recipient": 65535}, SiteMismatchError),
    ],
)
def test_a_secret_that_the_steward_signed_for_elsewhere_is_refused(changes, error):
    with pytest.raises(error) as refusal:
        read_secret(CONSORTIUM.sealed_secret(**{"recipient": 2} | changes).to_bytes())

    assert refusal.type is error


@pytest.mark.parametrize(
    "changes",
    [{"epoch": 2}, {"recipient": 1}, {"sealed": bytes(48)}, {"check": bytes(32)}, {"signature": bytes(64)}],
    ids=lambda changes: next(iter(changes)),
)
def test_a_secret_that_was_changed_after_it_was_signed_is_refused(changes):
    with pytest.raises(SignatureError):
        read_secret(replace(CONSORTIUM.sealed_secret(2), **changes).to_bytes())


def test_only_the_steward_may_seal():
    by_another = replace(CONSORTIUM.sealed_secret(2), sender=1)
    signed = replace(by_another, signature=CONSORTIUM.sign(1, by_another.signed_bytes()))

    with pytest.raises(SiteMismatchError) as refusal:
        read_secret(signed.to_bytes())
    assert (refusal.value.expected, refusal.value.got) == (0, 1)


def test_a_secret_for_a_site_that_is_not_in_the_run_is_refused():
    without_2 = read_session(session_of(0, 1, 3))
    secret = CONSORTIUM.sealed_secret(2, session=without_2.digest)

    with pytest.raises(SiteMismatchError):
        SealedSecret.from_bytes(secret.to_bytes(), AGREEMENT, without_2)


def test_the_epoch_of_a_secret_is_what_the_steward_signed():
    assert read_secret(CONSORTIUM.sealed_secret(2, epoch=7).to_bytes()).epoch == 7


@pytest.mark.parametrize(
    ("data", "error"),
    [
        pytest.param(b"", CohortError, id="nobody"),
        pytest.param(session_of(0), CohortError, id="one site"),
        pytest.param(session_of(0, 1), CohortError, id="below the smallest cohort"),
        pytest.param(session_of(0, 2, 1), CohortError, id="out of order"),
        pytest.param(session_of(0, 1, 1, 2), CohortError, id="a site twice"),
        pytest.param(session_of(0, 1, 2, 3, 3), LengthError, id="more cards than sites"),
        pytest.param(SESSION_BYTES[:-1], LengthError, id="a byte short"),
        pytest.param(SESSION_BYTES + b"\0", LengthError, id="a byte more"),
        pytest.param(session_of(0, 1, 2) + session_of(3, cards=OTHER_RUN), SessionMismatchError, id="replayed card"),
        pytest.param(
            session_of(0, 1, 2) + session_of(3, cards=OTHER_AGREEMENT), AgreementMismatchError, id="other agreement"
        ),
        pytest.param(
            session_of(0, 1, 2) + replace(CONSORTIUM.card(2), site=3).to_bytes(), SignatureError, id="swapped card"
        ),
    ],
)
def test_a_session_that_is_not_the_cards_of_enough_sites_in_order_is_refused(data, error):
    with pytest.raises(error) as refusal:
        read_session(data)

    assert refusal.type is error


def test_a_session_of_two_sites_with_one_run_key_is_refused():
    # two pairs would share the keys of their masks
    card = replace(CONSORTIUM.card(3), exchange_key=CONSORTIUM.card(0).exchange_key)
    signed = replace(card, signature=CONSORTIUM.sign(3, card.signed_bytes()))

    with pytest.raises(MalformedError, match="exchange keys"):
        read_session(session_of(0, 1, 2) + signed.to_bytes())


def test_a_session_needs_no_more_than_the_smallest_cohort():
    session = read_session(session_of(1, 2, 3))

    assert session.sites == (1, 2, 3)
    assert session.steward == 1
    assert session.card_of(3) == CONSORTIUM.card(3)
    with pytest.raises(SiteMismatchError) as refusal:
        session.card_of(0)
    assert (refusal.value.expected, refusal.value.got) == ((1, 2, 3), 0)


def test_the_sessions_digest_depends_on_every_card():
    digests = {
        SESSION.digest,
        read_session(session_of(0, 1, 2)).digest,
        read_session(session_of(1, 2, 3)).digest,
        OTHER_RUN.session.digest,
        OTHER_AGREEMENT.session.digest,
    }

    assert len(digests) == 5


@given(hostile_bytes(CARD))
def test_hostile_cards_raise_nothing_but_a_refusal(data):
    try:
        card = read_card(data)
    except ProtocolError:
        return
    assert card.to_bytes() == data


@given(hostile_bytes(SESSION_BYTES))
def test_hostile_sessions_raise_nothing_but_a_refusal(data):
    try:
        session = read_session(data)
    except ProtocolError:
        return
    assert session.to_bytes() == data


@given(hostile_bytes(SECRET))
def test_hostile_sealed_secrets_raise_nothing_but_a_refusal(data):
    try:
        secret = read_secret(data)
    except ProtocolError:
        return
    assert secret.to_bytes() == data
