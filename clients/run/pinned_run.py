"""Check what a run brings along against what the site has pinned: the bundle's code, and the run's terms.

The site runs neither: it answers with its installed code and by its own agreement. So all that is compared is digests,
and nothing of the bundle or the run config is interpreted.

Trust: site only; both come from the provider.
"""

from __future__ import annotations

import hashlib
import io
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Final

from clients.run.code import PACKAGES, digest_of_files
from protocol.agreement import Agreement
from protocol.errors import AgreementMismatchError, LengthError, MalformedError

MAX_BUNDLE_BYTES: Final = 16 << 20
MAX_BUNDLE_FILES: Final = 4096
_TERMS: Final = "terms"
_HEX_SHA256: Final = 64
_COMPRESSION: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_UNREADABLE: Final = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, RuntimeError, ValueError, OverflowError
)  # fmt: skip
"""What zipfile raises at bytes that are no archive, or one of a kind that nobody builds bundles of."""

RunConfig = Mapping[str, str | int | float | bool]


def check_pinned(agreement: Agreement, run_config: RunConfig, bundle: bytes) -> None:
    """Check that a run is the one that a site's agreement fixes.

    Args:
        agreement: What the site has pinned.
        run_config: The run's config; only its `terms`, a digest, is looked at.
        bundle: The Flower app bundle.

    Raises:
        AgreementMismatchError: The run has other terms, or the bundle other code.
        MalformedError: The bundle cannot be read.
    """
    terms = run_config.get(_TERMS)
    if terms != agreement.terms.digest:
        got = terms if isinstance(terms, str) and len(terms) == _HEX_SHA256 else "none"
        raise AgreementMismatchError("terms of the run", expected=agreement.terms.digest, got=got)
    code = bundle_code_digest(bundle)
    if code != agreement.code_digest:
        raise AgreementMismatchError("code of the run's bundle", expected=agreement.code_digest, got=code)


def bundle_code_digest(bundle: bytes) -> str:
    """Return what `clients.run.code.code_digest` would be if the bundle were installed, hex.

    Args:
        bundle: A zip archive from outside.

    Raises:
        MalformedError: It is none, or holds a file twice.
        LengthError: It is larger than any bundle.
    """
    _check_size("bundle bytes", len(bundle), MAX_BUNDLE_BYTES)
    try:
        with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
            _check_size("files in the bundle", len(archive.infolist()), MAX_BUNDLE_FILES)
            sources = [entry for entry in archive.infolist() if _is_source(entry.filename)]
            _check_size("bytes of code in the bundle", sum(entry.file_size for entry in sources), MAX_BUNDLE_BYTES)
            if len({entry.filename for entry in sources}) != len(sources):
                raise MalformedError("bundle: it holds a file twice")
            if any(entry.compress_type not in _COMPRESSION for entry in sources):
                raise MalformedError("bundle: it is compressed in another way than Flower's")
            # zipfile reads no more of an entry than the size that was added up above
            return digest_of_files({entry.filename: hashlib.sha256(archive.read(entry)).digest() for entry in sources})
    except _UNREADABLE as error:
        raise MalformedError(f"bundle ({type(error).__name__})") from None


def _is_source(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix == ".py" and path.parts[0] in PACKAGES


def _check_size(what: str, size: int, most: int) -> None:
    if size > most:
        raise LengthError(what, expected=f"at most {most}", got=size)
