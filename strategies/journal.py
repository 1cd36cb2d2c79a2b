"""What a strategy tells the provider, and what it asks the provider to keep.

Trust: runs at the provider.
"""

from __future__ import annotations

from typing import Protocol


class RunJournal(Protocol):
    """The provider's record of one run."""

    def event(self, name: str, **fields: object) -> None:
        """Record one event: sites, rounds, sizes and seconds, never contents."""

    def keep_sum(self, round_number: int, data: bytes) -> None:
        """Keep the encrypted sum of a round."""

    def load_sum(self, round_number: int) -> bytes:
        """Return a kept sum."""
