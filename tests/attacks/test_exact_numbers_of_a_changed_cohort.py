"""Numbers that say the same in every sum give one site's own away as soon as two sums are over different cohorts.

Who: the provider, and a site that reads the sums for it. Want: the exact number of the victim's patients, and how its
scores are distributed. How: it sums the statistics over two cohorts; or, later, leaves the victim out of one round,
when the model hardly moves any more. Answer: one statistics sum, because a state is good for one upload
(`RunFiles.uploaded`); and a round whose cohort is not that of the statistics goes without counts and metrics
(`PackingPlan.model_only`).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from coalition import Insider, call_parts, collect, journal, refusal, truth
from forgery import patients

from clients.run.files import RunFiles
from clients.run.upload_journal import UploadJournal
from protocol.envelope import Request
from protocol.packing import METRIC_FIELDS, PackingPlan, RoundKind
from protocol.terms import ModelTerms

INSIDER, VICTIM = 0, 3
EVERYONE, ALL_BUT_THE_VICTIM = (0, 1, 2, 3), (0, 1, 2)


@pytest.fixture
def converged(found, founded_once):
    """A run of a model that no longer moves, because its learning rate is next to nothing."""
    experiment = founded_once.experiment
    federation = found(
        replace(
            experiment,
            model=ModelTerms(kind="mlp", hidden=(8,)),
            strategy=replace(experiment.strategy, learning_rate=1e-9),
        )
    )
    federation.open()
    return federation


def sums_of_two_cohorts(federation):
    """Sum statistics and one round over everybody, and the next without the victim; return the two training sums."""
    federation.prepare_all()
    federation.sum_up()
    federation.prepare_all()
    own = truth(federation, VICTIM)
    with_victim = federation.sum_up()
    federation.prepare_all()
    without = federation.sum_up(ALL_BUT_THE_VICTIM)
    return own, with_victim, without


def unpacked(federation, packed):
    return federation.agreement.plan(RoundKind.TRAIN).unpack(packed)


def test_metrics_of_a_changed_cohort_give_the_victim_s_counts_and_histograms(converged, monkeypatch):
    monkeypatch.setattr(PackingPlan, "model_only", lambda self, packed: packed)
    own, with_victim, without = sums_of_two_cohorts(converged)
    insider = Insider(converged, INSIDER)

    stolen = unpacked(converged, insider.read_sum(with_victim) - insider.read_sum(without))

    secret = unpacked(converged, own)
    assert (int(stolen["training_records"][0]), int(stolen["records"][0])) == patients(converged, VICTIM)
    for name in ("positive_scores", "negative_scores", "confusion", "weight"):
        assert np.array_equal(stolen[name], secret[name])
    assert np.count_nonzero(stolen["positive_scores"]) > 1


def test_a_changed_cohort_goes_without_them(converged):
    _, with_victim, without = sums_of_two_cohorts(converged)
    insider = Insider(converged, INSIDER)

    sums = [unpacked(converged, insider.read_sum(data)) for data in (with_victim, without)]

    for name in (*METRIC_FIELDS, "weight", "clipped"):
        assert not sums[1][name].any()
    assert all(sums[0][name].any() for name in METRIC_FIELDS)
    for site in ALL_BUT_THE_VICTIM:
        converged.prepare(site, 3)
        assert RunFiles(converged.vault(site), converged.run).position().learner.federated is None


def test_a_second_statistics_round_gives_the_victim_s_counts_if_sites_answer_it(opened, monkeypatch):
    for question in ("uploaded", "first_cohort"):
        monkeypatch.setattr(UploadJournal, question, lambda self, state, cohort=None: None)
    opened.prepare_all()
    insider, plan = Insider(opened, INSIDER), opened.agreement.plan(RoundKind.STATISTICS)

    first, second = (insider.read_sum(collect(opened, cohort)) for cohort in (EVERYONE, ALL_BUT_THE_VICTIM))

    stolen = plan.unpack(first - second)
    assert int(stolen["records"][0]) == patients(opened, VICTIM)[0]
    for name, numbers in plan.unpack(truth(opened, VICTIM)).items():
        assert np.array_equal(stolen[name], numbers)


def test_sites_answer_one_statistics_round(started, opened, grid_of):
    opened.prepare_all()
    collect(opened, EVERYONE)
    grid = grid_of(opened)
    for site in ALL_BUT_THE_VICTIM:
        left = journal(opened, site)
        got = refusal(grid, opened, site, Request.UPLOAD, **call_parts(0, ALL_BUT_THE_VICTIM))
        assert got == "SecondUploadError"
        assert journal(opened, site) == left

    grid = grid_of(started)  # after its sum is released, round 0 is over
    for site in ALL_BUT_THE_VICTIM:
        got = refusal(grid, started, site, Request.UPLOAD, **call_parts(0, ALL_BUT_THE_VICTIM))
        assert got == "RoundMismatchError"
