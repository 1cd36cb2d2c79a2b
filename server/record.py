"""The provider's record of one run: a JSON line per event, and every encrypted sum.

Trust: runs at the provider, and holds exactly what a real provider would: sizes, digests, times, names, ciphertexts.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from pathlib import Path

_LONGEST_TEXT = 400

_log = logging.getLogger("flwr.cipherward.provider")


class RunRecord:
    """Keeps one run's events and sums below a directory.

    Args:
        directory: Where to keep them; made if needed.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        (directory / "sums").mkdir(parents=True, exist_ok=True)

    def event(self, name: str, **fields: object) -> None:
        """Append one event to events.jsonl and to Flower's log. Long texts, a peer's, are cut."""
        short = {key: field[:_LONGEST_TEXT] if isinstance(field, str) else field for key, field in fields.items()}
        entry = {"event": name, "time": round(time.time(), 3), **short}
        with (self._directory / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, separators=(",", ":")) + "\n")
        _log.info("%s %s", name, " ".join(f"{key}={value}" for key, value in short.items()))

    def keep_sum(self, round_number: int, data: bytes) -> None:
        """Keep a round's encrypted sum, on disk before the round is over."""
        path = self._sum_path(round_number)
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        self.event("sum-kept", round=round_number, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    def load_sum(self, round_number: int) -> bytes:
        """Return a kept sum."""
        return self._sum_path(round_number).read_bytes()

    def _sum_path(self, round_number: int) -> Path:
        return self._directory / "sums" / f"round-{round_number:05d}.cwa"
