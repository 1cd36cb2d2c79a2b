"""Train the plaintext twin of a finished run, and return the model it ends in.

The twin shares tables, training and quantised arithmetic with the encrypted run and nothing else: what it proves is
that encryption, masks and tags change not one bit of the result.

Trust: the simulation's observer, who has every site's table at hand.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from clients.learner import Learner
from clients.learner_state import LearnerState
from clients.membership import AGREEMENT, TABLE
from clients.simulation import SITES
from clients.table import Values, read_table
from protocol.agreement import Agreement
from protocol.errors import ConfigurationError
from protocol.packing import Integers
from scripts.events import PROVIDER_EVENTS, read_events
from scripts.in_process import InProcessGrid
from strategies.plain_fedavg import CONTRIBUTION, ROUND, SUMS, PlainFedAvg


def run_agreement(run_directory: Path) -> Agreement:
    """Return the agreement that the sites of a simulated run pinned.

    Raises:
        ConfigurationError: The directory holds no run that got as far.
    """
    for path in sorted((run_directory / SITES).glob(f"*/{AGREEMENT}")):
        return Agreement.from_bytes(path.read_bytes())
    raise ConfigurationError(f"{run_directory} holds no run that got as far as an agreement")


def run_learners(run_directory: Path, agreement: Agreement) -> dict[str, Learner]:
    """Return each simulated site's learning, from the table in its vault."""
    return {
        card.name: Learner(
            terms=agreement.terms,
            parameters=agreement.parameters,
            table=read_table(run_directory / SITES / card.name / TABLE, agreement.terms.data),
            site=card.name,
        )
        for card in agreement.roster
    }


class PlainSite:
    """A site of the twin, which contributes in the clear.

    Args:
        agreement: The run's agreement.
        learner: The site's learning.
        cohorts: Each round's cohort.
    """

    def __init__(self, agreement: Agreement, learner: Learner, cohorts: Sequence[Sequence[int]]) -> None:
        self._cohorts = cohorts
        self._agreement = agreement
        self._learner = learner
        self._state = learner.initial_state()

    def apply(self, packed_sum: Integers, round_number: int) -> LearnerState:
        """Apply the sum of a round and return the state after it."""
        self._state = self._learner.apply(self._state, self._agreement.round_kind(round_number), packed_sum)
        return self._state

    def handle(self, message: Message) -> Message:
        """Apply the sum of the round before, if any, and contribute to this one."""
        round_number = int(message.content.config_records[ROUND][ROUND])  # type: ignore[arg-type]  # the strategy sets an integer
        sums = [array.numpy() for array in message.content.array_records[SUMS].values()]
        for packed_sum in sums:
            self.apply(packed_sum, round_number - 1)
        kind = self._agreement.round_kind(round_number)
        packed = self._learner.contribution(self._state, kind, round_number)
        if self._cohorts[round_number] != self._cohorts[0]:
            packed = self._agreement.plan(kind).model_only(packed)
        return Message(RecordDict({SUMS: ArrayRecord({CONTRIBUTION: Array(packed)})}), reply_to=message)


def plaintext_model(run_directory: Path) -> Values:
    """Return the plaintext twin's final model.

    Args:
        run_directory: Directory of the finished run; agreement, tables and cohorts come from there.

    Returns:
        float64, shape (parameters,), in the order of the model's tensors.
    """
    agreement = run_agreement(run_directory)
    learners = run_learners(run_directory, agreement)
    cohorts = _cohorts(run_directory, agreement)
    sites = {agreement.position(name): PlainSite(agreement, learner, cohorts) for name, learner in learners.items()}
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return sites[context.node_id].handle(message)

    grid = InProcessGrid(app, {position: {} for position in sites}, {})
    strategy = PlainFedAvg(cohorts)
    flower_log = logging.getLogger("flwr")
    level = flower_log.level
    flower_log.setLevel(logging.WARNING)  # thirty lines about a run that is not the person's
    try:
        result = strategy.start(grid, ArrayRecord(), num_rounds=agreement.last_round + 1)
    finally:
        flower_log.setLevel(level)
    (last_sum,) = (array.numpy() for array in result.arrays.values())
    return sites[0].apply(last_sum, agreement.last_round).model


def _cohorts(run_directory: Path, agreement: Agreement) -> list[list[int]]:
    rounds = [event for event in read_events(run_directory / PROVIDER_EVENTS) if event["event"] == "round"]
    return [[agreement.position(name) for name in entry["cohort"]] for entry in rounds]
