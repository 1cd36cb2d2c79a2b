"""SEAL at every level: what is put in comes out again, exactly."""

from __future__ import annotations

import numpy as np
import pytest
from published import client

from protocol.embedding import canonical_embedding
from protocol.prediction.backend import prediction_backend
from protocol.prediction.messages import PublicKey
from protocol.prediction.parameters import PARAMETER_SETS

each_set = pytest.mark.parametrize("parameters", PARAMETER_SETS, ids=lambda parameters: parameters.name)


@each_set
def test_scalars_are_encoded_exactly_up_to_the_largest_scale(parameters):
    backend, primes = prediction_backend(parameters), len(parameters.sum_primes)

    for value in (1.0, -7.0, 2.0**53 - 1, parameters.sum_unit):
        residues = backend.residues(backend.encode_scalar(value, primes), primes)
        assert all((row == int(value) % prime).all() for row, prime in zip(residues, parameters.primes, strict=False))


@each_set
def test_ciphertexts_are_rebuilt_at_every_level_and_size(parameters):
    backend, key = prediction_backend(parameters), PublicKey.from_bytes(client(parameters).public_key, parameters)
    for primes in range(1, len(parameters.primes) + 1):
        (zero,) = backend.encryptions_of_zero(key, count=1, primes=primes)
        three = np.concatenate([zero, zero[:1]])
        for polynomials in (zero, three):
            loaded = backend.load(polynomials)
            assert np.array_equal(backend.save(loaded, polynomials=len(polynomials), primes=primes), polynomials)


@each_set
def test_a_public_key_is_rebuilt(parameters):
    data = client(parameters).public_key
    backend, key = prediction_backend(parameters), PublicKey.from_bytes(data, parameters)

    loaded = backend.load_public_key(key)

    saved = backend.save(loaded, polynomials=2, primes=len(parameters.key_primes))
    assert np.array_equal(saved[0], key.polynomials[0, 0])
    assert all(len(np.unique(row)) > parameters.ring_degree / 3 for row in saved[1])


@each_set
def test_coefficients_are_encoded_where_they_stand(parameters):
    backend, primes = prediction_backend(parameters), len(parameters.primes)
    coefficients = np.random.default_rng(3).integers(-(2**40), 2**40, size=parameters.ring_degree)

    residues = backend.residues(backend.encode(coefficients.astype(np.float64), primes), primes)

    slots = canonical_embedding(parameters.ring_degree).slots(coefficients[np.newaxis])[0]
    assert np.array_equal(residues, backend.residues(backend.encode_slots(slots, primes), primes))
    one = np.zeros(parameters.ring_degree)
    one[0] = 1.0
    assert (backend.residues(backend.encode(one, primes), primes) == 1).all()
