"""Who waits for a worker, and who is next: clients take turns, so that one's many tasks do not hold up another's one.

Trust: runs at the provider; knows clients by name, and nothing of what they wait for.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final, Generic, TypeVar

from server.prediction.problems import Cause, ProblemError

MOST_WAITING: Final = 256
"""Tasks that wait for a worker, of all clients; further ones are refused."""

QUEUE_SECONDS: Final = 60.0
"""Longest time that a task waits; then it is refused."""

_SHARE: Final = 4
"""One client has at most one in so many of the places."""

_BUSY_SECONDS: Final = 2.0
Worker = TypeVar("Worker")


class Turns(Generic[Worker]):
    """Free workers, and the tasks that wait for one.

    Args:
        most_waiting: Tasks that may wait, of all clients.
        queue_seconds: Longest time that one waits.
    """

    def __init__(self, most_waiting: int = MOST_WAITING, queue_seconds: float = QUEUE_SECONDS) -> None:
        self._most_waiting = most_waiting
        self._queue_seconds = queue_seconds
        self._free: deque[Worker] = deque()
        # in the order of their turns; a client that had its turn goes to the end
        self._places: dict[str, deque[asyncio.Future[Worker]]] = {}

    @property
    def waiting(self) -> int:
        """Tasks that wait now."""
        return sum(map(len, self._places.values()))

    async def take(self, client: str) -> Worker:
        """Return a worker when it is this client's turn.

        Raises:
            ProblemError: OVER_SHARE, BUSY.
        """
        if self._free:
            return self._free.popleft()
        own = self._places.get(client, deque())
        if len(own) >= max(1, self._most_waiting // _SHARE):
            raise ProblemError(Cause.OVER_SHARE, retry_seconds=_BUSY_SECONDS)
        if self.waiting >= self._most_waiting:
            raise ProblemError(Cause.BUSY, retry_seconds=_BUSY_SECONDS)
        place: asyncio.Future[Worker] = asyncio.get_running_loop().create_future()
        self._places.setdefault(client, own).append(place)
        try:
            async with asyncio.timeout(self._queue_seconds):
                return await place
        except BaseException as error:
            self._leave(client, place)
            if isinstance(error, TimeoutError):
                raise ProblemError(Cause.BUSY, retry_seconds=_BUSY_SECONDS) from None
            raise

    def give_back(self, worker: Worker) -> None:
        """Give a worker to whose turn it is, or keep it for the next who comes."""
        while self._places:
            client, places = next(iter(self._places.items()))
            place = places.popleft()
            del self._places[client]
            if places:
                self._places[client] = places
            if not place.done():  # else it has just been given up
                place.set_result(worker)
                return
        self._free.append(worker)

    def _leave(self, client: str, place: asyncio.Future[Worker]) -> None:
        if place.done() and not place.cancelled():  # it got a worker in this very moment
            self.give_back(place.result())
            return
        own = self._places.get(client, deque())
        if place in own:
            own.remove(place)
            if not own:
                del self._places[client]
