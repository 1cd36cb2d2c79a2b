"""The plaintext twin of `EncryptedFedAvg`: the same quantised sums without encryption, for comparison only.

It protects nothing: whoever runs it reads every update. No site's process can answer it; only
`scripts.simulation.twin`, which has all tables at hand anyway, makes clients that do.

Trust: comparison only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from protocol.errors import CohortIncompleteError
from protocol.packing import Integers
from strategies.train_only import TrainOnlyStrategy

CONTRIBUTION: Final = "contribution"
SUMS: Final = "sums"
ROUND: Final = "round"


class PlainFedAvg(TrainOnlyStrategy):
    """Adds integer vectors in the clear.

    Flower's rounds 1, 2, ... are the encrypted run's rounds 0, 1, ...

    Args:
        cohorts: For each round, the nodes whose contributions are summed.
    """

    def __init__(self, cohorts: Sequence[Sequence[int]]) -> None:
        self._cohorts = cohorts

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask every node to apply the last sum; those of the cohort contribute to the next."""
        del config
        content = RecordDict({SUMS: arrays, ROUND: ConfigRecord({ROUND: server_round - 1})})
        return [Message(content, dst_node_id=node, message_type="train") for node in grid.get_node_ids()]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Add the cohort's integers.

        Raises:
            CohortIncompleteError: A node of the cohort did not contribute.
        """
        cohort = self._cohorts[server_round - 1]
        total: Integers | None = None
        added = []
        for reply in replies:
            if reply.has_error() or reply.metadata.src_node_id not in cohort:
                continue
            contribution = reply.content.array_records[SUMS][CONTRIBUTION].numpy()
            total = contribution if total is None else total + contribution
            added.append(reply.metadata.src_node_id)
        if total is None or len(added) != len(cohort):
            raise CohortIncompleteError("contributions in the sum", expected=tuple(cohort), got=tuple(added))
        return ArrayRecord([np.ascontiguousarray(total)]), None
