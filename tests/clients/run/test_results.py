"""What a site keeps for its own people: models that say how to use them, and an honest comparison."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
from next_agreement import next_agreement
from safetensors import safe_open
from safetensors.numpy import load_file

from clients.data.table_file import read_table
from clients.learning.learner import Learner
from clients.learning.statistics import Standardisation
from clients.run.files import Position, RunFiles
from clients.run.membership import TABLE
from clients.run.results import Results, model_path
from protocol.data_terms import ColumnTerms, DataTerms, LabelTerms
from protocol.prediction.model_file import MODEL_FORMAT

EVERYONE = (0, 1, 2, 3)


def learner_of(federation, position):
    agreement, vault = federation.agreement, federation.vault(position)
    return Learner(
        terms=agreement.terms,
        parameters=agreement.parameters,
        table=read_table(vault.path(TABLE), agreement.terms.data),
        site=federation.member(position).name,
    )


def model_of(federation, position, name="last"):
    return load_file(federation.vault(position).path(f"models/{name}.safetensors"))


def values_of(tensors):
    return np.concatenate([tensors["output.weight"].ravel(), tensors["output.bias"].ravel()])


def test_the_last_model_is_the_shared_one_at_every_site(closed_once):
    learner = RunFiles(closed_once.vault(0), closed_once.run).position().learner

    for site in EVERYONE:
        tensors = model_of(closed_once, site)
        assert np.array_equal(values_of(tensors), learner.model)
        assert np.array_equal(tensors["standardisation.mean"], learner.standardisation.mean)
        assert np.array_equal(tensors["standardisation.deviation"], learner.standardisation.deviation)


def test_the_best_model_is_the_one_with_the_lowest_training_loss(found, founded_once):
    # steps so large that training overshoots: the best model is not the last
    experiment = founded_once.experiment
    federation = found(replace(experiment, strategy=replace(experiment.strategy, rounds=4, learning_rate=40.0)))
    federation.open()
    models = []
    while len(federation.sums) <= federation.agreement.last_round:
        federation.prepare_all()
        if federation.sums:
            models.append(RunFiles(federation.vault(1), federation.run).position().learner.model)
        federation.sum_up()
    federation.close(1)

    metrics = [entry.get("federation_before_round") for entry in federation.vault(1).lines("metrics.jsonl")]
    losses = [sums["training_loss"] for sums in metrics if sums]
    assert len(losses) == len(models) == 5
    assert 0 < np.argmin(losses) < 4
    assert np.array_equal(values_of(model_of(federation, 1, "best")), models[np.argmin(losses)])
    assert np.array_equal(values_of(model_of(federation, 1, "last")), models[-1])


def test_a_run_that_dies_replaces_the_best_model_only(closed):
    ended = {name: closed.vault(1).read(model_path(name)) for name in ("last", "best", "local")}
    next_run = next_agreement(closed, sites=4, start_from=None)
    next_run.open()
    for _ in range(3):
        next_run.prepare_all()
        next_run.sum_up()
    next_run.prepare_all()

    vault = next_run.vault(1)
    assert {name for name, data in ended.items() if vault.read(model_path(name)) != data} == {"best"}


def test_what_outlives_the_run_is_on_disk_before_its_secrets_are_deleted(summed, monkeypatch):
    synced, real = {}, os.fsync

    def fsync(descriptor):
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.is_file():
            synced[path.name] = path.read_bytes()
        real(descriptor)

    def forget(files):
        for name in ("last", "best", "local"):
            path = vault.path(model_path(name))
            assert path.read_bytes() == synced[f".{path.name}.partial"]
        deleted.append(files)

    vault, deleted = summed.vault(1), []
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(RunFiles, "forget", forget)

    summed.close(1)

    assert deleted


def test_a_model_file_says_all_that_a_prediction_needs(closed_once):
    with safe_open(closed_once.vault(1).path("models/last.safetensors"), "numpy") as file:
        metadata = file.metadata()

    assert list(metadata) == [MODEL_FORMAT]
    description = json.loads(metadata[MODEL_FORMAT])
    assert description.keys() == {"data", "inputs", "model"}
    assert description["inputs"] == ["mean radius", "mean texture", "mean smoothness"]
    assert description["model"] == {
        "kind": "logistic_regression",
        "hidden": [],
        "activation": "",
        "personal": [],
    }


def test_a_model_file_holds_the_whole_schema(closed_once):
    with safe_open(closed_once.vault(1).path("models/last.safetensors"), "numpy") as file:
        data = json.loads(file.metadata()[MODEL_FORMAT])["data"]

    columns = tuple(ColumnTerms(**column) for column in data.pop("columns"))
    label = LabelTerms(**data.pop("label"))
    assert DataTerms(columns=columns, label=label, **data) == closed_once.agreement.terms.data


def test_equal_models_are_equal_files(closed_once):
    assert len({closed_once.vault(site).read("models/last.safetensors") for site in EVERYONE}) == 1


def test_the_comparison_is_what_the_models_really_score(closed_once):
    learner, result = learner_of(closed_once, 1), json.loads(closed_once.vault(1).read("result.json"))
    for name, model in (("local", "local"), ("federated", "last")):
        tensors = model_of(closed_once, 1, model)
        common = Standardisation(
            mean=tensors["standardisation.mean"], deviation=tensors["standardisation.deviation"], records=1
        )
        assert result[name] == learner.evaluate(values_of(tensors), common).as_json()

    assert result["site"] == "hospital-2"
    assert result["records"] == {"train": learner.training_table.records, "test": learner.held_out_table.records}
    assert result["local"] != result["federated"]


def test_the_local_model_is_the_site_s_own(closed_once):
    models = [values_of(model_of(closed_once, site, "local")) for site in EVERYONE]

    assert len({model.tobytes() for model in models}) == 4


def test_the_scores_are_one_line_per_held_out_patient(closed_once):
    learner = learner_of(closed_once, 1)
    with closed_once.vault(1).path("scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))

    assert [int(row["label"]) for row in rows] == learner.held_out_table.labels.tolist()
    assert all(0 <= float(row[name]) <= 1 for row in rows for name in ("local", "federated"))


def test_every_sum_after_the_statistics_adds_a_line_of_metrics(closed_once):
    entries = list(closed_once.vault(1).lines("metrics.jsonl"))

    assert [entry["round"] for entry in entries] == [0, 1, 2, 3]
    assert {entry["run"] for entry in entries} == {closed_once.run.hex()}
    assert "federation_before_round" not in entries[0]
    assert all(entry["federation_before_round"]["records"] > entry["own"]["records"] for entry in entries[1:])


def test_results_are_their_owner_s_alone(closed_once):
    for name in ("result.json", "scores.csv", "metrics.jsonl", "models/last.safetensors"):
        assert closed_once.vault(1).path(name).stat().st_mode & 0o777 == 0o600


def test_before_the_statistics_there_is_nothing_to_keep(founded):
    member, learner = founded.member(1), learner_of(founded, 1)
    results = Results(member, learner, founded.run)
    start = Position(
        round=0,
        state=bytes(32),
        members=EVERYONE,
        learner=learner.initial_state(),
        personal=learner.initial_personal(),
    )

    results.after_sum(start, replace(start, round=1))
    results.finish(start)

    assert not {"models", "metrics.jsonl", "result.json", "scores.csv"} & {
        path.name for path in member.vault.directory.iterdir()
    }
