"""The provider's Flower ServerApp: wiring only.

Trust: runs at the provider.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp

import conf
from conf.run_directory import run_directory
from protocol.errors import RunPausedError
from server.record import LOCK_SECONDS, RunRecord
from strategies.encrypted_fedavg import EncryptedFedAvg
from strategies.unblocked_grid import UnblockedGrid

_OBJECTS_BETWEEN_COLLECTIONS: Final = 50
_HARDLY_ANY_BYTES: Final = 1 << 20
_NO_SPACE: Final = os.strerror(errno.ENOSPC)

app = ServerApp()

_log = logging.getLogger("flwr.cipherward.provider")


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run one federation from its run config."""
    experiment = conf.from_run_config(context.run_config)
    directory = run_directory(context.run_id, context.run_config)
    record = RunRecord(directory / "provider")
    with record.locked(LOCK_SECONDS):
        try:
            with _early_collection():
                _run(grid, experiment, record, directory)
        finally:
            _write_report(directory)
            _log.info("run directory: %s", directory)


def _run(grid: Grid, experiment: conf.ExperimentConfig, record: RunRecord, directory: Path) -> None:
    federation = experiment.federation
    strategy = EncryptedFedAvg(
        terms=experiment.terms,
        sites=federation.sites,
        join_seconds=federation.join_seconds,
        ready_seconds=federation.ready_seconds,
        upload_seconds=federation.upload_seconds,
        journal=record,
    )
    try:
        strategy.start(UnblockedGrid(grid), ArrayRecord(), num_rounds=experiment.strategy.rounds)
    except RunPausedError:
        raise  # the strategy has recorded it
    except Exception as error:
        record.event("failed", reason=_reason(error, directory))
        raise


def _reason(error: Exception, directory: Path) -> str:
    """Say why a run failed; a full disk has many faces, such as the SuperLink's "500 Internal Server Error"."""
    text = f"{type(error).__name__}: {error}"
    if shutil.disk_usage(directory).free < _HARDLY_ANY_BYTES and _NO_SPACE not in text:
        text = f"{_NO_SPACE} ({directory}); {text}"
    return text


@contextlib.contextmanager
def _early_collection() -> Iterator[None]:
    """Have Python look for garbage often, at little cost: what is there already is not looked at.

    Flower's HTTP responses are in cycles, and dozens of them would pile up, each with a piece of an update.
    """
    usual = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS, 1)
    try:
        yield
    finally:
        gc.set_threshold(*usual)
        gc.unfreeze()


def _write_report(directory: Path) -> None:
    try:
        from server.report import write_provider_report  # noqa: PLC0415  loads a drawing library; no run waits for that

        write_provider_report(directory)
    except Exception:  # whatever it is, it must not take the place of the run's own error
        _log.exception("the provider's report could not be written")
