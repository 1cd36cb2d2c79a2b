"""Train the plaintext twin of a finished run, and return the model it ends in.

The twin shares tables, training and quantised arithmetic with the encrypted run and nothing else: what it proves is
that encryption, masks and tags change not one bit of the result.

Trust: the simulation's observer, who has every site's table at hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from clients.data.table import Values
from clients.data.table_file import read_table
from clients.learning.learner import Learner
from clients.run.membership import AGREEMENT, TABLE, Membership
from clients.run.start import start_of
from clients.secrets.vault import Vault
from clients.simulation import SITES
from protocol.agreement import Agreement
from protocol.errors import ConfigurationError
from protocol.packing import Integers
from protocol.update import EncryptedAggregate
from scripts.events import PROVIDER_SUMS
from scripts.simulation.in_process import InProcessGrid, quiet_flower
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
    """Return each simulated site's learning, from the table and the starting model in its vault."""
    vaults = {card.name: Vault(run_directory / SITES / card.name) for card in agreement.roster}
    return {
        name: Learner(
            terms=agreement.terms,
            parameters=agreement.parameters,
            table=read_table(vault.path(TABLE), agreement.terms.data),
            site=name,
            start=start_of(Membership.read(vault)) if agreement.start else None,
        )
        for name, vault in vaults.items()
    }


class PlainSite:
    """A site of the twin, which contributes in the clear.

    Args:
        agreement: The run's agreement.
        learner: The site's learning.
        cohorts: Each round's cohort.
    """

    def __init__(self, agreement: Agreement, learner: Learner, cohorts: Sequence[Sequence[int]]) -> None:
        self._position = agreement.position(learner.site)
        self._cohorts = cohorts
        self._agreement = agreement
        self._learner = learner
        self._state = learner.initial_state()
        self._personal = self._trained = learner.initial_personal()

    @property
    def values(self) -> Values:
        """All values of this site's model, float64 (P,)."""
        return self._learner.values(self._state, self._personal)

    def apply(self, packed_sum: Integers, round_number: int) -> None:
        """Apply the sum of a round."""
        if self._position in self._cohorts[round_number]:
            self._personal = self._trained
        before = self._state
        self._state = self._learner.apply(before, self._agreement.round_kind(round_number), packed_sum)
        self._personal = self._learner.personal_after(before, self._state, self._personal)

    def handle(self, message: Message) -> Message:
        """Apply the sum of the round before, if any, and contribute to this one."""
        round_number = int(message.content.config_records[ROUND][ROUND])  # type: ignore[arg-type]  # the strategy sets an integer
        sums = [array.numpy() for array in message.content.array_records[SUMS].values()]
        for packed_sum in sums:
            self.apply(packed_sum, round_number - 1)
        kind = self._agreement.round_kind(round_number)
        contribution = self._learner.contribution(self._state, self._personal, kind, round_number)
        packed, self._trained = contribution.packed, contribution.personal
        if self._cohorts[round_number] != self._cohorts[0]:
            packed = self._agreement.plan(kind).model_only(packed)
        return Message(RecordDict({SUMS: ArrayRecord({CONTRIBUTION: Array(packed)})}), reply_to=message)


def plaintext_models(run_directory: Path) -> dict[str, Values]:
    """Return the plaintext twin of each site's final model.

    Args:
        run_directory: Directory of the finished run; agreement, tables and cohorts come from there.

    Returns:
        Site name -> float64 (P,), in the order of the model's tensors.
    """
    agreement = run_agreement(run_directory)
    return train_plain(agreement, run_learners(run_directory, agreement), run_cohorts(run_directory, agreement))


def train_plain(
    agreement: Agreement, learners: Mapping[str, Learner], cohorts: Sequence[Sequence[int]]
) -> dict[str, Values]:
    """Train as the agreement says, without encryption; return each site's final model, float64 (P,), by name."""
    sites = {agreement.position(name): PlainSite(agreement, learner, cohorts) for name, learner in learners.items()}
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return sites[context.node_id].handle(message)

    grid = InProcessGrid(app, {position: {} for position in sites}, {})
    with quiet_flower():
        result = PlainFedAvg(cohorts).start(grid, ArrayRecord(), num_rounds=agreement.last_round + 1)
    (last_sum,) = (array.numpy() for array in result.arrays.values())
    for site in sites.values():
        site.apply(last_sum, agreement.last_round)
    return {name: sites[agreement.position(name)].values for name in learners}


def run_cohorts(run_directory: Path, agreement: Agreement) -> list[list[int]]:
    """Return each round's cohort, as roster positions, from the sums that the provider kept."""
    sums = sorted((run_directory / PROVIDER_SUMS).iterdir())
    return [list(EncryptedAggregate.from_bytes(path.read_bytes(), agreement).cohort) for path in sums]
