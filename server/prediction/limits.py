"""How many requests a client may make in a minute, and how many bytes may wait in memory.

Trust: runs at the provider; counts.
"""

from __future__ import annotations

import time
from typing import Final

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from server.prediction.client_registry import AdmittedClient
from server.prediction.problems import Cause, ProblemError

MOST_BYTES: Final = 1 << 29
"""Bodies that are held at the same time, over all requests."""

_PAUSE_SECONDS: Final = 2.0


class RequestRates:
    """Requests of the last minute, by client."""

    def __init__(self) -> None:
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    def count(self, client: AdmittedClient) -> None:
        """Count one request.

        Raises:
            ProblemError: OVER_RATE.
        """
        limit = RateLimitItemPerMinute(client.allowance.requests_per_minute)
        if not self._limiter.hit(limit, client.name):
            reset = self._limiter.get_window_stats(limit, client.name).reset_time
            raise ProblemError(Cause.OVER_RATE, retry_seconds=reset - time.time())


class HeldBytes:
    """Bytes of bodies in memory.

    Args:
        most: The bound.
    """

    def __init__(self, most: int = MOST_BYTES) -> None:
        self._most = most
        self.held = 0

    def take(self, count: int) -> None:
        """Count bytes that have come.

        Raises:
            ProblemError: BUSY.
        """
        if self.held + count > self._most:
            raise ProblemError(Cause.BUSY, retry_seconds=_PAUSE_SECONDS)
        self.held += count

    def give_back(self, count: int) -> None:
        """Count bytes that are gone."""
        self.held -= count
