from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.statistics import STANDARD_RANGE, Standardisation, standardisation, statistics_sums
from protocol.data_terms import ColumnTerms, DataTerms
from protocol.errors import ValueRefusedError
from protocol.packing import RoundKind, packing_plan
from protocol.parameters import advise
from protocol.terms import Terms

TERMS = DataTerms(
    name="ward",
    columns=(ColumnTerms(name="age", centre=50, scale=20), ColumnTerms(name="dose", centre=0.01, scale=0.004)),
)


def summed(tables):
    sums = [statistics_sums(table, TERMS) for table in tables]
    return {name: sum(part[name] for part in sums) for name in sums[0]}


@pytest.fixture(scope="module")
def tables():
    rng = np.random.default_rng(4)
    tables = [rng.normal(loc=[60, 0.012], scale=[11, 0.003], size=(size, 2)) for size in (9, 40, 71)]
    tables[0][3, 1] = tables[2][5, 0] = math.nan
    return tables


def test_the_sum_gives_mean_and_deviation_of_all_patients(tables):
    pooled = np.concatenate(tables)

    common = standardisation(summed(tables), TERMS)

    assert common.records == 120
    np.testing.assert_allclose(common.mean, np.nanmean(pooled, axis=0), rtol=1e-5)
    np.testing.assert_allclose(common.deviation, np.nanstd(pooled, axis=0), rtol=1e-4)


def test_the_fields_fit_the_plan_and_count_missing_cells(tables):
    plan = packing_plan(RoundKind.STATISTICS, Terms(data=TERMS), advise(sites=3, value_bits=21, values=100).parameters)
    content = summed(tables)

    unpacked = plan.unpack(plan.pack(content))

    assert content["present"].tolist() == [119, 119]
    assert {name: field.tolist() for name, field in unpacked.items()} == {
        name: field.tolist() for name, field in content.items()
    }


def test_standardised_features_are_centred_and_missing_ones_are_the_mean(tables):
    pooled = np.concatenate(tables)
    standard = standardisation(summed(tables), TERMS).apply(pooled)

    assert standard.dtype == np.float32
    assert standard[3, 1] == 0
    np.testing.assert_allclose(standard.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(standard.std(axis=0), 1, atol=0.01)


def test_a_cell_in_a_wrong_unit_is_clipped_in_sums_and_features():
    content = statistics_sums(np.array([[1e300, 0.01]] * 10), TERMS)

    assert content["sums"][0] == 10 * STANDARD_RANGE * 2**20
    assert content["squares"][0] == 10 * STANDARD_RANGE**2 * 2**20
    assert standardisation(content, TERMS).apply(np.array([[-1e300, 0.01]]))[0, 0] == -STANDARD_RANGE


def ages(present, *, absent=0):
    """Return patients whose dose is known, and the age of the first ones only."""
    table = np.full((present + absent, 2), [61.0, 0.01])
    table[::2, 1] = 0.02
    table[present:, 0] = math.nan
    return table


def test_a_feature_nobody_measured_is_0_for_everybody():
    common = standardisation(summed([ages(0, absent=8), ages(0, absent=5)]), TERMS)

    assert (common.mean[0], common.deviation[0]) == (50, math.inf)
    np.testing.assert_array_equal(common.apply(ages(3, absent=2))[:, 0], 0)
    assert np.isfinite(common.apply(ages(3, absent=2))).all()


def test_a_site_that_measured_a_feature_makes_up_for_one_that_did_not():
    common = standardisation(summed([ages(0, absent=8), ages(10)]), TERMS)

    assert common.mean[0] == pytest.approx(61, abs=1e-4)


@pytest.mark.parametrize(("present", "is_used"), [(9, False), (10, True)])
def test_a_feature_that_too_few_patients_have_says_nothing_about_them(present, is_used):
    common = standardisation(summed([ages(present - 2, absent=20), ages(2, absent=7)]), TERMS)

    assert math.isfinite(common.deviation[0]) == is_used
    assert (common.mean[0] == 50) != is_used
    assert math.isfinite(common.deviation[1])


@pytest.mark.parametrize("smallest_count", [1, 30, 120])
def test_the_agreement_says_how_few_are_too_few(tables, smallest_count):
    terms = replace(TERMS, smallest_count=smallest_count)

    assert standardisation(summed(tables), terms).records == 120


def test_fewer_patients_than_the_smallest_count_are_refused(tables):
    with pytest.raises(ValueRefusedError, match=r"fewer than data\.smallest_count = 121 training patients"):
        standardisation(summed(tables), replace(TERMS, smallest_count=121))


@given(value=st.floats(-200, 300), patients=st.integers(10, 50))
@settings(max_examples=50)
def test_the_deviation_of_a_constant_feature_is_its_public_scale_and_not_rounding(value, patients):
    common = standardisation(statistics_sums(np.full((patients, 2), [value, 0.01]), TERMS), TERMS)

    assert common.deviation.tolist() == [20, 0.004]
    assert common.mean[0] == pytest.approx(value, abs=20 * 2.0**-20)


def test_the_order_of_patients_and_sites_changes_no_bit(tables):
    pooled = np.concatenate(tables)
    together = standardisation(summed([pooled[::-1]]), TERMS)
    apart = standardisation(summed(tables), TERMS)

    assert together.mean.tobytes() == apart.mean.tobytes()
    assert together.deviation.tobytes() == apart.deviation.tobytes()


def test_a_sum_without_patients_is_refused():
    with pytest.raises(ValueRefusedError, match="records"):
        standardisation(statistics_sums(np.empty((0, 2)), TERMS), TERMS)


def test_repr_shows_no_statistic():
    shown = repr(Standardisation(mean=np.array([61.5]), deviation=np.array([7.25]), records=3))

    assert shown == "Standardisation(records=3)"
