from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from clients.learning.intervals import MEASURES
from scripts.study import plots
from scripts.study.output import CSV_COLUMNS, as_json, print_result, write_csv, write_plots
from scripts.study.scores import DIFFERENCES, METHODS, SiteScores, StudyResult, study_result

PICTURES = ("auc.png", "brier.png", "roc.png", "calibration.png")


def site_scores(positives: int, negatives: int, *, repeats: int = 2) -> SiteScores:
    generator = np.random.default_rng(positives)
    labels = np.array([1] * positives + [0] * negatives, dtype=np.int8)
    folds = np.tile(np.arange(len(labels)) % 3, (repeats, 1))
    scores = {method: generator.normal(0.4 + 0.2 * labels, 0.2, size=folds.shape).clip(0, 1) for method in METHODS[:-1]}
    return SiteScores(labels=labels, folds=folds, scores={**scores, "constant": np.full(folds.shape, 0.5)})


def study(sites: dict[str, SiteScores]) -> StudyResult:
    return study_result(sites, samples=50, seed=0)


@pytest.fixture(scope="module")
def result() -> StudyResult:
    """Return a study of three sites, of which one has a single label."""
    return study({"cleveland": site_scores(30, 50), "zurich": site_scores(40, 6), "ward": site_scores(9, 0)})


def printed(result: StudyResult, width: int = 79) -> str:
    console = Console(width=width)
    with console.capture() as capture:
        print_result(result, console)
    return capture.get()


def test_json_has_plain_numbers_for_each_method_and_measure(result: StudyResult) -> None:
    document = json.loads(json.dumps(as_json(result), allow_nan=False))
    for method in METHODS:
        for measure in MEASURES:
            assert document["macro"][method][measure] == result.macro.estimates[method][measure].value
            for name, site in result.sites.items():
                assert document["sites"][name][method][measure] == site.estimates[method][measure].value
    assert document["sites"]["ward"]["local"]["auc"] is None


def test_json_keeps_sd_intervals_and_differences_apart(result: StudyResult) -> None:
    document = json.loads(json.dumps(as_json(result), allow_nan=False))
    estimate = result.sites["zurich"].estimates["pooled"]["auc"]
    assert document["sd"]["sites"]["zurich"]["pooled"]["auc"] == estimate.sd
    assert document["intervals"]["sites"]["zurich"]["pooled"]["auc"] == list(estimate.interval or ())
    assert document["intervals"]["sites"]["ward"]["pooled"]["auc"] is None
    assert document["sd"]["macro"]["local"]["brier"] == result.macro.estimates["local"]["brier"].sd
    assert tuple(document["differences"]["macro"]) == tuple(DIFFERENCES)
    difference = result.macro.differences["federated_minus_local"]["auc"]
    assert document["differences"]["macro"]["federated_minus_local"]["auc"] == {
        "value": difference.value,
        "sd": difference.sd,
        "interval": list(difference.interval or ()),
    }
    assert document["differences"]["sites"]["ward"]["federated_minus_local"]["auc"]["value"] is None


def test_json_says_how_many_patients_there_are_and_which_sites_a_mean_is_of(result: StudyResult) -> None:
    document = as_json(result)
    assert document["patients"]["cleveland"] == {"n": 80, "positives": 30}
    assert document["macro_sites"]["auc"] == ["cleveland", "zurich"]
    assert document["macro_sites"]["brier"] == ["cleveland", "zurich", "ward"]


def test_facts_stand_at_the_top_and_never_in_place_of_the_result(result: StudyResult) -> None:
    document = as_json(result, name="heart_disease", repeats=5, sites=3)
    assert (document["name"], document["repeats"]) == ("heart_disease", 5)
    assert set(document["sites"]) == {"cleveland", "zurich", "ward"}


def test_csv_has_a_row_for_each_site_method_and_measure(result: StudyResult, tmp_path: Path) -> None:
    write_csv(result, tmp_path / "scores.csv")
    with (tmp_path / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == CSV_COLUMNS
    keys = [(row["site"], row["method"], row["measure"]) for row in rows]
    assert len(set(keys)) == len(keys) == 4 * (len(METHODS) + len(DIFFERENCES)) * len(MEASURES)
    by_key = dict(zip(keys, rows, strict=True))
    estimate = result.macro.estimates["federated"]["brier"]
    row = by_key["macro", "federated", "brier"]
    assert float(row["value"]) == estimate.value
    assert float(row["sd"]) == estimate.sd
    assert (float(row["low"]), float(row["high"])) == estimate.interval


def test_csv_leaves_what_is_undefined_empty_and_counts_only_patients_in_a_mean(
    result: StudyResult, tmp_path: Path
) -> None:
    write_csv(result, tmp_path / "scores.csv")
    lines = (tmp_path / "scores.csv").read_text().splitlines()
    assert "ward,local,auc,,,,,9" in lines
    patients = {tuple(line.split(",")[:3]): line.split(",")[-1] for line in lines}
    assert patients["macro", "local", "auc"] == "126"
    assert patients["macro", "local", "brier"] == "135"


def test_the_tables_fit_79_columns_and_lose_nothing(result: StudyResult) -> None:
    text = printed(result)
    assert max(len(line) for line in text.splitlines()) <= 79
    assert "…" not in text
    estimate = result.sites["cleveland"].estimates["federated"]["auc"]
    line = next(line for line in text.splitlines() if line.startswith("cleveland 30/80"))
    assert f"{estimate.value:.3f} ±{estimate.sd:.3f}".replace("0.", ".") in line
    difference = result.macro.differences["federated_personal_minus_local"]["brier"]
    low, high = difference.interval or (0, 0)
    assert f"{difference.value:+.3f} [{low:+.3f}, {high:+.3f}]".replace("0.", ".") in text


def test_long_names_and_large_sites_fit_79_columns_too() -> None:
    text = printed(study({"north-west-university": site_scores(700, 900), "b": site_scores(20, 20)}))
    assert max(len(line) for line in text.splitlines()) <= 79
    assert "700/1600" in text
    assert "…" not in text


def test_the_table_says_where_there_is_no_auc(result: StudyResult) -> None:
    text = printed(result)
    assert next(line for line in text.splitlines() if line.startswith("ward 9/9")).split()[2:] == ["-"] * len(METHODS)
    assert "of 2 sites" in text
    assert "no fold has both labels" in " ".join(text.split())


def test_the_table_has_no_remark_on_what_is_not_missing() -> None:
    text = printed(study({"a": site_scores(20, 20), "b": site_scores(15, 20)}))
    assert "of 2 sites" not in text
    assert "no fold" not in text


def test_the_caption_names_the_auc_the_interval_and_the_reference(result: StudyResult) -> None:
    text = " ".join(printed(result).split())
    assert "within a held-out fold" in text
    assert "95 % interval, paired bootstrap of patients" in text
    assert "constant, for reference, always answers the site's own prevalence" in text


def test_one_repeat_is_printed_without_sd() -> None:
    text = printed(study({"a": site_scores(20, 20, repeats=1)}))
    assert "±" not in text.split("AUC: pairs")[0]


def test_plots_are_pictures(result: StudyResult, tmp_path: Path) -> None:
    write_plots(result, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(PICTURES)
    for name in PICTURES:
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def figures(result: StudyResult) -> list[Figure]:
    return [
        plots.estimates_figure(result, "auc"),
        plots.estimates_figure(result, "brier"),
        plots.roc_figure(result),
        plots.calibration_figure(result),
    ]


@pytest.mark.parametrize("count", [1, 4, 8])
def test_no_labels_of_a_plot_overlap_or_leave_it(count: int) -> None:
    result = study({f"north-west-university-{n + 1}": site_scores(20 + 100 * n, 15 if n else 0) for n in range(count)})
    for figure in figures(result):
        figure.draw_without_rendering()
        boxes = [each.get_window_extent() for each in (*figure.legends, *figure.texts)]
        boxes += [box for axes in figure.axes if (box := axes.get_tightbbox()) is not None]
        for n, box in enumerate(boxes):
            assert figure.bbox.x0 <= box.x0 + 1
            assert box.x1 <= figure.bbox.x1 + 1
            assert not any(box.overlaps(other) for other in boxes[n + 1 :])


def test_points_stand_where_the_estimates_are(result: StudyResult) -> None:
    (axes,) = plots.estimates_figure(result, "auc").axes
    points = {line.get_label(): np.asarray(line.get_xdata()).tolist() for line in axes.lines}
    sites = [result.sites[name].estimates["federated"]["auc"].value for name in ("cleveland", "zurich")]
    assert points["federated"] == [*sites, result.macro.estimates["federated"]["auc"].value]
    assert [text.get_text() for text in axes.get_yticklabels()][-1] == "macro\n2 sites"


def test_commands_that_draw_nothing_do_not_load_matplotlib() -> None:
    command = "import sys, scripts.study.output; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0
