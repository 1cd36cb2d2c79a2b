"""CKKS sums are exact integers for every parameter set, whatever the values; and a key stays where it is."""

from __future__ import annotations

import copy
import os
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.secrets.ckks import KEY_SEED_BYTES, Decryptor, Encryptor, SecretKey
from protocol.errors import ResidualError, SecretMaterialError
from protocol.expansion import ExpansionSum
from protocol.parameters import MODULI, SEED_BYTES, CkksParameters
from protocol.residues import ResidueSum, check_residues

SITES = 16
PARAMETER_SETS = [CkksParameters(ring_degree=degree, modulus_bits=bits, sites=SITES) for degree, bits in MODULI]
SMALL = PARAMETER_SETS[0]
all_parameter_sets = pytest.mark.parametrize(
    "parameters", PARAMETER_SETS, ids=lambda parameters: f"N{parameters.ring_degree}-{parameters.modulus_bits}"
)


def new_key(parameters):
    return SecretKey.from_seed(os.urandom(KEY_SEED_BYTES), parameters)


def adversarial(parameters, limit):
    """Rows that stress an embedding most, none above the limit."""
    degree = parameters.ring_degree
    index = np.arange(degree)
    random = np.random.default_rng(degree + parameters.modulus_bits)
    return np.stack(
        [
            np.full(degree, limit),
            np.full(degree, -limit),
            np.where(index % 2, limit, -limit),
            np.where(index == 0, limit, 0),
            np.where(index == degree - 1, -limit, 0),
            index * limit // degree,
            np.where(random.random(degree) < 0.5, limit, -limit),
            random.integers(-limit, limit, degree, endpoint=True),
        ]
    ).astype(np.int64)


def summed(parameters, updates):
    total = ResidueSum(parameters.modulus, parameters.modulus_bits, updates[0][0].shape)
    for residues, _ in updates:
        total.add(residues)
    return total.reduce(), [seeds for _, seeds in updates]


def summed_expanded(parameters, updates):
    """Return what goes down in a large cohort: both sums."""
    first, seeds = summed(parameters, updates)
    second = ExpansionSum(parameters, len(first))
    for of_site in seeds:
        second.add(of_site)
    return first, second.residues()


@all_parameter_sets
@pytest.mark.parametrize("sites", [1, 2, 3, SITES])
def test_the_sum_of_adversarial_patterns_is_exact(parameters, sites):
    key = new_key(parameters)
    packed = adversarial(parameters, parameters.site_limit // sites)

    updates = [Encryptor(key).encrypt(packed) for _ in range(sites)]

    assert np.array_equal(Decryptor(key).decrypt(*summed(parameters, updates)), sites * packed)


@all_parameter_sets
def test_sites_with_different_patterns_add_up_exactly(parameters):
    key = new_key(parameters)
    packed = adversarial(parameters, parameters.site_limit // 4)
    contributions = [np.roll(packed, shift, axis=0) for shift in range(4)]

    updates = [Encryptor(key).encrypt(contribution) for contribution in contributions]

    assert np.array_equal(Decryptor(key).decrypt(*summed(parameters, updates)), np.sum(contributions, axis=0))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_random_contributions_add_up_exactly(seed, sites):
    random = np.random.default_rng(seed)
    limit = SMALL.site_limit // sites
    contributions = random.integers(-limit, limit, (sites, 1, SMALL.ring_degree), endpoint=True)
    key = new_key(SMALL)

    updates = [Encryptor(key).encrypt(contribution) for contribution in contributions]

    assert np.array_equal(Decryptor(key).decrypt(*summed(SMALL, updates)), contributions.sum(axis=0))


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(PARAMETER_SETS), st.integers(0, 2**32 - 1), st.integers(1, SITES), st.integers(1, 3))
def test_seeded_and_expanded_sums_give_identical_integers(parameters, seed, sites, ciphertexts):
    random = np.random.default_rng(seed)
    limit = parameters.site_limit // sites
    shape = (sites, ciphertexts, parameters.ring_degree)
    contributions = random.integers(-limit, limit, shape, endpoint=True)
    key = new_key(parameters)
    updates = [Encryptor(key).encrypt(contribution) for contribution in contributions]

    seeded = Decryptor(key).decrypt(*summed(parameters, updates))
    expanded = Decryptor(key).decrypt_expanded(*summed_expanded(parameters, updates), sites=sites)

    assert np.array_equal(seeded, expanded)
    assert np.array_equal(expanded, contributions.sum(axis=0))


def test_more_ciphertexts_than_are_held_at_once_keep_their_order():
    key = new_key(SMALL)
    packed = np.repeat(np.arange(70, dtype=np.int64)[:, None], SMALL.ring_degree, axis=1)

    residues, seeds = Encryptor(key).encrypt(packed)

    assert len(seeds) == 70 * SEED_BYTES
    assert np.array_equal(Decryptor(key).decrypt(residues, [seeds]), packed)
    both = summed_expanded(SMALL, [(residues, seeds)])
    assert np.array_equal(Decryptor(key).decrypt_expanded(*both, sites=1), packed)


@all_parameter_sets
def test_residues_have_the_wire_s_type_and_range(parameters):
    residues, seeds = Encryptor(new_key(parameters)).encrypt(np.zeros((2, parameters.ring_degree), dtype=np.int64))

    check_residues(residues, parameters.modulus)
    assert residues.dtype == (np.uint64 if parameters.modulus_bits == 40 else np.uint32)
    assert residues.shape == (2, parameters.ring_degree)
    assert len(seeds) == 2 * SEED_BYTES


def test_two_encryptions_of_the_same_values_have_nothing_in_common():
    key = new_key(SMALL)
    packed = np.ones((2, SMALL.ring_degree), dtype=np.int64)
    encryptor = Encryptor(key)

    (one, one_seeds), (other, other_seeds) = encryptor.encrypt(packed), encryptor.encrypt(packed)

    rows = [one[0], one[1], other[0], other[1]]
    for index, row in enumerate(rows):
        for later in rows[index + 1 :]:
            assert np.mean(row == later) < 0.01
    seeds = [joined[start : start + SEED_BYTES] for joined in (one_seeds, other_seeds) for start in (0, SEED_BYTES)]
    assert len(set(seeds)) == 4


@all_parameter_sets
def test_the_same_seed_gives_the_same_key_and_another_seed_another(parameters):
    seed = os.urandom(KEY_SEED_BYTES)
    key, twin = SecretKey.from_seed(seed, parameters), SecretKey.from_seed(seed, parameters)
    packed = adversarial(parameters, 100)

    residues, seeds = Encryptor(key).encrypt(packed)

    assert key.digest() == twin.digest() != new_key(parameters).digest()
    assert np.array_equal(Decryptor(twin).decrypt(residues, [seeds]), packed)


@all_parameter_sets
def test_another_key_finds_noise_and_nothing_else(parameters):
    residues, seeds = Encryptor(new_key(parameters)).encrypt(adversarial(parameters, 5))

    with pytest.raises(ResidualError):
        Decryptor(new_key(parameters)).decrypt(residues, [seeds])
    both = summed_expanded(parameters, [(residues, seeds)])
    with pytest.raises(ResidualError):
        Decryptor(new_key(parameters)).decrypt_expanded(*both, sites=1)


def test_seeds_of_another_ciphertext_are_noticed():
    key = new_key(SMALL)
    packed = np.ones((1, SMALL.ring_degree), dtype=np.int64)
    (residues, _), (_, other_seeds) = Encryptor(key).encrypt(packed), Encryptor(key).encrypt(packed)

    with pytest.raises(ResidualError):
        Decryptor(key).decrypt(residues, [other_seeds])


@pytest.mark.parametrize(("noise_units", "which"), [(1, "noise level"), (3, "largest noise")])
def test_noise_that_honest_ciphertexts_cannot_carry_is_refused(noise_units, which):
    # Under the smaller scale of two sites an integer is an eighth of a grid step of sixteen: noise of 128 per unit.
    seed = os.urandom(KEY_SEED_BYTES)
    of_two = CkksParameters(ring_degree=2048, modulus_bits=32, sites=2)
    of_sixteen = CkksParameters(ring_degree=2048, modulus_bits=32, sites=SITES)
    assert of_sixteen.scale == 8 * of_two.scale
    honest = Encryptor(SecretKey.from_seed(seed, of_sixteen))
    zeros = np.zeros((1, 2048), dtype=np.int64)
    updates = [honest.encrypt(zeros) for _ in range(SITES - 1)]
    updates.append(Encryptor(SecretKey.from_seed(seed, of_two)).encrypt(zeros + noise_units))

    with pytest.raises(ResidualError, match=which) as refusal:
        Decryptor(SecretKey.from_seed(seed, of_sixteen)).decrypt(*summed(of_sixteen, updates))
    assert not any(character.isdigit() for character in str(refusal.value))
    both = summed_expanded(of_sixteen, updates)
    with pytest.raises(ResidualError, match=which):
        Decryptor(SecretKey.from_seed(seed, of_sixteen)).decrypt_expanded(*both, sites=SITES)


def test_a_key_does_not_show_or_duplicate_itself():
    key = new_key(SMALL)

    assert repr(key) == str(key) == "SecretKey(<redacted>)"
    for duplicate in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(SecretMaterialError):
            duplicate(key)
    for holder in (Encryptor(key), Decryptor(key)):
        with pytest.raises((SecretMaterialError, TypeError)):
            pickle.dumps(holder)
