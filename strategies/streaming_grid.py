"""A Flower grid whose replies arrive one at a time, and on which a reply can be answered while others are awaited.

Flower's own `send_and_receive` returns the full list, so that all updates of a round sit in memory together.

Trust: runs at the provider.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, wait
from typing import Final

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

_MANY_RECORDS: Final = 8
_SHORTEST_PAUSE_SECONDS: Final = 0.01
_LONGEST_PAUSE_SECONDS: Final = 0.5
_LONGEST_PULL_SECONDS: Final = 10.0


class StreamingGrid(Grid):
    """Wraps a grid; only `send_and_receive` differs, and `post` is added.

    A node tells of its reply before it sends it, and Flower then waits for the rest: for minutes, where the node was
    killed in the middle or its line is slow. Nobody else's reply waits with it for more than a few seconds.

    Args:
        grid: The grid that Flower made.
        pull_seconds: How long all others wait for one reply that has begun to come.
    """

    def __init__(self, grid: Grid, *, pull_seconds: float = _LONGEST_PULL_SECONDS) -> None:
        self._grid = grid
        self._pull_seconds = pull_seconds
        self._awaited: dict[str, None] = {}  # ordered sets of message ids
        self._aside: dict[str, None] = {}
        self._slow: dict[str, Future[list[Message]]] = {}

    def post(self, messages: Iterable[Message], *, is_awaited: bool = True) -> None:
        """Send messages whose replies come with those of the exchange that is going on, or of a later one.

        Args:
            messages: Messages to send.
            is_awaited: Whether the exchange that is going on lasts until their replies have come.
        """
        ids = self._awaited if is_awaited else self._aside
        for message in messages:  # each goes before the next one is made
            ids |= dict.fromkeys(self.push_messages([message]))
            is_long = message.has_content() and len(message.content) > _MANY_RECORDS
            del message
            if is_long:
                gc.collect()  # Flower's records are in cycles, and would pile up, a model for each site

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Send messages, then yield each reply as it comes, until all came or the time is up.

        Replies that an earlier exchange gave up waiting for come too, when they come.

        Args:
            messages: Messages to send.
            timeout: Seconds to wait for replies in all; None waits for ever.
        """
        self._aside |= self._awaited
        self._awaited = {}
        self.post(messages)
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = _SHORTEST_PAUSE_SECONDS
        while True:
            arrived = 0
            for message_id in [*self._awaited, *self._aside]:
                for reply in self._arrived(message_id):
                    self._awaited.pop(message_id, None)
                    self._aside.pop(message_id, None)
                    arrived += 1
                    yield reply
            if not self._awaited or (deadline is not None and time.monotonic() > deadline):
                return
            # short at first, because small rounds are over soon; long waits are not worth a busy provider
            pause = _SHORTEST_PAUSE_SECONDS if arrived else min(2 * pause, _LONGEST_PAUSE_SECONDS)
            time.sleep(pause)

    def _arrived(self, message_id: str) -> Iterator[Message]:
        """Yield the reply to a message if it has come whole."""
        pulling = self._slow.pop(message_id, None)
        patience = 0.0
        if pulling is None:
            pulling, patience = self._pull(message_id), self._pull_seconds
        if not wait([pulling], patience).done:
            self._slow[message_id] = pulling
            return
        replies = pulling.result()
        del pulling  # it would hold the reply for as long as the reply is worked on
        while replies:
            yield replies.pop()

    def _pull(self, message_id: str) -> Future[list[Message]]:
        pulling: Future[list[Message]] = Future()

        def pull() -> None:
            try:
                pulling.set_result(list(self.pull_messages([message_id])))
            except BaseException as error:
                pulling.set_exception(error)

        # no pool: the end of a run would wait for its threads, and so for a reply that nobody wants any more
        threading.Thread(target=pull, daemon=True).start()
        return pulling

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages and return their ids."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that have arrived."""
        return self._grid.pull_messages(message_ids)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of the connected nodes."""
        return self._grid.get_node_ids()

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Make a message."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def set_run(self, run: object) -> None:
        """Set the run."""
        self._grid.set_run(run)  # type: ignore[arg-type]  # Flower's Run type is not public

    @property
    def run(self) -> object:  # type: ignore[override]  # Flower's Run type is not public
        """The run."""
        return self._grid.run
