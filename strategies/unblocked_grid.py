"""A Flower grid on which a reply that stops half-way holds nobody else up.

A node tells of its reply before it sends it, and Flower then waits for the rest: for minutes, where the node was killed
in the middle or its line is slow. No other reply could be taken in meanwhile.

Trust: runs at the provider, on bytes from outside.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from concurrent.futures import Future, wait
from typing import Final

import httpx
from flwr.app import Message
from flwr.serverapp import Grid

from strategies.wrapped_grid import WrappedGrid

_PATIENCE_SECONDS: Final = 10.0
_SHORT_PATIENCE_SECONDS: Final = 1.0
_MOST_SLOW: Final = 4

_log = logging.getLogger("flwr.cipherward.provider")


class UnblockedGrid(WrappedGrid):
    """A grid whose `pull_messages` leaves slow replies to threads of their own, and gives them when they are whole.

    At most four are slow at a time, each of another node, so that a provider with many slow sites does not hold all
    their updates in memory: then no further reply is looked for. A reply that is no message, or never becomes whole, is
    passed over.

    Args:
        grid: The grid that Flower made for the ServerApp.
        patience_seconds: How long the others wait for a reply that has begun to come.
    """

    def __init__(self, grid: Grid, *, patience_seconds: float = _PATIENCE_SECONDS) -> None:
        super().__init__(grid)
        self._patience_seconds = patience_seconds
        self._slow: dict[str, Future[list[Message]]] = {}
        self._node_of: dict[str, str] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages and return their ids."""
        messages = list(messages)
        ids = list(self._grid.push_messages(messages))
        self._node_of |= {name: str(sent.metadata.dst_node_id) for name, sent in zip(ids, messages, strict=True)}
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that have arrived whole."""
        replies: list[Message] = []
        for message_id in message_ids:
            pulling, patience = self._slow.pop(message_id, None), 0.0
            if pulling is None:
                slow = {self._node_of.get(name, name) for name in self._slow}
                if len(slow) >= _MOST_SLOW or self._node_of.get(message_id, message_id) in slow:
                    continue
                patience = self._patience_seconds
                if slow:  # the others have waited for the first of them already
                    patience = min(patience, _SHORT_PATIENCE_SECONDS)
                pulling = self._pull(message_id)
            if not wait([pulling], patience).done:
                self._slow[message_id] = pulling
            elif whole := pulling.result():
                replies += whole
                self._node_of.pop(message_id, None)
        return replies

    def _pull(self, message_id: str) -> Future[list[Message]]:
        pulling: Future[list[Message]] = Future()

        def pull() -> None:
            try:
                pulling.set_result(self._whole(message_id))
            except BaseException as error:  # raised where the result is asked for
                pulling.set_exception(error)

        # no pool, and a daemon: a run does not end later because of a reply that nobody wants any more
        threading.Thread(target=pull, daemon=True).start()
        return pulling

    def _whole(self, message_id: str) -> list[Message]:
        try:
            return list(self._grid.pull_messages([message_id]))
        except (httpx.HTTPError, OSError):  # of the way to the SuperLink
            raise
        except Exception as error:  # Flower's parsers raise anything at a node's bytes; no text of theirs is told
            _log.warning("a node's reply is no message, and passed over: %s", type(error).__name__)
            return []
