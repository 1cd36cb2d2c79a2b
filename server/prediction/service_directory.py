"""Where the prediction service keeps what.

Trust: runs at the provider; public keys, models, counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceDirectory:
    """Where the service keeps what.

    Attributes:
        path: The directory.
    """

    path: Path

    @property
    def clients(self) -> Path:
        """A directory per admitted client."""
        return self.path / "clients"

    @property
    def models(self) -> Path:
        """A directory per model."""
        return self.path / "models"

    @property
    def usage(self) -> Path:
        """The count of patients."""
        return self.path / "usage.sqlite"

    @property
    def log(self) -> Path:
        """What was served."""
        return self.path / "served.jsonl"
