"""A Flower grid that calls a ClientApp in this process: no Ray, no SuperLink, no polling.

Trust: for tests, studies and the plaintext twin, where all sites are on one machine anyway.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from uuid import uuid4

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

# Flower makes messages only inside a task; this is how its own processes say which one they are.
from flwr.supercore.task_identity import TaskIdentity


@contextmanager
def quiet_flower() -> Iterator[None]:
    """Keep Flower's log to warnings: its thirty lines are about a run that is not the person's."""
    log = logging.getLogger("flwr")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(level)


class InProcessGrid(Grid):
    """Delivers each message when its reply is pulled, so that one reply is in memory at a time.

    Args:
        app: Answers the messages.
        node_configs: Node id -> its node config.
        run_config: The run's config, the same for all nodes.
        run_id: The run's id.
    """

    def __init__(
        self,
        app: ClientApp,
        node_configs: Mapping[int, Mapping[str, str | int]],
        run_config: Mapping[str, str | int | float | bool],
        run_id: int = 1,
    ) -> None:
        self._app = app
        self._contexts = {
            node: Context(
                run_id=run_id, node_id=node, node_config=dict(config), state=RecordDict(), run_config=dict(run_config)
            )
            for node, config in node_configs.items()
        }
        self._waiting: dict[str, Message] = {}
        TaskIdentity.run_id = run_id
        TaskIdentity.task_id = 0
        TaskIdentity.node_id = 0

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of all nodes."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages in and return an id for each."""
        ids = []
        for message in messages:
            message_id = str(uuid4())
            message.metadata.__dict__["_message_id"] = message_id  # as Flower's own grid does
            self._waiting[message_id] = message
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Deliver the messages with these ids and return their replies."""
        return [self._deliver(self._waiting.pop(message_id)) for message_id in list(message_ids)]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Deliver messages one after the other; `timeout` has no meaning here."""
        del timeout
        return self.pull_messages(self.push_messages(messages))

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Make a message."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def set_run(self, run: object) -> None:
        """Do nothing: there is one run."""

    @property
    def run(self) -> object:  # type: ignore[override]  # Flower's Run type is not public
        """Nothing: no record of the run is kept."""
        return None

    def _deliver(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        TaskIdentity.node_id = node
        try:
            return self._app(message, self._contexts[node])
        finally:
            TaskIdentity.node_id = 0
