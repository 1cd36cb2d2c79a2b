from __future__ import annotations

import hashlib
from itertools import combinations

import numpy as np
import pytest
from consortium import fixed_bytes
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from protocol.masks import mask_residues, uniform_residues
from protocol.parameters import MODULI
from protocol.residues import ResidueSum, pack_residues

LENGTHS = [24, 32, 40]
MODULUS = {bits: MODULI[2048, bits] for bits in LENGTHS}
KEY = fixed_bytes("mask")
every_length = pytest.mark.parametrize("bits", LENGTHS)


def stream_words(key, bits, count):
    """Return the first words of the key's ChaCha20 stream, read by Python."""
    width = bits // 8
    stream = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(count * width))
    return [int.from_bytes(stream[start : start + width], "little") for start in range(0, len(stream), width)]


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        (24, "10ce41bb85e1fb93"),
        (32, "756388305860869e"),
        (40, "9c7f8228dd6f6e15"),
    ],
)
def test_the_masks_of_a_key_are_fixed_for_ever(bits, expected):
    residues = uniform_residues(KEY, count=10_000, modulus=MODULUS[bits], bits=bits)

    assert hashlib.sha256(pack_residues(residues, bits // 8)).hexdigest()[:16] == expected


@every_length
def test_residues_are_the_stream_without_the_words_of_q_or_more(bits):
    count = 20_000
    words = stream_words(KEY, bits, count + 100)
    kept = [word for word in words if word < MODULUS[bits]]

    assert uniform_residues(KEY, count=count, modulus=MODULUS[bits], bits=bits).tolist() == kept[:count]


def test_words_of_q_or_more_do_occur_and_none_of_them_is_kept():
    words = stream_words(KEY, 24, 20_000)
    refused = sum(word >= MODULUS[24] for word in words)

    assert 5 < refused < 60  # 20 are expected: one word in 1024
    assert int(uniform_residues(KEY, count=20_000, modulus=MODULUS[24], bits=24).max()) < MODULUS[24]


@pytest.mark.parametrize("count", [1, 7, 1000])
def test_the_stream_goes_on_until_enough_words_were_kept(count):
    modulus = (1 << 23) + 1  # half of all 24-bit words are refused
    kept = [word for word in stream_words(KEY, 24, 4 * count + 100) if word < modulus]

    assert uniform_residues(KEY, count=count, modulus=modulus, bits=24).tolist() == kept[:count]


@every_length
def test_a_word_that_is_q_itself_is_not_kept(bits):
    words = stream_words(KEY, bits, 100)
    modulus = max(words)

    residues = uniform_residues(KEY, count=99, modulus=modulus, bits=bits)

    assert (
        residues[: words.index(modulus) + 1].tolist() == [w for w in words if w < modulus][: words.index(modulus) + 1]
    )
    assert modulus not in residues


@every_length
@pytest.mark.parametrize("kept_bits", ["high", "low"])
def test_masks_are_uniform(bits, kept_bits):
    bins = 1 << 10
    residues = uniform_residues(KEY, count=1 << 20, modulus=MODULUS[bits], bits=bits).astype(np.uint64)
    places = (
        residues * np.uint64(bins) // np.uint64(MODULUS[bits]) if kept_bits == "high" else residues % np.uint64(bins)
    )

    observed = np.bincount(places.astype(np.int64), minlength=bins)

    assert len(observed) == bins
    assert stats.chisquare(observed).pvalue > 1e-4


@every_length
def test_the_last_residues_below_q_are_as_likely_as_the_first(bits):
    # keeping the refused words, reduced mod q, would double the share of the smallest residues
    edge = MODULUS[bits] // 1000
    residues = uniform_residues(KEY, count=1 << 20, modulus=MODULUS[bits], bits=bits)
    low, high = int((residues < edge).sum()), int((residues >= MODULUS[bits] - edge).sum())

    assert abs(low - high) < 6 * np.sqrt(low + high)


@every_length
@settings(max_examples=25)
@given(
    cohort=st.sets(st.integers(0, 127), min_size=2, max_size=12),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 40)),
    seed=st.integers(0, 2**16),
)
def test_the_masks_of_any_whole_cohort_cancel(bits, cohort, shape, seed):
    modulus = MODULUS[bits]
    pair_key = {pair: fixed_bytes("pair", seed, *pair) for pair in combinations(sorted(cohort), 2)}
    generator = np.random.default_rng(seed)
    plain, masked = ResidueSum(modulus, bits, shape), ResidueSum(modulus, bits, shape)
    for site in cohort:
        residues = generator.integers(modulus, size=shape).astype(np.uint64 if bits > 32 else np.uint32)
        keys = {key: site == pair[0] for pair, key in pair_key.items() if site in pair}
        plain.add(residues)
        masked.add(mask_residues(residues, keys, modulus=modulus, bits=bits))

    assert masked.reduce().tolist() == plain.reduce().tolist()


@every_length
def test_the_masks_of_a_cohort_with_a_site_missing_do_not_cancel(bits):
    shape, modulus = (1, 500), MODULUS[bits]
    zeros = np.zeros(shape, dtype=np.uint64 if bits > 32 else np.uint32)
    total = ResidueSum(modulus, bits, shape)
    for site in (0, 1):  # site 2 has named no update
        keys = {fixed_bytes("pair", min(site, peer), max(site, peer)): site < peer for peer in range(3) if peer != site}
        total.add(mask_residues(zeros, keys, modulus=modulus, bits=bits))

    assert np.count_nonzero(total.reduce()) > 490


@every_length
def test_a_masked_update_is_uniform_whatever_it_holds(bits):
    shape, modulus = (8, 4096), MODULUS[bits]
    zeros = np.zeros(shape, dtype=np.uint64 if bits > 32 else np.uint32)

    masked = mask_residues(zeros, {KEY: False, KEY[::-1]: True}, modulus=modulus, bits=bits)

    assert masked.shape == shape
    assert int(masked.max()) < modulus
    places = (masked.reshape(-1).astype(np.uint64) * np.uint64(64) // np.uint64(modulus)).astype(np.int64)
    assert stats.chisquare(np.bincount(places, minlength=64)).pvalue > 1e-4


@every_length
def test_subtracting_a_mask_of_zero_gives_a_residue_below_q(bits):
    # q - 0 is q itself, which the reduction at the end must bring back to 0
    modulus = MODULUS[bits]
    mask = uniform_residues(KEY, count=2000, modulus=modulus, bits=bits).reshape(1, 2000)

    assert not mask_residues(mask, {KEY: False}, modulus=modulus, bits=bits).any()
