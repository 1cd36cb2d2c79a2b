"""Write what a prediction gave, into files that only their owner reads and that replace nothing.

Trust: runs at the client, or at the key's holder; scores are patients' data.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from clients.data.patient_file import ID, LOGIT, PatientFile
from protocol.errors import ConfigurationError
from server.prediction.files import write_file

Values = npt.NDArray[np.float64]


def check_output(path: Path) -> None:
    """Raise unless a file can be written, before anything is asked of anybody.

    Raises:
        ConfigurationError: It is there already, or its directory cannot be written to.
    """
    if path.exists() or not os.access(path.absolute().parent, os.W_OK):
        raise ConfigurationError(f"{path} cannot be written, or is there already: name another file with --output")


def write_private(path: Path, data: bytes) -> None:
    """Write a new file of mode 0600; what is interrupted leaves an empty one or none, and none that looks whole.

    Raises:
        ConfigurationError: It cannot be written, or is there already.
    """
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))  # from here on the name is ours
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}; name another file with --output") from None
    try:
        write_file(path, data)
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise ConfigurationError(f"{path}: {error.strerror}; name another file with --output") from None
        raise


def patients_csv(patients: PatientFile, logits: Values) -> bytes:
    """Return a line for each patient of a file: rows are counted from 1, without header and blank lines.

    Args:
        patients: All rows; what is wrong with one is told with its line.
        logits: Of the usable ones, in their order.
    """
    scores = dict(zip(patients.usable, logits.tolist(), strict=True))
    columns, lines = ["row", *_COLUMNS, "error"], []
    for row, (complaint, place) in enumerate(zip(patients.complaints, patients.lines, strict=True)):
        lines.append([row + 1, *_cells(scores.get(row)), f"line {place}: {complaint}" if complaint else ""])
    if patients.ids is not None:
        columns.insert(1, ID)
        for line, identifier in zip(lines, patients.ids, strict=True):
            line.insert(1, identifier)
    return _csv([columns, *lines])


def rows_csv(rows: Sequence[int], logits: Values) -> bytes:
    """Return a line for each scored row, in order of the rows."""
    scored = sorted(zip(rows, logits.tolist(), strict=True))
    return _csv([["row", *_COLUMNS], *([row, *_cells(logit)] for row, logit in scored)])


_COLUMNS = ["probability", LOGIT]


def _cells(logit: float | None) -> list[str]:
    return ["", ""] if logit is None else [f"{expit(logit):.6g}", f"{logit:.6f}"]


def _csv(lines: Sequence[Sequence[object]]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(lines)
    return buffer.getvalue().encode()
