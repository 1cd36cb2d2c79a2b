from __future__ import annotations

import tracemalloc
from dataclasses import replace

import pytest
from consortium import COHORT, Consortium, fixed_bytes, golden
from hostile import flips, hostile_bytes, resized
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import (
    AgreementMismatchError,
    EpochMismatchError,
    LengthError,
    MalformedError,
    ProtocolError,
    RoundMismatchError,
    SessionMismatchError,
    SignatureError,
    SiteMismatchError,
)
from protocol.notes import NoteKind, SiteNote, UploadCall

CONSORTIUM = Consortium()
LARGE = Consortium(sites=128)
EVERY_SECOND = Consortium(epoch_rounds=2)
NOTE, CALL = golden("note_ready"), golden("upload_call")
NOTE_FIELDS = [4, 2, 2, 4, 4, 16, 32, 32, 32, 64]
CALL_FIELDS = [4, 4, 2, 2, 2, 2, 2]
NOTE_FLIPS = [
    (range(6), MalformedError),  # magic, kind
    (range(6, 8), (SiteMismatchError, SignatureError)),  # site
    (range(8, 12), EpochMismatchError),
    (range(12, 16), RoundMismatchError),
    (range(16, 32), (SiteMismatchError, SignatureError)),  # whose uploads were given up
    (range(32, 64), AgreementMismatchError),
    (range(64, 96), SessionMismatchError),
    (range(96, 128), SignatureError),  # state
    (range(128, 192), SignatureError),
]


def read_note(data, *, kind=NoteKind.READY, round_number=1, consortium=CONSORTIUM):
    return SiteNote.from_bytes(
        data,
        kind=kind,
        agreement=consortium.agreement,
        session=consortium.session.digest,
        round_number=round_number,
    )


def test_notes_and_calls_are_fixed_for_ever():
    assert CONSORTIUM.note(1).to_bytes() == NOTE
    assert CONSORTIUM.note(1, kind=NoteKind.VOID).to_bytes() == golden("note_void")
    assert CONSORTIUM.note(1, voided=(2,)).to_bytes() == golden("note_ready_without")
    assert UploadCall(round=1, cohort=COHORT).to_bytes() == CALL


def test_good_notes_and_calls_are_read_back():
    assert read_note(NOTE) == CONSORTIUM.note(1)
    assert UploadCall.from_bytes(CALL) == UploadCall(round=1, cohort=COHORT)


def test_a_closing_note_is_read_back():
    note = read_note(golden("note_closed"), kind=NoteKind.CLOSED, round_number=4)

    assert (note.kind, note.round, note.site) == (NoteKind.CLOSED, 4, 1)


def test_a_void_note_is_read_back():
    note = read_note(golden("note_void"), kind=NoteKind.VOID)

    assert (note.kind, note.round, note.site, note.voided) == (NoteKind.VOID, 1, 1, ())


def test_a_note_says_whose_uploads_were_given_up():
    assert read_note(NOTE).voided == ()
    assert read_note(golden("note_ready_without")).voided == (2,)


@given(voided=st.sets(st.integers(0, 127)).map(sorted).map(tuple))
def test_whose_uploads_were_given_up_is_read_back_whoever_they_are(voided):
    note = LARGE.note(1, voided=voided)

    assert read_note(note.to_bytes(), consortium=LARGE).voided == voided


@given(voided=st.sets(st.integers(0, 127), min_size=1))
def test_a_position_beyond_the_roster_is_not_given_up(voided):
    data = CONSORTIUM.note(1, voided=tuple(sorted(voided))).to_bytes()

    if max(voided) < len(CONSORTIUM.agreement.roster):
        assert read_note(data).voided == tuple(sorted(voided))
        return
    with pytest.raises(SiteMismatchError) as refusal:
        read_note(data)
    assert refusal.value.got == min(site for site in voided if site > 3)


def test_the_round_fixes_the_epoch():
    for number, epoch in enumerate((1, 1, 2, 2)):
        for said in (0, 1, 2, 3, 2**32 - 1):
            data = EVERY_SECOND.note(1, round=number, epoch=said).to_bytes()
            if said == epoch:
                assert read_note(data, consortium=EVERY_SECOND, round_number=number).epoch == epoch
                continue
            with pytest.raises(EpochMismatchError) as refusal:
                read_note(data, consortium=EVERY_SECOND, round_number=number)
            assert (refusal.value.expected, refusal.value.got) == (epoch, said)


def test_a_note_for_any_round_may_be_asked_for():
    for number in (0, 1, 3):
        assert read_note(CONSORTIUM.note(1, round=number).to_bytes(), round_number=None).round == number


@pytest.mark.parametrize("data", resized(NOTE, NOTE_FIELDS), ids=len)
def test_a_note_of_another_length_is_refused(data):
    with pytest.raises(LengthError) as refusal:
        read_note(data)

    assert (refusal.value.expected, refusal.value.got) == (len(NOTE), len(data))


@pytest.mark.parametrize(("places", "errors"), NOTE_FLIPS)
def test_every_flipped_bit_of_a_note_is_refused(places, errors):
    for _, data in flips(NOTE, places):
        with pytest.raises(errors):
            read_note(data)


def test_the_flips_above_cover_the_whole_note():
    assert [place for places, _ in NOTE_FLIPS for place in places] == list(range(len(NOTE)))


@pytest.mark.parametrize(
    ("note", "error"),
    [
        (CONSORTIUM.note(1, kind=NoteKind.CLOSED), MalformedError),
        (Consortium(clip=2.0).note(1), AgreementMismatchError),
        (Consortium(run="another").note(1), SessionMismatchError),
        (CONSORTIUM.note(1, epoch=2), EpochMismatchError),
        (CONSORTIUM.note(1, round=0), RoundMismatchError),
        (CONSORTIUM.note(1, round=2), RoundMismatchError),
        (replace(CONSORTIUM.note(1), site=4), SiteMismatchError),
        (replace(CONSORTIUM.note(1), site=65535), SiteMismatchError),
        (replace(CONSORTIUM.note(1), site=2), SignatureError),
        (replace(CONSORTIUM.note(1), voided=(2,)), SignatureError),
        (replace(CONSORTIUM.note(1, voided=(2,)), voided=()), SignatureError),
        (replace(CONSORTIUM.note(1, voided=(2,)), voided=(3,)), SignatureError),
        (replace(CONSORTIUM.note(1, kind=NoteKind.VOID), kind=NoteKind.READY), SignatureError),
        (replace(CONSORTIUM.note(1), state=fixed_bytes("state", 2)), SignatureError),
        (replace(CONSORTIUM.note(1), signature=CONSORTIUM.note(2).signature), SignatureError),
    ],
)
def test_a_note_of_another_kind_run_round_or_site_is_refused(note, error):
    with pytest.raises(error) as refusal:
        read_note(note.to_bytes())

    assert refusal.type is error


def test_the_state_of_a_note_is_what_the_site_signed():
    other = fixed_bytes("state", 9)

    assert read_note(CONSORTIUM.note(1, state=other).to_bytes()).state == other


@given(hostile_bytes(NOTE))
def test_hostile_notes_raise_nothing_but_a_refusal(data):
    try:
        note = read_note(data)
    except ProtocolError:
        return
    assert note.to_bytes() == data


@given(round_number=st.integers(0, 2**32 - 1), cohort=st.lists(st.integers(0, 65535), max_size=130).map(tuple))
def test_every_call_can_be_read_back(round_number, cohort):
    call = UploadCall(round=round_number, cohort=cohort)

    assert UploadCall.from_bytes(call.to_bytes()) == call


@pytest.mark.parametrize("data", resized(CALL, CALL_FIELDS), ids=len)
def test_a_call_of_another_length_is_refused(data):
    with pytest.raises(LengthError):
        UploadCall.from_bytes(data)


@pytest.mark.parametrize(
    ("places", "error"),
    [(range(4), MalformedError), (range(8, 10), LengthError), (range(10, 12), MalformedError)],
    ids=["magic", "count", "zeros"],
)
def test_every_flipped_bit_of_a_calls_frame_is_refused(places, error):
    for _, data in flips(CALL, places):
        with pytest.raises(error):
            UploadCall.from_bytes(data)


def test_every_flipped_bit_of_round_or_cohort_makes_another_call():
    for _, data in flips(CALL, [*range(4, 8), *range(12, 18)]):
        assert UploadCall.from_bytes(data) != UploadCall.from_bytes(CALL)


@given(hostile_bytes(CALL))
def test_hostile_calls_raise_nothing_but_a_refusal(data):
    try:
        call = UploadCall.from_bytes(data)
    except ProtocolError:
        return
    assert call.to_bytes() == data


def test_a_call_that_claims_many_sites_costs_no_memory():
    data = CALL[:8] + b"\xff\xff" + CALL[10:]
    tracemalloc.start()
    with pytest.raises(LengthError):
        UploadCall.from_bytes(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 1 << 16
