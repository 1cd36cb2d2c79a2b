from __future__ import annotations

import hashlib

import numpy as np
import pytest
from consortium import fixed_bytes
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from protocol.errors import MalformedError
from protocol.masks import uniform_residues
from protocol.parameters import MODULI, CkksParameters
from protocol.residues import ResidueSum, pack_residues
from protocol.tags import add_tags, tag_from_bytes, tag_of, tag_to_bytes, tag_vector_count, tag_vectors

SETS = [CkksParameters(ring_degree=degree, modulus_bits=bits, sites=4) for degree, bits in MODULI]
KEY = fixed_bytes("tag-r")
every_set = pytest.mark.parametrize("parameters", SETS, ids=lambda p: f"N{p.ring_degree}-{p.modulus_bits}bits")


def random_residues(parameters, rows, number=0):
    flat = uniform_residues(
        fixed_bytes("residues", number),
        count=rows * parameters.ring_degree,
        modulus=parameters.modulus,
        bits=parameters.modulus_bits,
    )
    return flat.reshape(rows, parameters.ring_degree).copy()


def reference_tag(vectors, residues, parameters):
    """Return the inner products in Python's integers."""
    numbers = residues.reshape(-1).astype(object)
    return tuple(int(numbers.dot(vector.reshape(-1).astype(object))) % parameters.modulus for vector in vectors)


@pytest.mark.parametrize(("bits", "vectors"), [(24, 3), (32, 2), (40, 2)])
def test_as_many_vectors_as_64_bits_of_soundness_need(bits, vectors):
    assert tag_vector_count(CkksParameters(ring_degree=2048, modulus_bits=bits, sites=4)) == vectors


@every_set
def test_vectors_are_different_stretches_of_one_stream(parameters):
    vectors = tag_vectors(KEY, parameters, 2)
    count = tag_vector_count(parameters) * 2 * parameters.ring_degree

    assert [vector.shape for vector in vectors] == [(2, parameters.ring_degree)] * tag_vector_count(parameters)
    assert (
        np.concatenate(vectors).reshape(-1).tolist()
        == uniform_residues(KEY, count=count, modulus=parameters.modulus, bits=parameters.modulus_bits).tolist()
    )


@every_set
@pytest.mark.parametrize("rows", [1, 2, 16, 17])
def test_a_tag_is_the_inner_product_in_python_integers(parameters, rows):
    vectors, residues = tag_vectors(KEY, parameters, rows), random_residues(parameters, rows)

    assert tag_of(vectors, residues, parameters) == reference_tag(vectors, residues, parameters)


@every_set
def test_the_largest_products_do_not_overflow(parameters):
    largest = np.full((17, parameters.ring_degree), parameters.modulus - 1, dtype=np.uint64)
    terms = 17 * parameters.ring_degree

    # (q - 1)(q - 1) is 1 mod q
    assert tag_of([largest], largest, parameters) == (terms % parameters.modulus,)


@every_set
@pytest.mark.parametrize("sites", [2, 5])
def test_tags_of_updates_add_up_to_the_tag_of_their_sum(parameters, sites):
    vectors = tag_vectors(KEY, parameters, 2)
    updates = [random_residues(parameters, 2, number) for number in range(sites)]
    total = ResidueSum(parameters.modulus, parameters.modulus_bits, (2, parameters.ring_degree))
    for update in updates:
        total.add(update)

    tags = [tag_of(vectors, update, parameters) for update in updates]

    assert add_tags(tags, parameters) == tag_of(vectors, total.reduce(), parameters)


@every_set
@settings(max_examples=15)
@given(drawn=st.data())
def test_any_single_altered_residue_changes_the_tag(parameters, drawn):
    vectors, residues = tag_vectors(KEY, parameters, 2), random_residues(parameters, 2)
    place = drawn.draw(st.integers(0, residues.size - 1))
    shift = drawn.draw(st.integers(1, parameters.modulus - 1))
    altered = residues.copy()
    altered.reshape(-1)[place] = (int(residues.reshape(-1)[place]) + shift) % parameters.modulus

    assert tag_of(vectors, altered, parameters) != tag_of(vectors, residues, parameters)


@every_set
@settings(max_examples=15)
@given(drawn=st.data())
def test_swapping_two_residues_changes_the_tag(parameters, drawn):
    vectors, residues = tag_vectors(KEY, parameters, 2), random_residues(parameters, 2)
    places = st.integers(0, residues.size - 1)
    one, other = drawn.draw(places), drawn.draw(places)
    assume(residues.flat[one] != residues.flat[other])
    swapped = residues.copy()
    swapped.flat[one], swapped.flat[other] = residues.flat[other], residues.flat[one]

    assert tag_of(vectors, swapped, parameters) != tag_of(vectors, residues, parameters)


@every_set
def test_swapping_two_rows_changes_the_tag(parameters):
    vectors, residues = tag_vectors(KEY, parameters, 2), random_residues(parameters, 2)

    assert tag_of(vectors, residues[::-1], parameters) != tag_of(vectors, residues, parameters)


@every_set
def test_another_key_gives_another_tag(parameters):
    residues = random_residues(parameters, 1)
    tags = {tag_of(tag_vectors(fixed_bytes("tag-r", n), parameters, 1), residues, parameters) for n in range(4)}

    assert len(tags) == 4


@pytest.mark.parametrize(
    ("bits", "expected"), [(24, "d937e8ad92c3265c"), (32, "a5a990acd509749c"), (40, "d0387b77c4dcac48")]
)
def test_vectors_and_tags_are_fixed_for_ever(bits, expected):
    parameters = CkksParameters(ring_degree=4096, modulus_bits=bits, sites=4)
    vectors = tag_vectors(KEY, parameters, 1)
    packed = b"".join(pack_residues(vector, parameters.residue_bytes) for vector in vectors)
    tag = tag_to_bytes(tag_of(vectors, random_residues(parameters, 1), parameters))

    assert hashlib.sha256(packed + tag).hexdigest()[:16] == expected


@given(st.lists(st.integers(0, 2**64 - 1), max_size=4).map(tuple))
def test_tag_bytes_can_be_read_back(tag):
    assert len(tag_to_bytes(tag)) == 8 * len(tag)
    assert tag_from_bytes(tag_to_bytes(tag)) == tag


@pytest.mark.parametrize("length", [1, 7, 9, 17])
def test_tag_bytes_that_end_within_a_word_are_refused(length):
    with pytest.raises(MalformedError):
        tag_from_bytes(bytes(length))
