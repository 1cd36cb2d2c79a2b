"""Find the files of public data sets: in a directory, in the user's cache, or at their publisher.

Trust: runs where a federation is simulated, on public data; a real site reads its own table instead.
"""

from __future__ import annotations

import hashlib
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Final

from platformdirs import user_cache_path

from clients.data.table_file import TableFile, read_table_file
from conf.schema import DataConfig, SourceConfig
from protocol.data_terms import DataTerms
from protocol.errors import ConfigurationError

DATA_VARIABLE: Final = "CIPHERWARD_DATA"
"""Environment variable that names the directory of data files, where `data.dir` does not."""

BUILT_IN: Final = "breast_cancer"
"""The data set that scikit-learn ships; a data set without sources must be this one."""

BUILT_IN_LABEL: Final = "malignant"
"""Its outcome."""

_DOWNLOAD_SECONDS: Final = 30
_DOWNLOAD_RETRIES: Final = 2


def load_hospitals(data: DataConfig) -> dict[str, TableFile]:
    """Return each hospital's file of a public data set, by the hospital's name.

    Raises:
        ConfigurationError: A file is nowhere to be found, or is not the published one; says what to put where.
        DataError: A file does not follow the schema.
    """
    if not data.sources:
        return {"wisconsin": _breast_cancer(data)}
    return {
        source.site: read_table_file(path, data) for source, path in zip(data.sources, find_files(data), strict=True)
    }


def located(data: DataConfig) -> DataConfig:
    """Return a data set whose files are there, and whose directory means the same to every process of this machine.

    Raises:
        ConfigurationError: As for `find_files`.
    """
    find_files(data)
    directory = _named_directory(data)
    return replace(data, dir=str(directory)) if data.sources and directory is not None else data


def _named_directory(data: DataConfig) -> Path | None:
    named = data.dir or os.environ.get(DATA_VARIABLE, "")
    return Path(named).expanduser().resolve() if named else None


def find_files(data: DataConfig) -> list[Path]:
    """Return where each source's file is; download what is in no directory.

    `data.dir` decides, then the environment variable CIPHERWARD_DATA; without either the user's cache and the
    publisher. A file with a published SHA-256 is used only if it has it.

    Raises:
        ConfigurationError: A file is missing or altered; says what to put where.
    """
    named = _named_directory(data)
    directory = named or user_cache_path("cipherward") / "data"
    paths = []
    for source in data.sources:
        path = directory / source.file
        if not path.is_file():
            if named or not source.url:
                raise ConfigurationError(f"{path} does not exist; {_advice(data, source)}")
            _download(source, directory, data)
        _check_digest(path, source)
        paths.append(path)
    return paths


def _advice(data: DataConfig, source: SourceConfig) -> str:
    files = ", ".join(other.file for other in data.sources)
    published = f" from {source.url.rpartition('/')[0]}/" if source.url else ""
    return f"put {files}{published} below a directory DIR, and set data.dir=DIR or the variable {DATA_VARIABLE}"


def _download(source: SourceConfig, directory: Path, data: DataConfig) -> None:
    import pooch  # noqa: PLC0415 - loads an HTTP client, which hardly any start needs

    pooch.get_logger().setLevel(logging.WARNING)
    shop = pooch.create(
        path=directory,
        base_url="",
        registry={source.file: f"sha256:{source.sha256}"},
        urls={source.file: source.url},
        retry_if_failed=_DOWNLOAD_RETRIES,
    )
    try:
        shop.fetch(source.file, downloader=pooch.HTTPDownloader(timeout=_DOWNLOAD_SECONDS))
    except (OSError, ValueError) as error:  # requests' errors are OSErrors; a wrong hash is a ValueError
        reason = "is not the published file" if isinstance(error, ValueError) else f"cannot be fetched into {directory}"
        raise ConfigurationError(f"{source.url} {reason} ({type(error).__name__}); {_advice(data, source)}") from error


def _check_digest(path: Path, source: SourceConfig) -> None:
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if source.sha256 and found != source.sha256:
        raise ConfigurationError(
            f"{path} is not the published file: its SHA-256 is {found[:16]}..., expected {source.sha256[:16]}...; "
            f"altered copies are common, take the original from {source.url or 'its publisher'}"
        )


def _breast_cancer(data: DataTerms) -> TableFile:
    """Return the Wisconsin diagnostic data (Street, Wolberg and Mangasarian, 1993), 569 patients, as a CSV file."""
    from sklearn.datasets import load_breast_cancer  # noqa: PLC0415 - takes a second

    if data.name != BUILT_IN:
        raise ConfigurationError(
            f"data.sources is empty, and {data.name!r} is not a data set that comes with Cipherward"
        )
    if data.label.name != BUILT_IN_LABEL:
        raise ConfigurationError(f"data.label.name: the outcome of {data.name} is {BUILT_IN_LABEL!r}")
    published = load_breast_cancer()
    position = {str(name): at for at, name in enumerate(published.feature_names)}
    for column in data.columns:
        if column.name not in position:
            raise ConfigurationError(f"data.columns: {data.name} has no column {column.name!r}")
    chosen = published.data[:, [position[column.name] for column in data.columns]].tolist()
    labels = (1 - published.target).tolist()  # scikit-learn's is 1 for a benign mass, ours for a malignant one
    rows = [[*map(repr, row), str(label)] for row, label in zip(chosen, labels, strict=True)]
    return TableFile(name=data.name, rows=rows, lines=list(range(1, len(rows) + 1)))
