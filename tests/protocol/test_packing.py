from __future__ import annotations

import numpy as np
import pytest
from consortium import BITS_OF_MODULUS, Consortium
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from protocol.errors import ValueRefusedError
from protocol.packing import EXACT_BITS, METRIC_FIELDS, Field, PackingPlan, RoundKind, exact_field, quantise
from protocol.parameters import MODULI, CkksParameters

LARGEST_EXACT = (1 << (EXACT_BITS - 1)) - 1
PARAMETERS = [
    CkksParameters(ring_degree=2048, modulus_bits=bits, sites=sites) for bits in (24, 32, 40) for sites in (2, 16, 128)
]


def plan(parameters, *, grid=5, exact=3):
    fields = (Field(name="grid", size=grid), exact_field("exact", exact, parameters))
    return PackingPlan(kind=RoundKind.TRAIN, parameters=parameters, fields=fields)


@st.composite
def contents(draw, parameters):
    return {
        "grid": draw(arrays(np.int64, 5, elements=st.integers(-parameters.site_limit, parameters.site_limit))),
        "exact": draw(arrays(np.int64, 3, elements=st.integers(-LARGEST_EXACT, LARGEST_EXACT))),
    }


@pytest.mark.parametrize("parameters", PARAMETERS, ids=lambda p: f"{p.modulus_bits}bits-{p.sites}sites")
@settings(max_examples=25)
@given(drawn=st.data())
def test_unpack_inverts_pack(parameters, drawn):
    content = drawn.draw(contents(parameters))

    unpacked = plan(parameters).unpack(plan(parameters).pack(content))

    for name, integers in content.items():
        assert unpacked[name].tolist() == integers.tolist()


@pytest.mark.parametrize("parameters", PARAMETERS, ids=lambda p: f"{p.modulus_bits}bits-{p.sites}sites")
@settings(max_examples=10)
@given(drawn=st.data())
def test_a_sum_of_packed_vectors_unpacks_to_the_sum_of_the_integers(parameters, drawn):
    kinds = drawn.draw(st.lists(contents(parameters), min_size=1, max_size=4))
    sites = drawn.draw(st.integers(1, parameters.sites))
    cohort = [kinds[site % len(kinds)] for site in range(sites)]

    total = sum(plan(parameters).pack(content) for content in cohort)

    assert plan(parameters).unpack(total)["exact"].tolist() == [
        sum(int(content["exact"][place]) for content in cohort) for place in range(3)
    ]
    assert plan(parameters).unpack(total)["grid"].tolist() == sum(content["grid"] for content in cohort).tolist()


@pytest.mark.parametrize("parameters", PARAMETERS, ids=lambda p: f"{p.modulus_bits}bits-{p.sites}sites")
@pytest.mark.parametrize("extreme", [LARGEST_EXACT, -LARGEST_EXACT])
def test_the_largest_exact_integers_of_the_largest_cohort_sum_without_wrapping(parameters, extreme):
    content = {"grid": np.zeros(5, np.int64), "exact": np.full(3, extreme)}
    packed = plan(parameters).pack(content)

    total = packed * parameters.sites

    assert plan(parameters).unpack(total)["exact"].tolist() == [extreme * parameters.sites] * 3
    assert np.abs(packed).max() <= parameters.site_limit
    assert np.abs(total).max() <= parameters.sum_limit


@given(value=st.integers(-LARGEST_EXACT, LARGEST_EXACT), choice=st.sampled_from(PARAMETERS))
def test_digits_are_so_small_that_a_whole_cohort_of_them_fits_a_coefficient(value, choice):
    content = {"grid": np.zeros(5, np.int64), "exact": np.full(3, value)}

    assert np.abs(plan(choice).pack(content)).max() * choice.sites <= choice.sum_limit


def test_unused_coefficients_are_zero():
    packing = plan(PARAMETERS[0])
    packed = packing.pack({"grid": np.ones(5, np.int64), "exact": np.ones(3, np.int64)})

    assert packed.shape == packing.shape == (1, 2048)
    assert packed.dtype == np.int64
    assert not packed.reshape(-1)[packing.values :].any()


def test_a_vector_longer_than_a_row_goes_on_in_the_next():
    packing = plan(PARAMETERS[0], grid=2048 + 7)
    grid = np.arange(2048 + 7)

    packed = packing.pack({"grid": grid, "exact": np.zeros(3, np.int64)})

    assert packed.shape == (2, 2048)
    assert packed[1, :7].tolist() == list(range(2048, 2048 + 7))
    assert packing.unpack(packed)["grid"].tolist() == grid.tolist()


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"grid": None}, "field grid: expected 5 integers"),
        ({"grid": np.zeros(4, np.int64)}, "field grid: expected 5 integers"),
        ({"exact": np.zeros((3, 1), np.int64)}, "field exact: expected 3 integers"),
        ({"grid": np.full(5, PARAMETERS[0].site_limit + 1)}, "field grid: an integer exceeds the grid"),
        ({"grid": np.full(5, -PARAMETERS[0].site_limit - 1)}, "field grid: an integer exceeds the grid"),
        ({"grid": np.full(5, np.iinfo(np.int64).min)}, "field grid: an integer exceeds the grid"),
        ({"exact": np.full(3, LARGEST_EXACT + 1)}, "field exact: an integer exceeds 54 bits"),
        ({"exact": np.full(3, -LARGEST_EXACT - 1)}, "field exact: an integer exceeds 54 bits"),
        ({"exact": np.full(3, np.iinfo(np.int64).min)}, "field exact: an integer exceeds 54 bits"),
    ],
)
def test_what_does_not_fit_a_field_is_refused_by_its_name(changes, refusal):
    content = {"grid": np.zeros(5, np.int64), "exact": np.zeros(3, np.int64)} | changes
    content = {name: integers for name, integers in content.items() if integers is not None}

    with pytest.raises(ValueRefusedError, match=f"^{refusal}$"):
        plan(PARAMETERS[0]).pack(content)


@pytest.mark.parametrize("modulus_bits", [24, 32, 40])
def test_the_plans_of_an_agreement_hold_the_fields_of_each_round(modulus_bits):
    agreement = Consortium(value_bits=BITS_OF_MODULUS[modulus_bits], hidden=(3,)).agreement
    sizes = {kind: {field.name: field.size for field in agreement.plan(kind).fields} for kind in RoundKind}

    assert sizes[RoundKind.STATISTICS] == {"records": 1, "present": 1, "sums": 1, "squares": 1}
    assert sizes[RoundKind.EVALUATE] == METRIC_FIELDS
    assert max(METRIC_FIELDS.values()) <= 16  # the finer a histogram, the fewer patients in a cell
    assert (
        sizes[RoundKind.TRAIN]
        == {
            "hidden.0.weight": 3,
            "hidden.0.bias": 3,
            "output.weight": 3,
            "output.bias": 1,
            "weight": 1,
            "clipped": 1,
        }
        | METRIC_FIELDS
    )


@given(
    values=arrays(np.float64, st.integers(0, 20), elements=st.floats(-1e6, 1e6)),
    weight=st.floats(0, 1),
    exponent=st.integers(-12, 8),
)
def test_quantised_values_are_within_half_a_step(values, weight, exponent):
    step = 2.0**exponent
    clip_steps = 1 << 21

    integers, clipped = quantise(values, step=step, clip_steps=clip_steps, weight=weight, name="layer")

    wanted = np.clip(values / step, -clip_steps, clip_steps) * weight
    assert np.abs(integers - wanted).max(initial=0) <= 0.5
    assert np.abs(integers).max(initial=0) <= weight * clip_steps + 0.5
    assert clipped == sum(abs(value / step) > clip_steps for value in values.tolist())


def test_values_beyond_the_clip_range_are_clipped_and_counted():
    values = np.array([[10.0, -10.0, 8.0], [-8.0, 8.5, 0.25]])

    integers, clipped = quantise(values, step=0.5, clip_steps=16, weight=0.5, name="layer")

    assert integers.tolist() == [[8, -8, 8], [-8, 8, 0]]
    assert clipped == 3


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_nan_and_infinity_are_refused_by_the_tensors_name(bad, weight):
    with pytest.raises(ValueRefusedError, match=r"^tensor output\.weight: NaN or infinite value$"):
        quantise(np.array([1.0, bad]), step=0.5, clip_steps=16, weight=weight, name="output.weight")


def test_quantising_leaves_the_values_as_they_were():
    values = np.array([100.0, 1.0])
    quantise(values, step=0.5, clip_steps=16, weight=1.0, name="layer")

    assert values.tolist() == [100.0, 1.0]


def test_every_set_of_moduli_is_covered_here():
    assert {bits for _, bits in MODULI} == {parameters.modulus_bits for parameters in PARAMETERS}
