"""The study on the four hospitals' patients, and whether it reaches what it must."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
from rich.console import Console

import conf
from clients.learning.intervals import macro_mean, resample
from clients.learning.learner import Learner
from clients.learning.statistics import standardisation, statistics_sums
from clients.run.membership import Membership
from clients.secrets.vault import Vault
from clients.simulation import found_consortium, site_tables
from protocol.errors import ConfigurationError
from scripts.simulation.twin import train_plain
from scripts.study.comparison import run_study
from scripts.study.folds import Fold
from scripts.study.scores import DIFFERENCES, METHODS

FOLDS = 5


def studied(directory, experiment, *overrides, folds=FOLDS):
    with (directory / "screen.txt").open("w") as screen:
        run_study(
            experiment,
            overrides,
            repeats=1,
            folds=folds,
            json_file=directory / "copy.json",
            output=directory / "study",
            console=Console(file=screen, width=79),
        )
    return json.loads((directory / "copy.json").read_text())


@pytest.fixture(scope="module")
def heart_disease(tmp_path_factory):
    directory = tmp_path_factory.mktemp("heart-disease")
    return directory, studied(directory, "heart_disease")


def test_the_shared_model_is_as_good_as_one_from_all_data_in_one_place(heart_disease):
    macro = heart_disease[1]["macro"]

    assert macro["federated"]["auc"] >= 0.82
    assert macro["federated"]["auc"] == pytest.approx(macro["pooled"]["auc"], abs=0.01)
    assert macro["federated"]["brier"] <= 0.145
    assert macro["federated_personal"]["brier"] <= 0.12


def test_long_beach_gains_from_the_others(heart_disease):
    va = heart_disease[1]["sites"]["va"]

    assert va["federated"]["auc"] >= va["local"]["auc"] + 0.03


def test_encryption_changes_not_one_bit(heart_disease):
    assert heart_disease[1]["max_abs_difference_from_plaintext"] == 0


def test_constant_answers_are_the_sites_own_prevalence(heart_disease):
    document = heart_disease[1]

    for site, counts in document["patients"].items():
        prevalence = counts["positives"] / counts["n"]
        constant = document["sites"][site]["constant"]
        assert constant["auc"] == 0.5
        assert constant["accuracy"] == pytest.approx(max(prevalence, 1 - prevalence))
        assert constant["brier"] == pytest.approx(prevalence * (1 - prevalence), rel=0.01)


def test_everything_is_written(heart_disease):
    directory, document = heart_disease

    assert json.loads((directory / "study" / "study.json").read_text()) == document
    assert (document["repeats"], document["folds"]) == (1, FOLDS)
    with (directory / "study" / "study.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(row["site"], row["method"]) for row in rows} == {
        (site, method) for site in [*document["sites"], "macro"] for method in (*METHODS, *DIFFERENCES)
    }
    pictures = {path.name for path in (directory / "study").glob("*.png")}
    assert pictures == {"auc.png", "brier.png", "roc.png", "calibration.png"}
    screen = (directory / "screen.txt").read_text()
    assert "5/5 folds" in screen
    assert max(map(len, screen.splitlines())) <= 79


@pytest.mark.parametrize("strategy", ["fedavgm", "fedadagrad", "fedadam", "fedyogi"])
def test_every_optimiser_comes_to_the_same_auc(heart_disease, strategy, tmp_path):
    # in the clear: that encryption changes no bit is another test's matter
    experiment = conf.compose(["experiment=heart_disease", f"strategy={strategy}", f"data.folds={FOLDS}"])
    files = site_tables(experiment)
    scores = {name: np.full(len(file.rows), math.nan) for name, file in files.items()}
    folds = {name: np.zeros((1, len(file.rows)), dtype=np.int64) for name, file in files.items()}
    labels = {}
    for number in range(FOLDS):
        fold = Fold(experiment=experiment, files=files, repeat=0, fold=number)
        for name, (rows, table, held_out) in trained_plain(fold, tmp_path / str(number)).items():
            scores[name][rows], folds[name][0, rows], labels[name] = held_out, number, table.labels

    auc = macro_mean(
        [
            resample(labels[name], {strategy: scores[name]}, folds=folds[name], samples=10, seed=0)[strategy]["auc"]
            for name in files
        ]
    )
    assert auc.value == pytest.approx(heart_disease[1]["macro"]["federated"]["auc"], abs=0.01)


def trained_plain(fold, home):
    """Return each site's held-out rows, table and scores by the shared model."""
    terms = fold.terms(())
    found_consortium(home, fold.files, terms)
    agreement = Membership.load(Vault(home / "va")).agreement
    learners = {
        name: Learner(terms=terms, parameters=agreement.parameters, table=table, site=name)
        for name, table in fold.tables.items()
    }
    everyone = list(range(len(learners)))
    models = train_plain(agreement, learners, [everyone] * (agreement.last_round + 1))
    pooled = np.concatenate([learner.training_table.features for learner in learners.values()])
    common = standardisation(statistics_sums(pooled, terms.data, smallest_cell=1), terms.data)
    return {
        name: (fold.held_out_rows(name), fold.tables[name], learner.held_out_scores(models[name], common))
        for name, learner in learners.items()
    }


def test_a_site_with_one_label_has_no_auc_and_is_left_out_of_the_mean(tmp_path):
    document = studied(tmp_path, "breast_cancer", "strategy.rounds=2", folds=2)

    without = [site for site, counts in document["patients"].items() if counts["positives"] in (0, counts["n"])]
    assert without
    for site in without:
        assert document["sites"][site]["federated"]["auc"] is None
        assert document["sites"][site]["federated"]["brier"] is not None
    assert set(document["macro_sites"]["auc"]).isdisjoint(without)


def test_noise_has_no_twin_to_be_compared_with(tmp_path):
    with pytest.raises(ConfigurationError, match="noise has none"):
        studied(tmp_path, "breast_cancer", "privacy=noise")


def test_an_unknown_experiment_is_named_with_those_there_are(tmp_path):
    with pytest.raises(ConfigurationError, match=r"no experiment 'heart'; there are .*heart_disease"):
        studied(tmp_path, "heart")
