"""A model is released if all sites of its agreement signed so, for one file and purpose; else it is said why not."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
from consortium import Consortium
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hostile import flips, hostile_bytes
from hypothesis import given

from protocol.errors import (
    AgreementMismatchError,
    ConfigurationError,
    LengthError,
    MalformedError,
    ModelMismatchError,
    ProtocolError,
    PurposeMismatchError,
    ReleaseError,
    ReleaseIncompleteError,
    SessionMismatchError,
    SignatureError,
    SiteMismatchError,
)
from protocol.prediction.release import (
    LONGEST_PURPOSE,
    MAX_DECISION_BYTES,
    ReleaseDecision,
    check_release,
    model_digest,
)

CONSORTIUM = Consortium()
AGREEMENT = CONSORTIUM.agreement
MODEL = b"the file of a model"
PURPOSE = "Cardio Cloud AG: scoring referrals, Zürich"


def decision_of(site, /, *, signer=None, **changes):
    """Return a site's decision, signed as changed."""
    decision = ReleaseDecision(
        agreement=AGREEMENT.digest.hex(),
        run=CONSORTIUM.run.hex(),
        model=model_digest(MODEL),
        purpose=PURPOSE,
        site=AGREEMENT.roster[site].name,
        time=1_795_000_000 + site,
        signature="00" * 64,
    )
    decision = replace(decision, **changes)
    key = CONSORTIUM.signing_keys[site] if signer is None else signer
    return replace(decision, signature=key.sign(decision.signed_bytes()).hex())


DECISIONS = [decision_of(site) for site in range(4)]
DATA = DECISIONS[0].to_bytes()


def with_third(decision):
    return [*DECISIONS[:2], decision, DECISIONS[3]]


def test_what_all_sites_signed_is_released_in_any_order():
    check_release(AGREEMENT, DECISIONS, MODEL)
    check_release(AGREEMENT, DECISIONS[::-1], MODEL)


@pytest.mark.parametrize("missing", range(4))
def test_a_missing_site_is_named(missing):
    decisions = [decision for site, decision in enumerate(DECISIONS) if site != missing]

    with pytest.raises(ReleaseIncompleteError, match=f"hospital-{missing + 1} too"):
        check_release(AGREEMENT, decisions, MODEL)


def test_no_decision_at_all_releases_nothing():
    with pytest.raises(ReleaseIncompleteError, match="hospital-1, hospital-2, hospital-3, hospital-4"):
        check_release(AGREEMENT, [], MODEL)


STRANGER = Ed25519PrivateKey.generate()


@pytest.mark.parametrize(
    ("decisions", "error", "text"),
    [
        ([*DECISIONS, decision_of(2, site="hospital-9", signer=STRANGER)], SiteMismatchError, "got hospital-9"),
        ([*DECISIONS, decision_of(2, time=5)], SiteMismatchError, "two of hospital-3"),
        (with_third(DECISIONS[1]), SiteMismatchError, "two of hospital-2"),
        (with_third(decision_of(2, model=model_digest(b"another"))), ModelMismatchError, "hospital-3 releases"),
        (with_third(decision_of(2, purpose="somebody else")), PurposeMismatchError, "hospital-3.*'somebody else'"),
        (with_third(decision_of(2, run="00" * 16)), SessionMismatchError, "hospital-3 releases"),
        (with_third(decision_of(2, agreement="00" * 32)), AgreementMismatchError, "hospital-3"),
        (with_third(decision_of(2, signer=STRANGER)), SignatureError, "by hospital-3"),
        (with_third(decision_of(2, signer=CONSORTIUM.signing_keys[1])), SignatureError, "by hospital-3"),
        (with_third(replace(DECISIONS[2], signature="00" * 64)), SignatureError, "by hospital-3"),
    ],
)
def test_what_not_all_sites_signed_as_it_is_is_refused_by_name(decisions, error, text):
    with pytest.raises(error, match=text) as refusal:
        check_release(AGREEMENT, decisions, MODEL)

    assert type(refusal.value) is error


@pytest.mark.parametrize(
    "changes",
    [{"purpose": "somebody else"}, {"model": "00" * 32}, {"run": "00" * 16}, {"time": 7}, {"site": "hospital-4"}],
)
def test_a_signature_covers_every_field(changes):
    with pytest.raises(SignatureError):
        check_release(AGREEMENT, [replace(DECISIONS[2], **changes)], MODEL)


def test_decisions_for_one_file_release_no_other():
    with pytest.raises(ModelMismatchError):
        check_release(AGREEMENT, DECISIONS, MODEL + b" ")


def test_decisions_of_an_old_agreement_release_nothing_under_the_new_one():
    newer = replace(AGREEMENT, terms=Consortium(clip=2.0).agreement.terms)

    with pytest.raises(AgreementMismatchError):
        check_release(newer, DECISIONS, MODEL)


def test_a_release_s_own_errors_are_of_one_kind():
    for error in (ReleaseIncompleteError, ModelMismatchError, PurposeMismatchError):
        assert issubclass(error, ReleaseError)


def test_a_decision_is_read_back():
    assert ReleaseDecision.from_bytes(DATA) == DECISIONS[0]
    longest = decision_of(0, purpose="\N{DNA DOUBLE HELIX}" * LONGEST_PURPOSE)
    assert ReleaseDecision.from_bytes(longest.to_bytes()) == longest


def encoded(table):
    return json.dumps(table, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    "changes",
    [
        {"signature": None},
        {"signature": "0" * 127},
        {"model": "0" * 63},
        {"model": "A" * 64},
        {"run": ""},
        {"agreement": "0x" + "0" * 62},
        {"time": -1},
        {"time": "1"},
        {"time": 1 << 64},
        {"site": "\x1b[8m"},
        {"purpose": ""},
        {"purpose": "a" * (LONGEST_PURPOSE + 1)},
        {"purpose": "two  spaces"},
        {"purpose": "a\nb"},
        {"purpose": "a\u202eb"},
        {"more": 1},
    ],
)
def test_what_no_site_writes_is_refused(changes):
    table = {key: value for key, value in (asdict(DECISIONS[0]) | changes).items() if value is not None}

    with pytest.raises(MalformedError):
        ReleaseDecision.from_bytes(encoded(table))


def test_another_encoding_and_a_decision_too_long_are_refused():
    with pytest.raises(MalformedError, match="canonical"):
        ReleaseDecision.from_bytes(DATA + b"\n")
    with pytest.raises(LengthError):
        ReleaseDecision.from_bytes(DATA + b" " * MAX_DECISION_BYTES)


def test_an_unsigned_decision_cannot_even_be_made():
    with pytest.raises(ConfigurationError, match="signature"):
        replace(DECISIONS[0], signature="")


def test_every_flipped_bit_is_refused():
    for _, changed in flips(DATA, range(len(DATA))):
        with pytest.raises(ProtocolError):
            check_release(AGREEMENT, [ReleaseDecision.from_bytes(changed), *DECISIONS[1:]], MODEL)


@given(hostile_bytes(DATA))
def test_hostile_bytes_are_refused_or_are_a_decision(data):
    try:
        decision = ReleaseDecision.from_bytes(data)
    except ProtocolError:
        return
    assert decision.to_bytes() == data
