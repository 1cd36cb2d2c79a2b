"""Compare what hospitals reach alone, together under encryption, and with all data in one place, by cross-validation.

Trust: the study's observer, who owns every simulated site.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import datetime
from pathlib import Path

import numpy as np
from rich.console import Console

import conf
from clients.simulation import site_tables
from clients.table_file import TableFile
from conf import ExperimentConfig
from protocol.agreement import SiteId
from protocol.errors import ConfigurationError, RunFailedError
from scripts.environment import core_count
from scripts.progress import steps_display
from scripts.study_folds import Fold, FoldResult, run_fold
from scripts.study_output import as_json, print_result, write_csv, write_plots
from scripts.study_scores import METHODS, SiteScores, study_result

JSON_NAME = "study.json"
CSV_NAME = "study.csv"


def run_study(
    experiment: str,
    overrides: Sequence[str],
    *,
    repeats: int,
    folds: int,
    json_file: Path | None,
    output: Path | None,
    console: Console,
) -> None:
    """Cross-validate inside each site, print the result and write it as JSON, CSV and pictures.

    Args:
        experiment: Name of a file in conf/experiment.
        overrides: Hydra overrides on top of it.
        repeats: How often the patients are dealt into folds anew.
        folds: Folds per repeat; each is held out once.
        json_file: Where to write the JSON besides the output directory.
        output: Directory of the results; a new one below `studies/` if None.
        console: Where progress and result are shown.

    Raises:
        ConfigurationError: There is no such experiment, or it is not possible.
        FederationError: A federation failed, or did not give the plaintext twin's model.
    """
    if not (conf.CONFIG_DIRECTORY / "experiment" / f"{experiment}.yaml").is_file():
        known = sorted(path.stem for path in (conf.CONFIG_DIRECTORY / "experiment").glob("*.yaml"))
        raise ConfigurationError(f"there is no experiment {experiment!r}; there are {', '.join(known)}")
    config = conf.compose([f"experiment={experiment}", *overrides, f"data.folds={folds}"])
    directory = output or Path("studies", experiment, f"{datetime.now():%Y-%m-%d_%H-%M-%S}")
    directory.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    files = site_tables(config)
    console.print(
        f"{experiment}: {repeats} x {folds} folds inside each of {len(files)} sites; per fold two encrypted "
        "federations and their plaintext twins",
        highlight=False,
    )
    todo = [
        Fold(experiment=config, files=files, repeat=repeat, fold=fold)
        for repeat in range(repeats)
        for fold in range(folds)
    ]
    finished = _run_all(todo, console)
    difference = max(fold.largest_difference for fold in finished.values())
    result = study_result(_gathered(config, files, repeats, finished), seed=config.strategy.seed)
    document = as_json(
        result,
        experiment=experiment,
        overrides=list(overrides),
        repeats=repeats,
        folds=folds,
        max_abs_difference_from_plaintext=difference,
        seconds=round(time.monotonic() - started, 1),
    )
    text = json.dumps(document, indent=2, allow_nan=False) + "\n"
    for path in filter(None, (directory / JSON_NAME, json_file)):
        path.write_text(text, encoding="utf-8")
    write_csv(result, directory / CSV_NAME)
    write_plots(result, directory)
    print_result(result, console)
    console.print(str(directory), markup=False, highlight=False, soft_wrap=True)
    if difference:
        raise RunFailedError(f"a model differs from its plaintext twin's by up to {difference:.3g}")
    console.print(
        f"each of {2 * len(todo)} encrypted federations gave its plaintext twin's models, bit for bit; "
        f"{document['seconds']:.0f} s in all",
        highlight=False,
    )


def _run_all(todo: Sequence[Fold], console: Console) -> dict[Fold, FoldResult]:
    """Run the folds on all cores."""
    # not forked: torch's threads do not survive that
    context = multiprocessing.get_context("spawn")
    workers = min(core_count(), len(todo))
    with (
        ProcessPoolExecutor(workers, mp_context=context) as pool,
        steps_display(console, "folds", len(todo)) as step,
    ):
        running = {pool.submit(run_fold, fold): fold for fold in todo}
        try:
            for done in as_completed(running):
                done.result()
                step(f"repeat {running[done].repeat + 1}, fold {running[done].fold + 1}")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return {fold: done.result() for done, fold in running.items()}


def _gathered(
    config: ExperimentConfig,
    files: Mapping[SiteId, TableFile],
    repeats: int,
    finished: Mapping[Fold, FoldResult],
) -> dict[str, SiteScores]:
    """Put the folds' scores together: every patient was held out once per repeat."""
    tables = Fold(experiment=config, files=files, repeat=0, fold=0).tables
    shape = {name: (repeats, table.records) for name, table in tables.items()}
    folds = {name: np.full(shape[name], -1, dtype=np.int64) for name in tables}
    scores = {name: {method: np.full(shape[name], np.nan) for method in METHODS} for name in tables}
    for fold, result in finished.items():
        for name, part in result.sites.items():
            folds[name][fold.repeat, part.rows] = fold.fold
            for method in METHODS:
                scores[name][method][fold.repeat, part.rows] = part.scores[method]
    return {
        name: SiteScores(labels=table.labels, folds=folds[name], scores=scores[name]) for name, table in tables.items()
    }
