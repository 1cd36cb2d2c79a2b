"""Tell a person what went wrong, without a traceback.

Trust: error texts hold public fields only; see `protocol.errors`.
"""

from __future__ import annotations

import sys

from protocol.errors import FederationError


def print_complaint(error: FederationError) -> None:
    """Print an error and its notes as one block on standard error."""
    lines = [f"cipherward: {error}", *getattr(error, "__notes__", [])]
    print("\n  ".join("\n".join(lines).splitlines()), file=sys.stderr, flush=True)
