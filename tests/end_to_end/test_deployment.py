"""A deployed federation, a process for each hospital and a real provider, comes to what a simulation of it comes to."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from deployment import deployment

from conf import DataConfig, ExperimentConfig, FederationConfig, from_yaml
from protocol.data_terms import ColumnTerms, LabelTerms
from protocol.terms import TrainingTerms

pytestmark = [
    pytest.mark.xdist_group("deployment"),
    pytest.mark.simulation,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes by their environment"),
]

SMALL = ExperimentConfig(
    data=DataConfig(
        name="breast_cancer",
        label=LabelTerms(name="malignant"),
        columns=(
            ColumnTerms(name="mean radius", centre=14.0, scale=4.0),
            ColumnTerms(name="mean texture", centre=19.0, scale=4.0),
        ),
    ),
    strategy=TrainingTerms(rounds=3, local_epochs=1),
    federation=FederationConfig(sites=3, partition="iid"),
)


@pytest.mark.timeout(300)
def test_a_deployed_run_ends_in_the_simulated_run_s_model_bit_for_bit(found, run, tmp_path):
    simulated = found(SMALL)
    founded = type(simulated).found(tmp_path / "deployed", SMALL)
    with deployment(founded, tmp_path) as deployed:
        name = deployed.submit()
        deployed.finish(name)
        kinds = deployed.kinds(name)
        provider = deployed.provider

        status = json.loads(provider.command("provider", "status", "--json").stdout)
        assert [(each["name"], each["state"], each["cohort"]) for each in status["runs"]] == [(name, "completed", 3)]
        assert status["runs"][0]["up_bytes"] > 3 * 5 * 1000
        assert [(site["name"], site["status"]) for site in status["sites"]] == [
            (f"hospital-{number}", "online") for number in (1, 2, 3)
        ]

        lines = provider.command("logs").stdout.splitlines()
        assert lines[-1].endswith("finished")
        assert any("round 1/3: 3 sites" in line for line in lines)
        raw = [json.loads(line)["event"] for line in provider.command("logs", name, "--json").stdout.splitlines()]
        assert raw == kinds

        again = provider.command("submit", "--resume", name, "strategy.rounds=9")
        assert again.returncode == 1
        assert "goes on as it was submitted" in again.stderr

        assert provider.stop() == 0
        assert provider.processes() == []
        submitted = from_yaml((provider.directory.run(name) / "experiment.yaml").read_text())

    run(simulated)

    assert kinds.count("round") == 5  # statistics, three rounds, evaluation
    assert deployed.cohorts(name) == [[0, 1, 2]] * 5
    assert [deployed.uploads(position) for position in founded.everyone] == [[0, 1, 2, 3, 4]] * 3
    assert submitted.terms == founded.agreement.terms == simulated.agreement.terms
    assert [card.name for card in founded.agreement.roster] == [card.name for card in simulated.agreement.roster]
    for position in founded.everyone:
        np.testing.assert_array_equal(founded.values(position), simulated.values(position))
    deployed.check_models(name)


def test_other_terms_end_in_another_model(found, run, tmp_path):
    """Without which the comparison above could not fail."""
    one = found(SMALL)
    other = type(one).found(tmp_path / "other", replace(SMALL, strategy=replace(SMALL.strategy, seed=77)))

    run(one)
    run(other)

    assert not np.array_equal(one.values(0), other.values(0))
