"""The digest of the code that a site runs, which the agreement fixes.

Trust: site only. It says which code was agreed on; it cannot defend against a site that lies about its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Final

from protocol.schedule import digest

PACKAGES: Final = ("clients", "conf", "protocol")


@lru_cache(maxsize=1)
def code_digest() -> str:
    """Return the SHA-256 over names and contents of every source file that runs at a site, hex."""
    root = Path(__file__).parents[2]
    files = [path for package in PACKAGES for path in (root / package).rglob("*.py")]
    return digest_of_files({path.relative_to(root).as_posix(): _sha256(path) for path in files})


def digest_of_files(digests: Mapping[str, bytes]) -> str:
    """Return the digest of source files, given by path below the project -> SHA-256 of the content; hex."""
    return digest(
        "code", *(field for path, content in sorted(digests.items()) for field in (path.encode(), content))
    ).hex()


def _sha256(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()
