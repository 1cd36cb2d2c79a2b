"""A site's report: one page that stands alone, says what the files say, and makes sense of every odd site."""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from clients.data.table import Table
from clients.data.table_file import read_table
from clients.learning.learner import Learner
from clients.reports.report import write_site_report
from clients.run.membership import TABLE
from protocol.errors import ConfigurationError
from protocol.privacy_terms import PrivacyTerms

SITE = 1
TALKS_TO_OTHERS = r"""(?ix) <(?:script|link|iframe|object|embed|img|base|form)\b | \son\w+\s*=
    | (?:href|src|action)\s*=\s*["'](?!\#) | url\((?!\#) | @import"""


@pytest.fixture(scope="module")
def closed_once(summed_once, tmp_path_factory):
    federation = summed_once.copied_to(tmp_path_factory.mktemp("closed") / "run")
    federation.close(SITE)
    return federation


@pytest.fixture
def closed(closed_once, tmp_path):
    """A run whose results are in one site's vault."""
    return closed_once.copied_to(tmp_path / "closed")


def learner_of(federation, table=None):
    agreement, vault = federation.agreement, federation.vault(SITE)
    return Learner(
        terms=agreement.terms,
        parameters=agreement.parameters,
        table=table or read_table(vault.path(TABLE), agreement.terms.data),
        site=federation.member(SITE).name,
    )


def page_of(federation, *, member=None, learner=None, run=None):
    member = member or federation.member(SITE)
    write_site_report(member, learner or learner_of(federation), run or federation.run.hex())
    return member.vault.read("report.html").decode()


def words_of(page):
    """Return what a reader sees, each run of white space as one space."""
    body = re.sub(r"(?s)<head>.*?</head>|<[^>]*>", " ", re.sub(r"</?b\b[^>]*>", "", page))
    return " ".join(html.unescape(body).split())


def write_scores(federation, labels, local, federated):
    rows = [f"{label},{own},{shared}\n" for label, own, shared in zip(labels, local, federated, strict=True)]
    federation.vault(SITE).write("scores.csv", ("label,local,federated\n" + "".join(rows)).encode())


def rewrite_lines(federation, name, change):
    vault = federation.vault(SITE)
    entries = [change(entry) for entry in vault.lines(name)]
    vault.write(name, "".join(json.dumps(entry) + "\n" for entry in entries if entry is not None).encode())


def scores_of(records, positives, *, seed=0):
    """Return labels, scores that know them well, and scores that know nothing."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(records) < positives).astype(np.int8)
    good = np.clip(labels * 0.8 + 0.1 + rng.normal(0, 0.08, records), 0, 1)
    return labels, good, rng.uniform(0.2, 0.8, records)


def test_the_page_is_one_file_that_talks_to_nobody_and_is_its_owner_s_alone(closed):
    page = page_of(closed)

    assert re.findall(TALKS_TO_OTHERS, re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)) == []
    assert page.count("<svg") == 6
    assert closed.vault(SITE).path("report.html").stat().st_mode & 0o777 == 0o600


def test_the_same_results_give_the_same_page(closed):
    assert page_of(closed) == page_of(closed)


def test_the_page_says_who_it_is_about_and_how_many_patients(closed):
    words, learner = words_of(page_of(closed)), learner_of(closed)

    assert "Report of hospital-2" in words
    assert "Data set breast_cancer, predicting malignant · logistic regression, 3 inputs · 2 training rounds" in words
    for name, table in (
        ("Patients to train with", learner.training_table),
        ("held out to test", learner.held_out_table),
    ):
        assert f"{name} {table.records} {table.labels.sum()} positive" in words


def test_the_measures_are_those_of_the_result(closed):
    words, result = words_of(page_of(closed)), json.loads(closed.vault(SITE).read("result.json"))

    assert f"AUC here, shared model {result['federated']['auc']:.3f} own model {result['local']['auc']:.3f}" in words
    for model in ("federated", "local"):
        for measure in ("auc", "accuracy", "brier"):
            assert f"{result[model][measure]:.3f}" in words
    sums = result["federated_sums"]
    assert f"AUC over all sites {sums['auc']:.3f} ± {sums['auc_bound']:.3f}, {sums['records']} patients" in words


def test_a_clear_difference_is_named_with_its_direction(closed):
    labels, good, clueless = scores_of(60, 30)

    write_scores(closed, labels, clueless, good)
    words = words_of(page_of(closed))
    assert "the shared model is better than this site's own model by AUC, accuracy and Brier score" in words
    assert "shared model is better" in words

    write_scores(closed, labels, good, clueless)
    words = words_of(page_of(closed))
    assert "the shared model is worse than this site's own model by AUC, accuracy and Brier score" in words
    assert "own model is better" in words


def test_equal_models_cannot_be_told_apart_and_the_page_says_with_how_many_patients(closed):
    labels, good, _ = scores_of(60, 30)
    write_scores(closed, labels, good, good)

    words = words_of(page_of(closed))

    assert "cannot be told apart" in words
    assert "With n = " in words
    assert "too few" not in words
    assert "shared model is better" not in words


def test_a_difference_on_few_patients_is_not_called_one(closed):
    labels, good, clueless = scores_of(40, 4)
    write_scores(closed, labels, clueless, good)

    words = words_of(page_of(closed))

    assert "too few to rely on" in words
    assert "the shared model is better than" not in words


def test_a_site_with_one_outcome_gets_a_page_without_roc(closed):
    labels, good, clueless = scores_of(20, 0)
    write_scores(closed, labels, clueless, good)
    rewrite_lines(closed, "metrics.jsonl", lambda entry: {**entry, "own": {**entry["own"], "auc": None}})

    page = page_of(closed)

    assert "ROC curve There is none" in words_of(page)
    assert "They have all the same outcome" in words_of(page)
    assert "cannot be measured here" in words_of(page)
    assert "nan" not in words_of(page).lower().split()


def test_one_held_out_patient_is_too_few_for_anything_but_the_page_stands(closed):
    write_scores(closed, [1], [0.4], [0.9])

    words = words_of(
        page_of(closed, learner=learner_of(closed, Table(features=np.eye(2, 3), labels=np.ones(2, np.int8))))
    )

    assert "Patients held out to test 1 1 positive" in words
    assert "this one held-out patient" in words
    assert "They have all the same outcome" in words


def test_without_figures_over_all_sites_the_page_says_why(closed):
    rewrite_lines(closed, "metrics.jsonl", lambda entry: {key: entry[key] for key in ("run", "round", "own")})

    page = page_of(closed)

    assert "There are no figures over all sites for this run." in words_of(page)
    assert "AUC over all sites \N{EN DASH} not known" in words_of(page)
    assert page.count("<svg") == 4  # ROC, calibration, and this site's own two curves


def test_sums_over_patients_of_one_outcome_have_no_auc(closed):
    def one_outcome(entry):
        sums = entry.get("federation_before_round")
        return entry if sums is None else {**entry, "federation_before_round": {**sums, "auc": None, "auc_bound": None}}

    rewrite_lines(closed, "metrics.jsonl", one_outcome)

    assert "AUC over all sites \N{EN DASH} not known" in words_of(page_of(closed))


def hide(federation, records):
    """Let every patient but a few sit in cells that are too small."""

    def few(entry):
        sums = entry.get("federation_before_round")
        if sums is None:
            return entry
        counts = {"confusion": [9, 0, 9, 0], "positive_scores": [0] * 15 + [9], "negative_scores": [9] + [0] * 15}
        bounds = {"auc": 0.5, "auc_bound": 0.4, "accuracy": 0.5, "accuracy_bound": 0.5 - 9 / records}
        return {**entry, "federation_before_round": {**sums, **counts, **bounds, "records": records}}

    rewrite_lines(federation, "metrics.jsonl", few)


def test_what_small_cells_leave_open_is_no_number(closed):
    hide(closed, 200)

    page = page_of(closed)
    words = words_of(page)

    assert "AUC over all sites too few patients in most groups to say" in words
    assert "AUC not known (too few patients), accuracy not known (too few patients), Brier score 0." in words
    assert "keeps every count of fewer than 5 patients to itself" in words
    assert "Calibration, all sites" not in page
    assert "0.400" not in words


def test_what_small_cells_leave_in_doubt_is_given_with_its_limit(closed):
    words, sums = words_of(page_of(closed)), json.loads(closed.vault(SITE).read("result.json"))["federated_sums"]

    assert 0 < sums["accuracy_bound"] < 0.25
    assert f"AUC {sums['auc']:.3f} ± {sums['auc_bound']:.3f}, accuracy" in words
    assert f"accuracy {sums['accuracy']:.3f} ± {sums['accuracy_bound']:.3f}, Brier" in words


def test_noise_is_told_with_what_it_promises_and_what_it_does_not(closed):
    member = closed.member(SITE)
    terms = replace(member.agreement.terms, privacy=PrivacyTerms(noise_multiplier=10.0))
    rewrite_lines(closed, "metrics.jsonl", lambda entry: {key: entry[key] for key in ("run", "round", "own")})

    words = words_of(page_of(closed, member=replace(member, agreement=replace(member.agreement, terms=terms))))

    assert re.search(r"by a factor of at most e 0\.\d\d \(differential privacy, ε = 0\.\d\d at δ = 1e-05\)", words)
    assert "given the statistics: the sums that inputs are standardised with are exact" in words
    assert "exact counts would undo what the noise" in words
    assert "differential privacy" not in words_of(page_of(closed))


def test_other_runs_are_passed_over(closed):
    words = words_of(page_of(closed, run="00" * 16))

    assert "There are no figures over all sites for this run." in words
    assert "No sealed update of this run left this site." in words


def test_what_left_is_counted_by_kind_of_round(closed):
    sealed = [event for event in closed.vault(SITE).lines("events.jsonl") if event["event"] == "sealed"]

    words = words_of(page_of(closed))

    assert [event["round"] for event in sealed] == [0, 1, 2, 3]
    assert "4 sealed updates" in words
    assert re.search(r"Training how training here [^0-9]* 2 [\d.]+ kB [\d.]+ kB 4 ", words)
    assert re.search(r"Statistics [^0-9]* 1 ", words)
    assert re.search(r"Evaluation [^0-9]* 1 ", words)


def test_missing_values_are_counted_per_column_and_complete_columns_are_not_listed(closed):
    table = learner_of(closed).training_table
    features = table.features.copy()
    features[:, 1] = np.nan
    features[:3, 2] = np.nan

    words = words_of(page_of(closed, learner=learner_of(closed, Table(features=features, labels=table.labels))))

    n = table.records
    assert "values are missing in 2 of 3 columns" in words
    assert f"mean texture measured for nobody here {n} of {n} 100.0 % mean smoothness 3 of {n}" in words
    assert "mean radius" not in words


def test_complete_data_are_said_to_be(closed):
    assert "have a value in each of the 3 columns: nothing is missing." in words_of(page_of(closed))


def test_repeated_rows_are_counted_with_their_gaps_and_kept(closed):
    table = learner_of(closed).training_table
    features = table.features.copy()
    features[0, 0] = np.nan
    twice = [0, 0, 0, *range(1, table.records)]
    repeated = Table(features=features[twice], labels=table.labels[twice])

    words = words_of(page_of(closed, learner=learner_of(closed, repeated)))

    assert "2 rows repeat another row in every input and in the outcome. They were kept" in words


def test_names_from_outside_are_text_and_never_markup(closed):
    member, learner = closed.member(SITE), learner_of(closed)
    data = learner.terms.data
    hostile = "<script>alert('&')</script>"
    columns = tuple(replace(column, name=f"{hostile}{number}") for number, column in enumerate(data.columns))
    data = replace(data, name=hostile, label=replace(data.label, name=f"<b>{hostile}"), columns=columns)
    agreement = replace(member.agreement, terms=replace(member.agreement.terms, data=data))
    gaps = learner.training_table.features.copy()
    gaps[0] = np.nan
    learner = learner_of(closed, Table(features=gaps, labels=learner.training_table.labels))
    learner.terms = agreement.terms

    page = page_of(closed, member=replace(member, agreement=agreement), learner=learner)

    assert "<script" not in page
    assert f"Data set {hostile}, predicting <b>{hostile}" in words_of(page)
    assert f"{hostile}2 1 of" in words_of(page)


def test_without_results_there_is_no_report(summed):
    with pytest.raises(ConfigurationError, match=r"scores\.csv"):
        page_of(summed)


def test_a_message_loads_nothing_that_draws():
    # a site's process starts for every message, and only the last one of a run makes a report
    program = "import sys, clients.app; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert "clients.run.rounds" in done.stdout.split()
    assert not {"matplotlib", "jinja2", "clients.reports.report"} & set(done.stdout.split())
