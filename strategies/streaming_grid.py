"""A Flower grid whose replies arrive one at a time, and on which a reply can be answered while others are awaited.

Flower's own `send_and_receive` returns the full list, so that all updates of a round sit in memory together.

Trust: runs at the provider.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable, Iterator
from typing import Final

from flwr.app import Message
from flwr.serverapp import Grid

from strategies.wrapped_grid import WrappedGrid

_MANY_RECORDS: Final = 8
_SHORTEST_PAUSE_SECONDS: Final = 0.01
_LONGEST_PAUSE_SECONDS: Final = 0.5


class StreamingGrid(WrappedGrid):
    """A grid on which `send_and_receive` differs, and `post` is added.

    Args:
        grid: The grid that Flower made.
    """

    def __init__(self, grid: Grid) -> None:
        super().__init__(grid)
        self._awaited: dict[str, None] = {}  # ordered sets of message ids
        self._aside: dict[str, None] = {}

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
                for reply in self.pull_messages([message_id]):
                    self._awaited.pop(message_id, None)
                    self._aside.pop(message_id, None)
                    arrived += 1
                    yield reply
            if not self._awaited or (deadline is not None and time.monotonic() > deadline):
                return
            # short at first, because small rounds are over soon; long waits are not worth a busy provider
            pause = _SHORTEST_PAUSE_SECONDS if arrived else min(2 * pause, _LONGEST_PAUSE_SECONDS)
            time.sleep(pause)
