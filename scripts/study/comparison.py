"""Compare what hospitals reach alone, together under encryption, and with all data in one place, by cross-validation.

Trust: the study's observer, who owns every simulated site.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import datetime
from pathlib import Path

import numpy as np
from rich.console import Console

import conf
from clients.simulation import check_hospitals
from protocol.errors import ConfigurationError, RunFailedError
from scripts.environment import core_count
from scripts.progress import steps_display
from scripts.study.folds import Fold, FoldResult, run_fold
from scripts.study.output import as_json, print_result, write_csv, write_plots
from scripts.study.scores import METHODS, SiteScores, study_result

JSON_NAME = "study.json"
CSV_NAME = "study.csv"
SET_BY_STUDY = ("data.folds", "data.fold", "model.personal")


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
    for override in overrides:
        if override.lstrip("+~").startswith(SET_BY_STUDY):
            raise ConfigurationError(f"{override}: a study sets this itself; see --folds and the methods it compares")
    config = conf.compose([f"experiment={experiment}", *overrides, f"data.folds={folds}"])
    if config.privacy.has_noise:
        raise ConfigurationError(
            "privacy.noise_multiplier > 0: a study compares with plaintext twins, and noise has none"
        )
    directory = output or Path("studies", experiment, f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}")
    directory.mkdir(parents=True, exist_ok=True)
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise ConfigurationError(f"--json: {json_file.parent} is not a directory")
    started = time.monotonic()
    files = check_hospitals(config)
    for name, file in files.items():
        if len(file.rows) < folds:
            raise ConfigurationError(f"{name} has {len(file.rows)} patients, too few for --folds {folds}")
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
    if difference:
        raise RunFailedError(f"a model differs from its plaintext twin's by up to {difference:.3g}")
    result = study_result(_gathered(finished, repeats), seed=config.strategy.seed)
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
        ProcessPoolExecutor(workers, mp_context=context, initializer=_leave_nothing, initargs=(os.getpid(),)) as pool,
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


def _leave_nothing(parent: int) -> None:
    """End a worker in a way that removes its directories: when it is told to, and when its parent is gone."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _gathered(finished: Mapping[Fold, FoldResult], repeats: int) -> dict[str, SiteScores]:
    """Put the folds' scores together: every patient was held out once per repeat."""
    tables = next(iter(finished)).tables
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
