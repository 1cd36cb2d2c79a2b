"""The digest of the code that a site runs, which the agreement fixes.

Trust: site only. It says which code was agreed on; it cannot defend against a site that lies about its own.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Final

from protocol.schedule import digest

PACKAGES: Final = ("clients", "conf", "protocol")


@lru_cache(maxsize=1)
def code_digest() -> str:
    """Return the SHA-256 over names and contents of every source file that runs at a site, hex."""
    root = Path(__file__).parent.parent
    files = sorted(path for package in PACKAGES for path in (root / package).rglob("*.py"))
    entries = [(str(path.relative_to(root)).encode(), hashlib.sha256(path.read_bytes()).digest()) for path in files]
    return digest("code", *(field for entry in entries for field in entry)).hex()
