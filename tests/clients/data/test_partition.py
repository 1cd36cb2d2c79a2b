from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.data.partition import MIN_SITE_RECORDS, partition
from protocol.errors import ConfigurationError

LABELS = np.repeat(np.array([1, 0], dtype=np.int8), [212, 357])  # as many of each as in the breast cancer data


@given(sites=st.integers(2, 10), kind=st.sampled_from(["iid", "dirichlet"]), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_each_row_goes_to_exactly_one_site_and_every_site_gets_enough(sites, kind, seed):
    labels = (np.arange(400) % 3 == 0).astype(np.int8)
    dealt = partition(labels, sites=sites, kind=kind, alpha=1.0, seed=seed)

    assert len(dealt) == sites
    assert min(len(rows) for rows in dealt) >= MIN_SITE_RECORDS
    assert all((np.diff(rows) > 0).all() for rows in dealt)
    assert sorted(np.concatenate(dealt).tolist()) == list(range(400))


def test_iid_sites_are_of_equal_size():
    sizes = [len(rows) for rows in partition(LABELS, sites=5, kind="iid", alpha=1.0, seed=3)]

    assert max(sizes) - min(sizes) <= 1


def test_a_small_alpha_makes_sites_differ_more():
    def spread(alpha):
        dealt = [
            rows for seed in range(5) for rows in partition(LABELS, sites=4, kind="dirichlet", alpha=alpha, seed=seed)
        ]
        return np.std([LABELS[rows].mean() for rows in dealt])

    assert spread(0.2) > 3 * spread(100.0)


def test_a_deal_repeats_under_its_seed_and_changes_with_it():
    first, again, other = (partition(LABELS, sites=3, kind="dirichlet", alpha=0.5, seed=seed) for seed in (7, 7, 8))

    assert all(np.array_equal(left, right) for left, right in zip(first, again, strict=True))
    assert [len(rows) for rows in first] != [len(rows) for rows in other]


@pytest.mark.parametrize("kind", ["iid", "dirichlet"])
def test_more_sites_than_the_rows_allow_are_refused(kind):
    with pytest.raises(ConfigurationError, match=r"federation\.sites = 100"):
        partition(LABELS, sites=100, kind=kind, alpha=0.5, seed=1)
