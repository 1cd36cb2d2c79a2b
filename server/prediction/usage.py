"""How many patients each client has had scored, by model and day: what the allowance is held against.

A query is charged before it is worked on, and the charge stays whatever comes of it: otherwise failing on purpose would
be free, and a restart would forget. What failed may be asked again, though: the same query, to the bit, is not charged
again for some minutes. Not often, because each answer is flooded anew, and the mean of many is more exact than one.

Trust: runs at the provider; counts patients, and holds nothing about them but digests of ciphertexts.
"""

from __future__ import annotations

import sqlite3
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from server.prediction.problems import Cause, ProblemError

_TABLE: Final = """
CREATE TABLE IF NOT EXISTS usage (
    day TEXT NOT NULL, client TEXT NOT NULL, model TEXT NOT NULL, patients INTEGER NOT NULL,
    PRIMARY KEY (day, client, model)
) STRICT
"""
_RECENT: Final = """
CREATE TABLE IF NOT EXISTS recent (
    client TEXT NOT NULL, query BLOB NOT NULL, time REAL NOT NULL, repeats INTEGER NOT NULL,
    PRIMARY KEY (client, query)
) STRICT
"""
_BY_TIME: Final = "CREATE INDEX IF NOT EXISTS recent_by_time ON recent (time)"
_FORGET: Final = "DELETE FROM recent WHERE time < ?"
_REPEAT: Final = "UPDATE recent SET repeats = repeats + 1 WHERE client = ? AND query = ? AND repeats < ?"
_REMEMBER: Final = "INSERT OR REPLACE INTO recent VALUES (?, ?, ?, 0)"
_CHARGE: Final = """
INSERT INTO usage VALUES (?, ?, ?, ?)
ON CONFLICT (day, client, model) DO UPDATE SET patients = patients + excluded.patients
"""
_USED: Final = "SELECT COALESCE(SUM(patients), 0) FROM usage WHERE day = ? AND client = ?"
_WAIT_SECONDS: Final = 5.0

FREE_REPEATS: Final = 4
"""How often a query may come again without a charge."""

REPEAT_SECONDS: Final = 600.0
"""For how long after its charge."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Day:
    """A day in UTC.

    Attributes:
        name: Such as 2026-01-31.
        seconds_left: Until the next one.
    """

    name: str
    seconds_left: float

    @classmethod
    def now(cls) -> Day:
        """Return today."""
        now = datetime.fromtimestamp(time.time(), UTC)
        midnight = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
        return cls(name=now.date().isoformat(), seconds_left=(midnight - now).total_seconds())


class Usage:
    """The count, and which queries it was for of late, in a database.

    Args:
        path: The database; made if it is missing.
    """

    def __init__(self, path: Path) -> None:
        # one transaction at a time, begun by hand, because a charge reads and then writes
        self._database = sqlite3.connect(path, timeout=_WAIT_SECONDS, isolation_level=None)
        self._database.execute("PRAGMA journal_mode = WAL")
        for statement in (_TABLE, _RECENT, _BY_TIME):
            self._database.execute(statement)

    def charge(self, client: str, model: str, patients: int, *, query: bytes, allowed: int) -> bool:
        """Count a query's patients, or none of them if they are more than the day allows.

        Args:
            client: Whose query it is.
            model: The model's name.
            patients: How many the query has.
            query: SHA-256 of the query.
            allowed: How many the client may have scored in a day, over all models.

        Returns:
            Whether they were charged; not if the query came again.

        Raises:
            ProblemError: OVER_BUDGET.
        """
        day, now = Day.now(), time.time()
        self._database.execute("BEGIN IMMEDIATE")
        with self._database:  # commits, or rolls back
            self._database.execute(_FORGET, (now - REPEAT_SECONDS,))
            if self._database.execute(_REPEAT, (client, query, FREE_REPEATS)).rowcount:
                return False
            is_allowed = self._used(day, client) + patients <= allowed
            if is_allowed:
                self._database.execute(_CHARGE, (day.name, client, model, patients))
                self._database.execute(_REMEMBER, (client, query, now))
        if not is_allowed:
            raise ProblemError(Cause.OVER_BUDGET, retry_seconds=day.seconds_left)
        return True

    def today(self, client: str) -> int:
        """Return how many patients a client has had scored today."""
        return self._used(Day.now(), client)

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def _used(self, day: Day, client: str) -> int:
        (used,) = self._database.execute(_USED, (day.name, client)).fetchone()
        return int(used)
