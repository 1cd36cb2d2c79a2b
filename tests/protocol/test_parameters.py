from __future__ import annotations

import numpy as np
import pytest
from consortium import BITS_OF_MODULUS, Consortium
from hypothesis import given
from hypothesis import strategies as st

from protocol import parameters as module
from protocol.errors import ParameterError
from protocol.packing import quantise
from protocol.parameters import (
    MAX_SITES,
    MAX_VALUES,
    MIN_SITES,
    MODULI,
    MODULUS_CEILING_BITS,
    NOISE_BOUND,
    CkksParameters,
    advise,
)
from protocol.residues import pack_residues

SITE_COUNTS = range(MIN_SITES, MAX_SITES + 1)


def parameter_sets(sites):
    return [CkksParameters(ring_degree=degree, modulus_bits=bits, sites=sites) for degree, bits in MODULI]


EVERY_SET = [choice for sites in SITE_COUNTS for choice in parameter_sets(sites)]


def is_prime(number):
    """Miller-Rabin; exact below 3.3e24 with these bases."""
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41):
        power = pow(base, odd, number)
        if power in (1, number - 1):
            continue
        if all((power := power * power % number) != number - 1 for _ in range(twos - 1)):
            return False
    return True


@pytest.mark.parametrize(("degree", "bits"), MODULI)
def test_each_modulus_is_the_largest_prime_of_its_length_that_is_1_mod_2n(degree, bits):
    # 2N divides 2^bits, so the candidates below 2^bits are 2^bits - 2N + 1, less 2N each time
    candidate = (1 << bits) - 2 * degree + 1
    while not is_prime(candidate):
        candidate -= 2 * degree

    assert MODULI[degree, bits] == candidate


@pytest.mark.parametrize("degree", [2048, 4096])
@pytest.mark.parametrize(
    ("modulus_bits", "sites", "value_bits"),
    [
        (32, 4, 23),
        (32, 16, 21),
        (32, 128, 18),
        (40, 4, 31),
        (40, 16, 29),
        (40, 128, 26),
        (24, 4, 15),
        (24, 16, 13),
        (24, 128, 10),
    ],
)
def test_exact_bits_are_those_of_the_design(degree, modulus_bits, sites, value_bits):
    parameters = CkksParameters(ring_degree=degree, modulus_bits=modulus_bits, sites=sites)

    assert parameters.value_bits == value_bits


@pytest.mark.parametrize(("value_bits", "expected"), [(13, 3.02), (21, 4.02), (29, 5.02)])
def test_bytes_per_value_of_a_large_model_are_those_of_the_design(value_bits, expected):
    assert advise(sites=16, value_bits=value_bits, values=4096 * 256).up_bytes_per_value == pytest.approx(
        expected, abs=5e-3
    )


def test_the_largest_noise_of_a_sum_never_reaches_half_a_step():
    for parameters in EVERY_SET:
        assert 2 * NOISE_BOUND * parameters.sites < parameters.scale


def test_the_guard_is_not_a_bit_wider_than_the_bound_needs():
    for parameters in EVERY_SET:
        assert 1 << parameters.guard_bits >= 2 * NOISE_BOUND * parameters.sites + 2 > 1 << (parameters.guard_bits - 1)


def test_scaled_grid_integers_stay_where_seal_accepts_them_and_where_sums_do_not_wrap():
    for parameters in EVERY_SET:
        grid = 1 << parameters.guard_bits
        assert parameters.site_limit * grid <= (1 << (parameters.modulus_bits - 2)) - 1
        assert parameters.sum_limit * grid + NOISE_BOUND * parameters.sites < parameters.modulus / 2


def test_balanced_digits_of_any_cohort_stay_in_range():
    for parameters in EVERY_SET:
        largest_digit = 1 << (parameters.digit_bits - 1)
        assert largest_digit <= parameters.site_limit
        assert largest_digit * parameters.sites <= parameters.sum_limit


@given(
    choice=st.sampled_from(EVERY_SET),
    counts=st.lists(st.integers(1, 10**6), min_size=1, max_size=MAX_SITES),
    sign=st.sampled_from([-1.0, 1.0]),
    exponent=st.integers(-40, 20),
)
def test_a_weighted_sum_at_the_clip_range_does_not_wrap_for_any_cohort(choice, counts, sign, exponent):
    counts = counts[: choice.sites]
    step = 2.0**exponent
    beyond_the_clip = np.array([sign * 2 * choice.clip_steps * step])

    total = 0
    for count in counts:
        integers, _ = quantise(
            beyond_the_clip, step=step, clip_steps=choice.clip_steps, weight=count / sum(counts), name="layer"
        )
        assert abs(int(integers[0])) <= choice.site_limit
        total += int(integers[0])

    assert abs(total) <= choice.sum_limit


def test_the_clip_range_leaves_room_for_every_site_to_round_up():
    for parameters in EVERY_SET:
        assert parameters.clip_steps + 1 <= parameters.site_limit
        assert parameters.clip_steps + parameters.sites / 2 < parameters.sum_limit


@pytest.mark.parametrize("hidden", [(), (300,), (1000,)])
@pytest.mark.parametrize("modulus_bits", [24, 32, 40])
def test_predicted_bytes_are_those_of_a_real_update(modulus_bits, hidden):
    consortium = Consortium(value_bits=BITS_OF_MODULUS[modulus_bits], hidden=hidden)
    parameters, terms = consortium.agreement.parameters, consortium.terms()
    advice = advise(sites=4, value_bits=BITS_OF_MODULUS[modulus_bits], values=terms.plan.values)
    update = consortium.update(terms, 0)

    assert advice.parameters == parameters
    assert parameters.modulus_bits == modulus_bits
    assert advice.up_bytes == len(pack_residues(update.residues, parameters.residue_bytes)) + len(update.proof.seeds)


@given(sites=st.integers(MIN_SITES, MAX_SITES), value_bits=st.integers(8, 26), values=st.integers(1, 100_000))
def test_no_other_set_with_enough_bits_moves_fewer_bytes(sites, value_bits, values):
    advice = advise(sites=sites, value_bits=value_bits, values=values)

    assert advice.parameters.value_bits >= value_bits
    assert advice.up_bytes == advice.parameters.update_bytes(values)
    assert advice.up_bytes == min(
        other.update_bytes(values) for other in parameter_sets(sites) if other.value_bits >= value_bits
    )


def test_advice_says_what_it_promises():
    advice = advise(sites=16, value_bits=21, values=1_000_000)

    assert advice.parameters == CkksParameters(ring_degree=4096, modulus_bits=32, sites=16)
    assert advice.max_error_steps == 0
    assert advice.noise_margin == pytest.approx(1024 / 2 / (21 * 16))
    assert advice.security_margin_bits == 106 - 32


@pytest.mark.parametrize(
    ("request_", "limit"),
    [
        ({"sites": 1}, r"sites: 1 is outside 2\.\.128"),
        ({"sites": 129}, r"sites: 129 is outside 2\.\.128"),
        ({"values": 0}, r"values: 0 is outside 1\.\."),
        ({"values": MAX_VALUES + 1}, rf"values: {MAX_VALUES + 1} is outside"),
        ({"security_bits": 192}, r"security: no ceilings are carried for 192 bits, only for 128"),
        ({"value_bits": 27, "sites": 128}, r"precision: 27 exact bits for 128 sites .* widest modulus gives 26"),
    ],
)
def test_the_advisor_names_the_limit_that_broke(request_, limit):
    with pytest.raises(ParameterError, match=limit):
        advise(**({"sites": 16, "value_bits": 21, "values": 1000} | request_))


@pytest.mark.parametrize(
    ("choice", "limit"),
    [
        ({"modulus_bits": 56}, r"no modulus for N=4096 with 56 bits; there are N=2048 with 24 bits"),
        ({"ring_degree": 1024}, r"no modulus for N=1024 with 32 bits"),
        ({"security_bits": 256}, r"security: .* no ceiling for N=4096 at 256 bits"),
        ({"sites": 1}, r"sites: 1 is outside"),
        ({"sites": 129}, r"sites: 129 is outside"),
    ],
)
def test_parameters_name_the_limit_that_broke(choice, limit):
    with pytest.raises(ParameterError, match=limit):
        CkksParameters(**({"ring_degree": 4096, "modulus_bits": 32, "sites": 16} | choice))


def test_a_modulus_above_the_security_ceiling_is_refused(monkeypatch):
    monkeypatch.setitem(MODULUS_CEILING_BITS[128], 2048, 31)

    with pytest.raises(ParameterError, match=r"security: log2 q = 32 is above 31, the ceiling for N=2048 at 128 bits"):
        CkksParameters(ring_degree=2048, modulus_bits=32, sites=4)
    assert advise(sites=4, value_bits=21, values=10).parameters.ring_degree == 4096


def test_a_modulus_with_too_few_exact_bits_left_is_refused(monkeypatch):
    monkeypatch.setattr(module, "MIN_VALUE_BITS", 11)

    with pytest.raises(ParameterError, match=r"precision: 128 sites leave 10 exact bits of a 24-bit modulus"):
        CkksParameters(ring_degree=2048, modulus_bits=24, sites=128)
    assert advise(sites=128, value_bits=10, values=10).parameters.modulus_bits == 32
