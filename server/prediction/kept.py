"""What was made lately and may be needed again, within a bound of bytes.

Trust: runs at the provider, in worker processes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class Kept(Generic[Key, Value]):
    """The values that were used last.

    Args:
        most_bytes: Of all of them; one that is larger by itself is kept alone.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._values: dict[Key, tuple[Value, int]] = {}  # the one that was used last is the last

    def get(self, key: Key, make: Callable[[], Value], size_bytes: int) -> Value:
        """Return what is kept, or make it; then those that were not used for longest may go, before it is there."""
        entry = self._values.pop(key, None)
        if entry is None:
            while self._values and self._held_bytes() + size_bytes > self._most_bytes:
                del self._values[next(iter(self._values))]
            entry = make(), size_bytes
        self._values[key] = entry
        return entry[0]

    def _held_bytes(self) -> int:
        return sum(size for _, size in self._values.values())
