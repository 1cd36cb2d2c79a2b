"""SEAL's bytes: taken apart and put together again, or refused when they are not what they were measured to be."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import tenseal.sealapi as seal

from clients.secrets.ckks import SecretKey
from protocol.backend import backend
from protocol.errors import BackendError
from protocol.parameters import MODULI, CkksParameters
from protocol.scratch_file import ScratchFile
from protocol.seal_format import CiphertextLayout, split_expanded, split_seeded

PARAMETERS = CkksParameters(ring_degree=2048, modulus_bits=32, sites=3)
DEGREE = PARAMETERS.ring_degree
HEADER = struct.Struct("<HBBBBHQ")


@pytest.fixture(scope="module")
def saved():
    """A seeded ciphertext as SEAL saves it."""
    return encrypted(PARAMETERS)


@pytest.fixture(scope="module")
def empty():
    """A ciphertext without polynomials as SEAL saves it."""
    with ScratchFile() as scratch:
        seal.Ciphertext(backend(PARAMETERS).context).save(scratch.path)
        return scratch.read()


def encrypted(parameters):
    engine = backend(parameters)
    plaintext = seal.Plaintext()
    engine.encoder.encode([1 + 2j] * (parameters.ring_degree // 2), engine.parms_id, parameters.scale, plaintext)
    key = SecretKey.from_seed(bytes(64), parameters)
    with ScratchFile() as scratch:
        seal.Encryptor(engine.context, key._key).encrypt_symmetric(plaintext).save(scratch.path)
        return scratch.read()


def saved_again(engine, data):
    """Return what SEAL saves of what it loads."""
    with ScratchFile() as scratch:
        engine.load(scratch.write(data)).save(scratch.path)
        return scratch.read()


def with_header(saved, **changes):
    names = ("magic", "header_size", "major", "minor", "compression", "reserved", "size")
    fields = dict(zip(names, HEADER.unpack(saved[: HEADER.size]), strict=True)) | changes
    return HEADER.pack(*fields.values()) + saved[HEADER.size :]


@pytest.mark.parametrize(("ring_degree", "modulus_bits"), MODULI)
def test_a_ciphertext_taken_apart_and_rebuilt_in_either_form_is_what_seal_loads(ring_degree, modulus_bits):
    parameters = CkksParameters(ring_degree=ring_degree, modulus_bits=modulus_bits, sites=3)
    engine, fresh = backend(parameters), encrypted(parameters)

    residues, seed = split_seeded(fresh, ring_degree)
    loaded = saved_again(engine, fresh)
    second = split_expanded(loaded, ring_degree)[1]

    assert residues.shape == second.shape == (ring_degree,)
    assert max(residues.max(), second.max()) < parameters.modulus
    assert len(seed) == 64
    assert saved_again(engine, engine.layout.seeded(residues, seed)) == loaded
    assert saved_again(engine, engine.layout.expanded(residues, second)) == loaded


def test_uncompressed_bytes_are_taken_apart_alike(saved):
    residues, seed = split_seeded(saved, DEGREE)
    rebuilt = backend(PARAMETERS).layout.seeded(residues, seed)

    again, seed_again = split_seeded(rebuilt, DEGREE)

    assert np.array_equal(again, residues)
    assert seed_again == seed


@pytest.mark.parametrize("change", [{"magic": 0xA15F}, {"header_size": 24}, {"size": 17}, {"compression": 1}], ids=str)
def test_another_header_is_refused(saved, empty, change):
    with pytest.raises(BackendError):
        split_seeded(with_header(saved, **change), DEGREE)
    with pytest.raises(BackendError):
        split_expanded(with_header(saved, **change), DEGREE)
    with pytest.raises(BackendError):
        CiphertextLayout.of(with_header(empty, **change), ring_degree=DEGREE, scale=PARAMETERS.scale)


def test_the_layout_is_derived_from_nothing_but_an_empty_ciphertext(empty, saved):
    derived = CiphertextLayout.of(empty, ring_degree=DEGREE, scale=PARAMETERS.scale)

    assert derived == backend(PARAMETERS).layout
    for other, ring_degree in [(empty, 4096), (saved, DEGREE)]:
        with pytest.raises(BackendError):
            CiphertextLayout.of(other, ring_degree=ring_degree, scale=PARAMETERS.scale)


def test_a_ciphertext_of_a_smaller_ring_is_refused(saved):
    with pytest.raises(BackendError, match="too few for 4096 residues"):
        split_seeded(saved, 4096)
    with pytest.raises(BackendError, match="expected 65633"):
        split_expanded(saved, 4096)


def test_a_seeded_ciphertext_holds_no_second_polynomial(saved):
    with pytest.raises(BackendError):
        split_expanded(saved, DEGREE)
