"""What a strategy tells the provider, and what it asks the provider to keep.

Trust: runs at the provider.
"""

from __future__ import annotations

from typing import Protocol


class RunJournal(Protocol):
    """The provider's record of one run."""

    def event(self, name: str, **fields: object) -> None:
        """Record one event: sites, rounds, sizes and seconds, never contents.

        A field `text` is a sentence for people.
        """

    def keep(self, name: str, data: bytes) -> None:
        """Keep bytes under a name such as "sums/round-00003.cwa"; on disk when this returns."""

    def load(self, name: str) -> bytes | None:
        """Return what is kept under a name; None if nothing is."""
