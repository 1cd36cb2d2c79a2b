from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import LengthError, ResidueRangeError
from protocol.parameters import MAX_SITES, MODULI
from protocol.residues import ResidueSum, check_residues, pack_residues, unpack_residues, unpack_words

LENGTHS = [24, 32, 40]
MODULUS = {bits: MODULI[2048, bits] for bits in LENGTHS}
every_length = pytest.mark.parametrize("bits", LENGTHS)


def dtype(bits):
    return np.uint64 if bits > 32 else np.uint32


def as_residues(rows, bits):
    return np.array(rows, dtype=dtype(bits))


@pytest.mark.parametrize(
    ("bits", "expected"),
    [(24, "010000030201fffefd"), (32, "0100000003020100fffefd00"), (40, "01000000000302010000fffefd0000")],
)
def test_words_are_little_endian_and_as_wide_as_the_modulus(bits, expected):
    residues = as_residues([[1, 0x010203, 0xFDFEFF]], bits)

    assert pack_residues(residues, bits // 8).hex() == expected


@every_length
@given(drawn=st.data())
def test_unpack_inverts_pack(bits, drawn):
    columns = drawn.draw(st.integers(1, 8))
    rows = st.lists(st.integers(0, MODULUS[bits] - 1), min_size=columns, max_size=columns)
    values = drawn.draw(st.lists(rows, min_size=1, max_size=4))
    packed = pack_residues(as_residues(values, bits), bits // 8)

    assert len(packed) == len(values) * columns * bits // 8
    unpacked = unpack_residues(packed, bits // 8, MODULUS[bits], (len(values), columns))
    assert unpacked.tolist() == values
    assert pack_residues(unpacked, bits // 8) == packed


@every_length
@given(drawn=st.data())
def test_unpacking_any_words_reads_what_python_reads(bits, drawn):
    width = bits // 8
    data = drawn.draw(st.binary(max_size=20 * width).map(lambda raw: raw[: len(raw) // width * width]))

    expected = [int.from_bytes(data[start : start + width], "little") for start in range(0, len(data), width)]
    assert unpack_words(data, width).tolist() == expected
    assert unpack_words(memoryview(data), width).tolist() == expected


@every_length
def test_residues_that_are_not_contiguous_pack_in_order(bits):
    residues = as_residues(np.arange(12).reshape(3, 4), bits)

    assert pack_residues(residues.T, bits // 8) == pack_residues(residues.T.copy(), bits // 8)


@every_length
def test_a_word_of_q_or_more_is_refused_wherever_it_stands(bits):
    modulus, width = MODULUS[bits], bits // 8
    for word in (modulus, modulus + 1, (1 << bits) - 1):
        for place in range(6):
            values = [0] * 6
            values[place] = word
            with pytest.raises(ResidueRangeError) as refusal:
                unpack_residues(pack_residues(as_residues(values, bits), width), width, modulus, (2, 3))
            assert refusal.value.expected == f"below {modulus}"
            assert refusal.value.got == word


@every_length
@settings(max_examples=40)
@given(drawn=st.data())
def test_every_word_of_q_or_more_is_refused(bits, drawn):
    word = drawn.draw(st.integers(MODULUS[bits], (1 << bits) - 1))

    with pytest.raises(ResidueRangeError):
        check_residues(as_residues([0, word], bits), MODULUS[bits])


@every_length
def test_the_largest_residue_is_accepted(bits):
    check_residues(as_residues([[MODULUS[bits] - 1]], bits), MODULUS[bits])


@every_length
@pytest.mark.parametrize("change", [-1, 1, "word more", "nothing"])
def test_another_length_is_refused_before_a_word_is_read(bits, change):
    width = bits // 8
    length = {-1: 6 * width - 1, 1: 6 * width + 1, "word more": 7 * width, "nothing": 0}[change]

    with pytest.raises(LengthError) as refusal:
        unpack_residues(b"\xff" * length, width, MODULUS[bits], (2, 3))
    assert (refusal.value.expected, refusal.value.got) == (6 * width, length)


@every_length
@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), addends=st.integers(0, MAX_SITES))
def test_a_sum_equals_that_of_python_integers(bits, seed, addends):
    generator = np.random.default_rng(seed)
    total = ResidueSum(MODULUS[bits], bits, (2, 3))
    expected = np.zeros((2, 3), dtype=object)
    for _ in range(addends):
        residues = generator.integers(MODULUS[bits], size=(2, 3)).astype(dtype(bits))
        total.add(residues)
        expected = (expected + residues) % MODULUS[bits]

    reduced = total.reduce()
    assert reduced.tolist() == expected.tolist()
    assert reduced.dtype == dtype(bits)


@every_length
@pytest.mark.parametrize("addends", [1, 2, 3, 127, 128, 200, 255])
@pytest.mark.parametrize("distance", [1, 2, 1 << 15])
def test_a_sum_of_the_largest_residues_does_not_overflow(bits, addends, distance):
    largest = MODULUS[bits] - distance
    total = ResidueSum(MODULUS[bits], bits, (1, 4))
    for _ in range(addends):
        total.add(np.full((1, 4), largest, dtype=dtype(bits)))

    assert total.reduce().tolist() == [[addends * largest % MODULUS[bits]] * 4]


def test_a_sum_of_32_bit_words_is_right_on_both_sides_of_every_carry():
    modulus = MODULUS[32]
    for wraps in (1, 2, 199):
        # sums that end a few steps below or above a multiple of 2^32, and of q
        for target in (wraps << 32, wraps * modulus):
            for offset in range(-2, 3):
                wanted = target + offset
                addends = [modulus - 1] * (wanted // (modulus - 1)) + [wanted % (modulus - 1)]
                total = ResidueSum(modulus, 32, (1, 1))
                for addend in addends:
                    total.add(np.array([[addend]], dtype=np.uint32))
                assert total.reduce().tolist() == [[wanted % modulus]]
                assert total.reduce().tolist() == [[wanted % modulus]]


@every_length
def test_sums_longer_than_a_block_are_added_to_the_end(bits):
    shape = (33, 2048)  # 2^16 words and a row
    residues = np.full(shape, MODULUS[bits] - 1, dtype=dtype(bits))
    total = ResidueSum(MODULUS[bits], bits, shape)
    for _ in range(3):
        total.add(residues)

    assert set(total.reduce().reshape(-1).tolist()) == {MODULUS[bits] - 3}


@every_length
def test_a_sum_can_be_reduced_twice_and_added_to_afterwards(bits):
    total = ResidueSum(MODULUS[bits], bits, (1, 2))
    residues = np.full((1, 2), MODULUS[bits] - 1, dtype=dtype(bits))
    for count in range(1, 300):
        total.add(residues)
        assert total.reduce().tolist() == total.reduce().tolist() == [[MODULUS[bits] - count] * 2]


@every_length
@pytest.mark.parametrize("cores", [2, 3])
def test_several_threads_add_and_check_what_one_does(bits, cores, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    shape, modulus = (1, 3 * (1 << 18) + 7), MODULUS[bits]
    residues = (modulus - 1 - np.arange(shape[1], dtype=np.uint64)).astype(dtype(bits)).reshape(shape)
    total = ResidueSum(modulus, bits, shape)
    for _ in range(3):
        total.add(residues)

    assert np.array_equal(total.reduce(), (3 * residues.astype(np.uint64) % np.uint64(modulus)).astype(dtype(bits)))
    for place in (0, 1 << 18, shape[1] // 2, shape[1] - 1):
        beyond = residues.copy()
        beyond[0, place] = modulus
        with pytest.raises(ResidueRangeError):
            check_residues(beyond, modulus)


@every_length
def test_adding_leaves_the_addend_as_it_was(bits):
    residues = np.full((1, 2), 5, dtype=dtype(bits))
    total = ResidueSum(MODULUS[bits], bits, (1, 2))
    total.add(residues)
    total.add(residues)

    assert residues.tolist() == [[5, 5]]
