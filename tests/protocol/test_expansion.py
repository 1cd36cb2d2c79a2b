"""Seeds are expanded by SEAL, without any key, and in the way that every site's ciphertexts rely on."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import tenseal.sealapi as seal
from consortium import fixed_bytes
from hypothesis import given, settings
from hypothesis import strategies as st

import protocol.backend
import protocol.expansion
from protocol.errors import BackendError, LengthError
from protocol.expansion import KNOWN_EXPANSIONS, ExpansionSum, check_expansion, expand_seeds
from protocol.parameters import MODULI, SEED_BYTES, CkksParameters
from protocol.residues import check_residues, pack_residues

SETS = [CkksParameters(ring_degree=degree, modulus_bits=bits, sites=4) for degree, bits in MODULI]
SMALL = SETS[0]
every_set = pytest.mark.parametrize("parameters", SETS, ids=lambda p: f"N{p.ring_degree}-{p.modulus_bits}bits")


@pytest.fixture
def fresh():
    """Neither keep what a test broke nor pass it on."""
    cached = (protocol.backend.backend, check_expansion)
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


def seeds_of(number, ciphertexts):
    return fixed_bytes("seeds", number, length=SEED_BYTES * ciphertexts)


@pytest.mark.parametrize(
    ("ring_degree", "modulus_bits", "expected"),
    [
        (4096, 24, "865844a53c5de9c7"),
        (4096, 32, "8057a0eac2bd9bcc"),
        (4096, 40, "234bf5ef97aff888"),
        (2048, 24, "a2567289d41ffe10"),
        (2048, 32, "51c2e9acffff7652"),
        (2048, 40, "92a743ec686d3baa"),
    ],
)
def test_expansions_are_fixed_for_ever(ring_degree, modulus_bits, expected):
    parameters = CkksParameters(ring_degree=ring_degree, modulus_bits=modulus_bits, sites=4)

    expanded = expand_seeds(seeds_of(0, 2), parameters)

    assert hashlib.sha256(pack_residues(expanded, parameters.residue_bytes)).hexdigest()[:16] == expected


@every_set
def test_residues_have_the_wire_s_type_and_range(parameters):
    expanded = expand_seeds(seeds_of(0, 3), parameters)

    check_residues(expanded, parameters.modulus)
    assert expanded.dtype == (np.uint64 if parameters.modulus_bits == 40 else np.uint32)
    assert expanded.shape == (3, parameters.ring_degree)
    # uniform in Z_q: the mean is within 6 standard deviations of q/2
    assert abs(expanded.mean() / parameters.modulus - 0.5) < 6 / np.sqrt(12 * expanded.size)


@every_set
def test_a_sum_is_that_of_the_single_expansions_in_python_integers(parameters):
    total = ExpansionSum(parameters, 2)
    for number in range(5):
        total.add(seeds_of(number, 2))

    expected = sum(expand_seeds(seeds_of(number, 2), parameters).astype(object) for number in range(5))

    assert total.residues().tolist() == (expected % parameters.modulus).tolist()
    assert np.array_equal(total.residues(), total.residues())


@settings(max_examples=6)
@given(st.permutations(range(4)))
def test_the_order_of_addition_does_not_matter(order):
    one, other = ExpansionSum(SMALL, 1), ExpansionSum(SMALL, 1)
    for number, permuted in enumerate(order):
        one.add(seeds_of(number, 1))
        other.add(seeds_of(permuted, 1))

    assert np.array_equal(one.residues(), other.residues())


def test_rows_are_expanded_one_by_one():
    seeds = seeds_of(0, 3)

    rows = [expand_seeds(seeds[start : start + SEED_BYTES], SMALL)[0] for start in range(0, len(seeds), SEED_BYTES)]

    assert np.array_equal(expand_seeds(seeds, SMALL), rows)


@pytest.mark.parametrize("length", [0, 63, 64, 127, 129, 192])
def test_other_than_one_seed_per_ciphertext_is_refused_and_leaves_the_sum_as_it_is(length):
    total = ExpansionSum(SMALL, 2)
    total.add(seeds_of(0, 2))

    with pytest.raises(LengthError) as refusal:
        total.add(bytes(length))

    assert (refusal.value.expected, refusal.value.got) == (128, length)
    assert np.array_equal(total.residues(), expand_seeds(seeds_of(0, 2), SMALL))


@every_set
def test_no_key_is_made_and_nothing_encrypted(fresh, monkeypatch, parameters):
    def refuse(*_):
        raise AssertionError("a provider needs no key")

    for maker in ("KeyGenerator", "SecretKey", "PublicKey", "Encryptor", "Decryptor"):
        monkeypatch.setattr(seal, maker, refuse)

    assert expand_seeds(seeds_of(0, 1), parameters).any()


def test_a_known_answer_is_there_for_every_modulus():
    assert KNOWN_EXPANSIONS.keys() == MODULI.keys()


@every_set
def test_a_seal_that_expands_in_another_way_is_refused_before_anything_is_added(fresh, monkeypatch, parameters):
    monkeypatch.setattr(protocol.expansion, "KNOWN_SEED", bytes(SEED_BYTES))

    with pytest.raises(BackendError, match="in another way"):
        ExpansionSum(parameters, 1)


@pytest.mark.parametrize("seed_record_bytes", [80, 82, 81 + 8])
def test_a_shifted_layout_is_refused(fresh, monkeypatch, seed_record_bytes):
    monkeypatch.setattr("protocol.seal_format._SEED_RECORD_BYTES", seed_record_bytes)

    with pytest.raises(BackendError, match="lays ciphertexts out in another way"):
        ExpansionSum(SMALL, 1)
