from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import conf
from clients.partition import MIN_SITE_RECORDS, load_public_table, partition
from clients.table import Table
from protocol.errors import ConfigurationError
from protocol.terms import FeatureTerms

DATA = conf.compose([]).data


@pytest.fixture(scope="module")
def table():
    return load_public_table(DATA)


def test_the_public_table_has_its_known_patients(table):
    assert table.features.shape == (569, 30)
    assert int(table.labels.sum()) == 212


def test_columns_are_matched_by_name(table):
    swapped = load_public_table(replace(DATA, features=(DATA.features[3], DATA.features[0])))

    np.testing.assert_array_equal(swapped.features, table.features[:, [3, 0]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "moles"}, "data.name = 'moles' is not one of breast_cancer"),
        ({"features": (FeatureTerms(name="shoe size"),)}, "no column 'shoe size'"),
        ({"label": "benign"}, "'malignant', not 'benign'"),
    ],
)
def test_unknown_data_columns_and_labels_are_refused_by_name(change, message):
    with pytest.raises(ConfigurationError, match=message):
        load_public_table(replace(DATA, **change))


@given(sites=st.integers(2, 10), kind=st.sampled_from(["iid", "dirichlet"]), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_each_row_goes_to_exactly_one_site_and_every_site_gets_enough(sites, kind, seed):
    rows = np.arange(400.0).reshape(-1, 1)
    dealt = partition(
        Table(features=rows, labels=(rows[:, 0] % 3 == 0).astype(np.int8)), sites=sites, kind=kind, alpha=1.0, seed=seed
    )

    assert len(dealt) == sites
    assert min(site.records for site in dealt) >= MIN_SITE_RECORDS
    assert sorted(np.concatenate([site.features[:, 0] for site in dealt])) == rows[:, 0].tolist()


def test_iid_sites_are_of_equal_size(table):
    sizes = [site.records for site in partition(table, sites=5, kind="iid", alpha=1.0, seed=3)]

    assert max(sizes) - min(sizes) <= 1


def test_a_small_alpha_makes_sites_differ_more(table):
    def spread(alpha):
        dealt = [
            site for seed in range(5) for site in partition(table, sites=4, kind="dirichlet", alpha=alpha, seed=seed)
        ]
        return np.std([site.labels.mean() for site in dealt])

    assert spread(0.2) > 3 * spread(100.0)


def test_a_deal_repeats_under_its_seed_and_changes_with_it(table):
    first, again, other = (partition(table, sites=3, kind="dirichlet", alpha=0.5, seed=seed) for seed in (7, 7, 8))

    assert all(np.array_equal(left.features, right.features) for left, right in zip(first, again, strict=True))
    assert [site.records for site in first] != [site.records for site in other]


@pytest.mark.parametrize("kind", ["iid", "dirichlet"])
def test_more_sites_than_the_rows_allow_are_refused(table, kind):
    with pytest.raises(ConfigurationError, match=r"federation\.sites = 100"):
        partition(table, sites=100, kind=kind, alpha=0.5, seed=1)


def test_an_unknown_kind_is_refused_by_name(table):
    with pytest.raises(ConfigurationError, match=r"federation\.partition = 'sorted'"):
        partition(table, sites=3, kind="sorted", alpha=0.5, seed=1)
