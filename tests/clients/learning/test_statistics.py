from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from clients.learning.statistics import STANDARD_RANGE, Standardisation, standardisation, statistics_sums
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
    sums = [statistics_sums(table, TERMS, smallest_cell=1) for table in tables]
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
    content = statistics_sums(np.array([[1e300, 0.01]] * 10), TERMS, smallest_cell=1)

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
    common = standardisation(statistics_sums(np.full((patients, 2), [value, 0.01]), TERMS, smallest_cell=1), TERMS)

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
        standardisation(statistics_sums(np.empty((0, 2)), TERMS, smallest_cell=1), TERMS)


MIXED = DataTerms(
    name="ward",
    columns=(
        ColumnTerms(name="age", centre=50, scale=20),
        ColumnTerms(name="pain", kind="category", categories=("none", "some", "much")),
    ),
)
cell = st.tuples(
    st.one_of(st.just(math.nan), st.floats(0, 120)),
    st.sampled_from([(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (math.nan,) * 3]),
)


@given(rows=st.lists(cell, min_size=1, max_size=40), smallest=st.integers(1, 8))
@settings(max_examples=300)
def test_no_site_sends_a_count_of_few_patients(rows, smallest):
    assume(len(rows) >= smallest)
    features = np.array([(age, *pain) for age, pain in rows])

    content = statistics_sums(features, MIXED, smallest_cell=smallest)

    ones, rest = np.divmod(content["sums"][1:], 2**20)
    present = content["present"]
    for counts in (present, len(rows) - present, ones, present[1:] - ones):
        assert not ((counts > 0) & (counts < smallest)).any()
    assert not rest.any()
    assert content["squares"][1:].tolist() == content["sums"][1:].tolist()
    assert content["records"] == len(rows)


def pains(*, none, much, missing=0):
    """Return patients by their pain; ages are all the same."""
    kinds = [(1.0, 0.0, 0.0)] * none + [(0.0, 0.0, 1.0)] * much + [(math.nan,) * 3] * missing
    return np.array([(50.0, *kind) for kind in kinds])


@pytest.mark.parametrize(
    ("patients", "present", "ones"),
    [
        (pains(none=20, much=10), 30, (20, 0, 10)),
        (pains(none=26, much=4), 30, (30, 0, 0)),
        (pains(none=4, much=26), 30, (0, 0, 30)),
        (pains(none=20, much=10, missing=4), 34, (24, 0, 10)),
        (pains(none=20, much=10, missing=5), 30, (20, 0, 10)),
        (pains(none=2, much=2, missing=26), 0, (0, 0, 0)),
    ],
)
def test_few_patients_count_with_the_others(patients, present, ones):
    content = statistics_sums(patients, MIXED, smallest_cell=5)

    assert content["present"][1:].tolist() == [present] * 3
    assert (content["sums"][1:] >> 20).tolist() == list(ones)


def test_who_lacks_a_number_counts_with_the_mean_of_the_site():
    features = np.array([[50.0, 0.01], [70.0, 0.01], [60.0, 0.01], [math.nan, 0.01]])

    exact, content = (statistics_sums(features, TERMS, smallest_cell=smallest) for smallest in (1, 2))

    assert (exact["present"][0], content["present"][0]) == (3, 4)
    assert content["sums"][0] == exact["sums"][0] * 4 / 3
    assert standardisation(content, replace(TERMS, smallest_count=1)).mean[0] == 60


def test_a_cell_of_one_leaves_nothing_out(tables):
    content = statistics_sums(tables[0], TERMS, smallest_cell=1)

    assert content["present"].tolist() == [9, 8]


def test_repr_shows_no_statistic():
    shown = repr(Standardisation(mean=np.array([61.5]), deviation=np.array([7.25]), records=3))

    assert shown == "Standardisation(records=3)"
