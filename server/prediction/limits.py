"""How many requests a client may make in a minute, and how many bytes of bodies are in memory, and whose.

Trust: runs at the provider; counts.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Final

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from server.prediction.client_registry import AdmittedClient
from server.prediction.problems import Cause, ProblemError

MOST_BYTES: Final = 1 << 29
"""Bodies that are held at the same time, over all requests."""

_SHARE: Final = 4
"""One client's bodies are at most one in so many of these bytes."""

SMALL_BODY_BYTES: Final = 4 << 20
"""A body that has grown larger leaves the last quarter to others: models on their way keep no query out."""

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
        self._by_client: Counter[str] = Counter()

    def take(self, client: str, count: int, *, body: int) -> None:
        """Count bytes that have come.

        Args:
            client: Whose they are.
            count: How many.
            body: How long the body that they belong to is with them.

        Raises:
            ProblemError: OVER_SHARE, BUSY.
        """
        if self._by_client[client] + count > self._most // _SHARE:
            raise ProblemError(Cause.OVER_SHARE, retry_seconds=_PAUSE_SECONDS)
        room = self._most if body <= SMALL_BODY_BYTES else self._most - self._most // _SHARE
        if self._by_client.total() + count > room:
            raise ProblemError(Cause.BUSY, retry_seconds=_PAUSE_SECONDS)
        self._by_client[client] += count

    def give_back(self, client: str, count: int) -> None:
        """Count bytes that are gone."""
        self._by_client[client] -= count
        if not self._by_client[client]:
            del self._by_client[client]
