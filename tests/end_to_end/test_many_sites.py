"""Sums of large cohorts come expanded: other bytes, the same integers, the same models."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from coalition import stands_at

from protocol.terms import CryptoTerms
from protocol.update import EncryptedAggregate
from scripts.benchmarks.federation import BenchFederation
from scripts.simulation.twin import plaintext_models


@pytest.fixture
def found_with(founded_once, tmp_path):
    """Found the consortium of four whose sums are expanded above so many sites."""

    def make(largest_seeded_cohort):
        experiment = replace(founded_once.experiment, crypto=CryptoTerms(largest_seeded_cohort=largest_seeded_cohort))
        return type(founded_once).found(tmp_path / f"above-{largest_seeded_cohort}", experiment)

    return make


def is_seeded(federation, data):
    """Return whether a sum came with its sites' seeds."""
    proofs = EncryptedAggregate.from_bytes(data, federation.agreement).proofs
    assert len({proof.seeds == b"" for proof in proofs}) == 1
    return proofs[0].seeds != b""


def test_real_sites_over_flower_learn_the_same_model_in_both_forms(run, found_with):
    seeded, expanded = found_with(4), found_with(3)
    for federation in (seeded, expanded):
        run(federation)

    twins = plaintext_models(expanded.directory)
    for position in expanded.everyone:
        model = expanded.values(position)
        assert np.array_equal(model, twins[expanded.member(position).name])
        assert np.array_equal(model, seeded.values(position))


def test_one_run_goes_on_from_an_expanded_sum_to_a_seeded_one_and_back(found_with):
    federation, other = found_with(3), found_with(4)
    cohorts = [(0, 1, 2, 3), (0, 2, 3), (0, 1, 2, 3), (1, 2, 3)]
    for run in (federation, other):
        run.open()
        for cohort in cohorts:
            run.prepare_all()
            run.sum_up(cohort)
        for position in run.everyone:
            run.close(position)

    assert [is_seeded(federation, data) for data in federation.sums] == [False, True, False, True]
    assert [is_seeded(other, data) for data in other.sums] == [True] * 4
    assert len({stands_at(federation, position) for position in federation.everyone}) == 1
    assert all(
        np.array_equal(federation.values(0), run.values(site)) for run in (federation, other) for site in range(4)
    )


def test_a_site_that_was_away_replays_expanded_sums(found_with):
    federation = found_with(2)
    federation.open()
    for cohort in [(0, 1, 2, 3), (0, 1, 2), (0, 1, 2)]:
        for site in cohort:
            federation.prepare(site, len(federation.sums))
        federation.sum_up(cohort)

    federation.prepare(3, 3)

    federation.prepare(0, 3)
    assert stands_at(federation, 3) == stands_at(federation, 0)


@pytest.mark.parametrize(("value_bits", "modulus_bits"), [(18, 32), (21, 40)])
def test_a_hundred_and_twenty_eight_sites_add_up_exactly(value_bits, modulus_bits):
    federation = BenchFederation(values=300, sites=128, value_bits=value_bits)
    assert federation.plan.parameters.modulus_bits == modulus_bits
    assert not federation.terms.is_seeded
    limit = federation.plan.parameters.clip_steps // 128
    contributions = np.random.default_rng(1).integers(-limit, limit, (128, *federation.plan.shape), endpoint=True)

    updates = [federation.seal(packed, site) for site, packed in enumerate(contributions)]
    total = federation.add(updates).close().to_bytes()

    assert len(total) < 2 * federation.plan.shape[1] * modulus_bits // 8 + 128 * (160 + 32 + 16 + 64 + 64) + 16
    assert np.array_equal(federation.release(total), contributions.sum(axis=0))
