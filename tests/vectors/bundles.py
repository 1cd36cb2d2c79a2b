"""Flower app bundles, made in the test: zip archives of this project's sources.

Trust: tests only.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import clients
from clients.run.code import PACKAGES

PROJECT = Path(clients.__file__).parent.parent


def sources():
    paths = [path for package in PACKAGES for path in (PROJECT / package).rglob("*.py")]
    return {path.relative_to(PROJECT).as_posix(): path.read_bytes() for path in paths}


def bundle_of(files, compression=zipfile.ZIP_DEFLATED):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return data.getvalue()
