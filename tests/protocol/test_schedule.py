from __future__ import annotations

import hashlib
import hmac
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.schedule import authenticate, digest, expand, extract, frame

labels = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
field_lists = st.lists(st.binary(max_size=24), max_size=4)
KEY = bytes(range(32))


def test_a_frame_is_fixed_for_ever():
    assert frame("mask", b"abc", 7).hex() == (
        b"cipherward/1/mask\0".hex() + "0300000000000000" + b"abc".hex() + "0800000000000000" + "0700000000000000"
    )


@given(labels, field_lists, labels, field_lists)
def test_different_labels_or_fields_never_give_the_same_frame(label, fields, other_label, other_fields):
    same = (label, fields) == (other_label, other_fields)

    assert (frame(label, *fields) == frame(other_label, *other_fields)) == same


@given(labels, st.lists(st.binary(max_size=6), min_size=2, max_size=4), st.integers(1, 3))
def test_moving_the_border_between_fields_changes_the_frame(label, fields, cut):
    cut = min(cut, len(fields) - 1)
    joined = [b"".join(fields[:cut]), b"".join(fields[cut:])]

    assert (frame(label, *joined) == frame(label, *fields)) == (joined == fields)


@given(st.integers(0, 2**64 - 1))
def test_an_integer_is_framed_as_its_8_bytes(number):
    assert frame("label", number) == frame("label", struct.pack("<Q", number))


@pytest.mark.parametrize("number", [-1, 2**64])
def test_an_integer_that_does_not_fit_is_never_framed(number):
    with pytest.raises(struct.error):
        frame("label", number)


def test_digests_and_macs_are_sha256_over_the_frame():
    framed = frame("label", b"a", 1)

    assert digest("label", b"a", 1) == hashlib.sha256(framed).digest()
    assert authenticate(KEY, "label", b"a", 1) == hmac.new(KEY, framed, hashlib.sha256).digest()
    assert digest("label").hex() == "252bb5b38ed07438df9fb0afa6910048b5ff70bb9456eb5898ee951941d017d5"


def test_extract_is_that_of_rfc_5869():
    # test case 1 of its appendix; the input in two parts
    salt = bytes(range(13))

    assert extract(salt, b"\x0b" * 10, b"\x0b" * 12).hex() == (
        "077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5"
    )


@pytest.mark.parametrize("length", [1, 32, 33, 64, 100])
def test_expand_is_that_of_rfc_5869(length):
    info, block, stream = frame("mask", b"context", 3), b"", b""
    for counter in range(1, 5):
        block = hmac.new(KEY, block + info + bytes([counter]), hashlib.sha256).digest()
        stream += block

    assert expand(KEY, "mask", b"context", 3, length=length) == stream[:length]


def test_a_derived_key_depends_on_key_label_and_every_field():
    keys = {
        expand(KEY, "mask", b"context", 3),
        expand(KEY[::-1], "mask", b"context", 3),
        expand(KEY, "seal", b"context", 3),
        expand(KEY, "mask", b"other", 3),
        expand(KEY, "mask", b"context", 4),
        expand(KEY, "mask", b"context"),
    }

    assert len(keys) == 6
    assert {len(key) for key in keys} == {32}
