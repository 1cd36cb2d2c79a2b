"""Parameters of predictions: security, what fits, and what they promise."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from protocol.errors import ConfigurationError, MalformedError, ParameterError
from protocol.parameters import MODULUS_CEILING_BITS
from protocol.prediction.parameters import (
    LINEAR,
    PARAMETER_SETS,
    QUADRATIC,
    STATISTICAL_BITS,
    parameters_named,
    parameters_numbered,
)

each_set = pytest.mark.parametrize("parameters", PARAMETER_SETS, ids=lambda parameters: parameters.name)


@each_set
def test_the_whole_modulus_of_keys_is_below_the_security_ceiling(parameters):
    bits = math.log2(math.prod(parameters.key_primes))

    assert bits <= MODULUS_CEILING_BITS[128][parameters.ring_degree]


@each_set
def test_primes_are_as_the_ring_needs_them(parameters):
    assert len(set(parameters.key_primes)) == len(parameters.key_primes)
    assert all(prime % (2 * parameters.ring_degree) == 1 for prime in parameters.key_primes)


@each_set
def test_flooding_hides_noise_by_the_stated_bits_and_stays_below_the_tolerance(parameters):
    distance = parameters.ring_degree * parameters.noise_bound / 2.0**parameters.flood_bits
    assert distance <= 2.0**-STATISTICAL_BITS

    # on slots the uniform coefficients add up like a random walk
    spread = 2.0 ** (parameters.flood_bits - 1) / parameters.sum_unit
    reach = spread if parameters.is_linear else 6 * spread * math.sqrt(parameters.ring_degree / 3)
    assert reach <= parameters.tolerance / 2


@each_set
def test_names_and_numbers_find_their_parameters(parameters):
    assert parameters_named(parameters.name) is parameters
    assert parameters_numbered(parameters.number) is parameters


def test_unknown_names_and_numbers_are_refused():
    with pytest.raises(ConfigurationError, match="linear-4096, quadratic-8192"):
        parameters_named("linear-2048")
    with pytest.raises(MalformedError):
        parameters_numbered(0)


def test_a_modulus_above_the_ceiling_is_refused():
    with pytest.raises(ParameterError, match="above the ceiling for N=4096"):
        replace(LINEAR, special_prime=2**19 - 1)


def test_a_query_is_charged_for_all_patients_that_it_can_hold_unseen():
    assert LINEAR.charged(3) == 3  # the rest of its answer is blinded
    assert QUADRATIC.charged(3) == 4096
