"""A grid that keeps every byte that passes it, and looks into the sites' vaults meanwhile, which no provider can.

Trust: tests only.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from flwr.common.serde import message_to_proto

from strategies.streaming_grid import StreamingGrid


@dataclass
class Tap(StreamingGrid):
    """Taps a grid in both directions.

    Attributes:
        grid: The grid that it taps.
        federation: Whose vaults it looks into after each message.
        passed: All messages, serialised.
    """

    grid: object
    federation: object
    passed: list[bytes] = field(default_factory=list)

    def __post_init__(self):
        super().__init__(self.grid)

    def push_messages(self, messages):
        messages = list(messages)
        ids = super().push_messages(messages)
        self.passed += [message_to_proto(message).SerializeToString() for message in messages]
        return ids

    def pull_messages(self, message_ids):
        replies = super().pull_messages(message_ids)
        self.passed += [message_to_proto(reply).SerializeToString() for reply in replies]
        for site in self.federation.everyone:
            self.look_into(site)
        return replies

    def look_into(self, site):
        """Keep what a site has on its disk now."""
        raise NotImplementedError
