"""Secret bytes that do not show themselves.

Trust: exists at the site only. Python cannot wipe memory reliably, and nothing here pretends to.
"""

from __future__ import annotations

import hmac
from typing import NoReturn

from protocol.errors import SecretMaterialError


class SecretBytes:
    """Bytes with a redacted repr that refuse to be pickled or copied; read them with `reveal`."""

    __slots__ = ("_raw",)

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def reveal(self) -> bytes:
        """Return the bytes, for handing to a primitive at once."""
        return self._raw

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SecretBytes) and hmac.compare_digest(self._raw, other._raw)

    __hash__ = None  # type: ignore[assignment]  # a hash of a secret is one more thing that could leak

    def __repr__(self) -> str:
        return "SecretBytes(<redacted>)"

    def __reduce__(self) -> NoReturn:
        raise SecretMaterialError("secret bytes must not leave their process")
