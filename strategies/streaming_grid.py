"""A Flower grid whose replies arrive one at a time.

Flower's own `send_and_receive` returns the full list, so that all updates of a round sit in memory together.

Trust: runs at the provider.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Final

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

_SHORTEST_PAUSE_SECONDS: Final = 0.01
_LONGEST_PAUSE_SECONDS: Final = 0.5


class StreamingGrid(Grid):
    """Wraps a grid; only `send_and_receive` differs.

    Args:
        grid: The grid that Flower made.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Send messages, then yield each reply as it comes, until all came or the time is up.

        Args:
            messages: Messages to send.
            timeout: Seconds to wait for replies in all; None waits for ever.
        """
        waiting = list(self.push_messages(list(messages)))
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = _SHORTEST_PAUSE_SECONDS
        while waiting:
            arrived = 0
            for message_id in list(waiting):
                for reply in self.pull_messages([message_id]):
                    waiting.remove(message_id)
                    arrived += 1
                    yield reply
            if deadline is not None and time.monotonic() > deadline:
                return
            # short at first, because small rounds are over soon; long waits are not worth a busy provider
            pause = _SHORTEST_PAUSE_SECONDS if arrived else min(2 * pause, _LONGEST_PAUSE_SECONDS)
            if waiting:
                time.sleep(pause)

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
