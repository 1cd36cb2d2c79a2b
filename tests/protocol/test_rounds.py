from __future__ import annotations

from dataclasses import fields, replace

import pytest
from consortium import COHORT, SITES, Consortium, fixed_bytes, golden
from hostile import hostile_bytes, resized
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import (
    AgreementMismatchError,
    CohortMismatchError,
    EpochMismatchError,
    LengthError,
    MalformedError,
    ParametersMismatchError,
    ProtocolError,
    RoundKindMismatchError,
    RoundMismatchError,
    SessionMismatchError,
    SiteMismatchError,
    StateMismatchError,
)
from protocol.packing import RoundKind
from protocol.rounds import HEADER_BYTES, UpdateHeader

CONSORTIUM = Consortium()
TERMS = CONSORTIUM.terms()
GOLDEN = golden("header")
FIELD_SIZES = [4, 1, 1, 1, 1, 4, 4, 2, 2, 4, 8, 32, 32, 32, 32]

OTHER_VALUE = {
    "agreement": (fixed_bytes("other"), AgreementMismatchError),
    "session": (fixed_bytes("other"), SessionMismatchError),
    "epoch": (2, EpochMismatchError),
    "round": (2, RoundMismatchError),
    "kind": (int(RoundKind.EVALUATE), RoundKindMismatchError),
    "modulus_bits": (40, ParametersMismatchError),
    "ring_degree_bits": (12, ParametersMismatchError),
    "tag_vectors": (3, ParametersMismatchError),
    "sites": (5, ParametersMismatchError),
    "ciphertexts": (2, ParametersMismatchError),
    "values": (1, ParametersMismatchError),
    "cohort": (fixed_bytes("other"), CohortMismatchError),
    "state": (fixed_bytes("other"), StateMismatchError),
    "site": (2, SiteMismatchError),
}


def test_the_header_is_fixed_for_ever():
    assert TERMS.header_of(0).to_bytes() == GOLDEN
    assert len(GOLDEN) == HEADER_BYTES == sum(FIELD_SIZES) == 160


def test_the_golden_header_says_what_it_belongs_to():
    assert UpdateHeader.from_bytes(GOLDEN) == UpdateHeader(
        kind=1,
        modulus_bits=32,
        ring_degree_bits=11,
        tag_vectors=2,
        epoch=1,
        round=1,
        site=0,
        sites=4,
        ciphertexts=1,
        values=TERMS.plan.values,
        agreement=CONSORTIUM.agreement.digest,
        session=CONSORTIUM.session.digest,
        cohort=TERMS.cohort_digest,
        state=fixed_bytes("state", 1),
    )


@given(st.binary(min_size=HEADER_BYTES - 4, max_size=HEADER_BYTES - 4))
def test_every_header_can_be_read_back(rest):
    data = b"CWU1" + rest

    assert UpdateHeader.from_bytes(data).to_bytes() == data


@pytest.mark.parametrize("data", resized(GOLDEN, FIELD_SIZES), ids=len)
def test_a_header_of_another_length_is_refused(data):
    with pytest.raises(LengthError) as refusal:
        UpdateHeader.from_bytes(data)

    assert (refusal.value.expected, refusal.value.got) == (HEADER_BYTES, len(data))


@pytest.mark.parametrize("magic", [b"CWA1", b"CWU2", b"\0\0\0\0", b"\x5e\xa1\x10\x04"])
def test_another_magic_is_refused(magic):
    with pytest.raises(MalformedError) as refusal:
        UpdateHeader.from_bytes(magic + GOLDEN[4:])

    assert (refusal.value.expected, refusal.value.got) == ("CWU1", magic.hex())


@given(hostile_bytes(GOLDEN))
def test_hostile_bytes_raise_nothing_but_a_refusal(data):
    try:
        header = UpdateHeader.from_bytes(data)
    except ProtocolError:
        return
    assert header.to_bytes() == data


def test_every_field_of_the_header_has_an_error_of_its_own_below():
    assert OTHER_VALUE.keys() == {field.name for field in fields(UpdateHeader)}


@pytest.mark.parametrize("name", OTHER_VALUE)
def test_a_field_that_differs_is_named_with_expected_and_got(name):
    value, error = OTHER_VALUE[name]
    header = replace(TERMS.header_of(0), **{name: value})

    with pytest.raises(error) as refusal:
        TERMS.check_header(header)

    assert refusal.type is error
    assert refusal.value.what == name
    expected = f"one of {COHORT}" if name == "site" else getattr(TERMS.header_of(0), name)
    readable = [item.hex()[:16] if isinstance(item, bytes) else str(item) for item in (expected, value)]
    assert [str(refusal.value.expected), str(refusal.value.got)] == readable


@pytest.mark.parametrize("site", COHORT)
def test_the_header_of_every_site_in_the_cohort_passes(site):
    TERMS.check_header(TERMS.header_of(site))


@pytest.mark.parametrize("site", [2, SITES, 65535])
def test_a_site_outside_the_cohort_is_refused_even_with_the_right_terms(site):
    with pytest.raises(SiteMismatchError):
        TERMS.check_header(TERMS.header_of(site))


def test_headers_of_a_round_differ_in_the_site_only():
    assert replace(TERMS.header_of(3), site=0) == TERMS.header_of(0)
    assert TERMS.header_of(3) != TERMS.header_of(0)


@pytest.mark.parametrize("modulus_bits", [24, 32, 40])
def test_the_header_carries_the_parameters_of_the_agreement(modulus_bits):
    consortium = Consortium(value_bits={24: 13, 32: 21, 40: 29}[modulus_bits], hidden=(1000,))
    header, plan = consortium.terms().header_of(1), consortium.terms().plan

    assert header.modulus_bits == modulus_bits
    assert 1 << header.ring_degree_bits == consortium.agreement.parameters.ring_degree
    assert (header.ciphertexts, header.values) == (plan.ciphertexts, plan.values)
    assert header.tag_vectors == {24: 3, 32: 2, 40: 2}[modulus_bits]


def test_one_time_keys_are_bound_to_all_that_tells_one_sum_from_another():
    others = [
        Consortium(clip=2.0).terms(),
        Consortium(run="another").terms(),
        CONSORTIUM.terms(2),
        CONSORTIUM.terms(cohort=(0, 1, 2)),
        CONSORTIUM.terms(cohort=(0, 1, 2, 3)),
        replace(TERMS, epoch=2),
    ]

    assert len({TERMS.context, *(other.context for other in others)}) == 7


@pytest.mark.parametrize("number", [0, 1, 3])
def test_kind_and_plan_follow_from_the_round(number):
    terms = CONSORTIUM.terms(number)

    assert terms.kind is CONSORTIUM.agreement.round_kind(number)
    assert terms.plan == CONSORTIUM.agreement.plan(terms.kind)


@pytest.mark.parametrize(("largest", "is_seeded"), [(1, False), (2, False), (3, True), (128, True)])
def test_a_sum_is_seeded_or_expanded_by_its_cohort_s_size_and_the_agreement_alone(largest, is_seeded):
    agreement = Consortium(largest_seeded_cohort=largest, hidden=(1000,))
    for number in range(4):
        terms = agreement.terms(number)
        rows, columns = terms.plan.shape

        assert terms.is_seeded is is_seeded
        assert terms.sum_shape == (rows if is_seeded else 2 * rows, columns)


def test_one_run_may_have_sums_of_both_forms():
    consortium = Consortium(largest_seeded_cohort=3)

    assert consortium.terms(cohort=(0, 1, 2)).is_seeded
    assert not consortium.terms(cohort=(0, 1, 2, 3)).is_seeded
