"""What both strategies have in common: there is nothing that the provider could ask sites to evaluate for it.

Trust: runs at the provider.
"""

from __future__ import annotations

from collections.abc import Iterable

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy


class TrainOnlyStrategy(Strategy):
    """A strategy without evaluation rounds: sites evaluate while they train, and metrics travel inside the sum."""

    def summary(self) -> None:
        """Say nothing: runs are recorded in the provider's journal."""

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask for nothing."""
        del server_round, arrays, config, grid
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Aggregate nothing."""
        del server_round
        for _ in replies:
            pass
        return None
