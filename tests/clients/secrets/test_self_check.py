"""The start-up check notices each way in which an installed SEAL may differ from the one this code is built for."""

from __future__ import annotations

import os

import numpy as np
import pytest

import clients.secrets.ckks
import clients.secrets.self_check
import protocol.backend
import protocol.seal_format
from clients.secrets.self_check import check_backend
from protocol.errors import BackendError
from protocol.expansion import ExpansionSum, check_expansion
from protocol.parameters import MODULI, CkksParameters

PARAMETERS = CkksParameters(ring_degree=2048, modulus_bits=32, sites=3)


@pytest.fixture(autouse=True)
def fresh_backend():
    """Neither keep what a test broke nor pass it on."""
    cached = (protocol.backend.backend, check_expansion, check_backend)
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


@pytest.mark.parametrize(("ring_degree", "modulus_bits"), MODULI)
def test_the_pinned_backend_passes(ring_degree, modulus_bits):
    check_backend(CkksParameters(ring_degree=ring_degree, modulus_bits=modulus_bits, sites=16))


def test_the_check_runs_once_per_process_and_parameter_set(monkeypatch):
    check_backend(PARAMETERS)
    monkeypatch.setattr(clients.secrets.self_check, "Encryptor", None)

    check_backend(PARAMETERS)


@pytest.mark.parametrize("seed_record_bytes", [80, 82, 81 + 8])
def test_a_shifted_layout_is_refused(monkeypatch, seed_record_bytes):
    monkeypatch.setattr(protocol.seal_format, "_SEED_RECORD_BYTES", seed_record_bytes)

    with pytest.raises(BackendError):
        check_backend(PARAMETERS)


def test_another_format_version_s_header_is_refused(monkeypatch):
    monkeypatch.setattr(protocol.seal_format, "_MAGIC", 0xA15F)

    with pytest.raises(BackendError, match="header"):
        check_backend(PARAMETERS)


def test_deterministic_encryption_is_refused(monkeypatch):
    # The trap itself: a context whose generator is seeded encrypts the same values to the same ciphertext every time.
    make_context = protocol.backend.make_context
    factory = clients.secrets.ckks.seal.Blake2xbPRNGFactory([7] * 8)
    monkeypatch.setattr(
        protocol.backend, "make_context", lambda degree, moduli, _: make_context(degree, moduli, factory)
    )

    with pytest.raises(BackendError, match="same ciphertext"):
        check_backend(PARAMETERS)


def test_repeated_seeds_are_refused(monkeypatch):
    encrypt = clients.secrets.ckks.Encryptor.encrypt

    def repeat_the_first_seed(self, packed):
        residues, seeds = encrypt(self, packed)
        return residues, seeds[:64] * len(packed)

    monkeypatch.setattr(clients.secrets.ckks.Encryptor, "encrypt", repeat_the_first_seed)

    with pytest.raises(BackendError, match="repeats the seeds"):
        check_backend(PARAMETERS)


def test_another_prime_is_refused(monkeypatch):
    monkeypatch.setitem(MODULI, (2048, 32), MODULI[2048, 32] - 4096)

    with pytest.raises(BackendError, match="prime"):
        check_backend(PARAMETERS)


def test_another_key_from_the_same_seed_is_refused(monkeypatch):
    from_seed = clients.secrets.ckks.SecretKey.from_seed
    monkeypatch.setattr(
        clients.secrets.self_check.SecretKey, "from_seed", lambda _, parameters: from_seed(os.urandom(64), parameters)
    )

    with pytest.raises(BackendError, match="different keys"):
        check_backend(PARAMETERS)


def test_larger_noise_is_refused(monkeypatch):
    encrypt = clients.secrets.ckks.Encryptor.encrypt

    def add_noise(self, packed):
        residues, seeds = encrypt(self, packed)
        # a constant on all residues is an error on the first coefficient
        return ((residues.astype(np.uint64) + 30) % PARAMETERS.modulus).astype(residues.dtype), seeds

    monkeypatch.setattr(clients.secrets.ckks.Encryptor, "encrypt", add_noise)

    with pytest.raises(BackendError, match="noise"):
        check_backend(PARAMETERS)


def test_a_sum_that_decrypts_to_something_else_is_refused(monkeypatch):
    encrypt = clients.secrets.ckks.Encryptor.encrypt
    monkeypatch.setattr(clients.secrets.ckks.Encryptor, "encrypt", lambda self, packed: encrypt(self, packed + 1))

    with pytest.raises(BackendError, match="something else"):
        check_backend(PARAMETERS)


def test_second_polynomials_that_are_not_those_of_the_encryption_are_refused(monkeypatch):
    residues = ExpansionSum.residues
    monkeypatch.setattr(ExpansionSum, "residues", lambda self: residues(self)[::-1])

    with pytest.raises(BackendError, match="noise"):
        check_backend(PARAMETERS)


@pytest.mark.parametrize("name", ["decrypt", "decrypt_expanded"])
def test_a_wrong_result_of_either_form_alone_is_refused(monkeypatch, name):
    decrypt = getattr(clients.secrets.ckks.Decryptor, name)
    monkeypatch.setattr(clients.secrets.ckks.Decryptor, name, lambda *sums, **sites: decrypt(*sums, **sites) + 1)

    with pytest.raises(BackendError, match="something else"):
        check_backend(PARAMETERS)
