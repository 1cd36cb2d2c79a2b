"""What an experiment's configuration holds: the agreement's terms, and how a federation is simulated.

Trust: public on both sides.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from protocol.errors import ConfigurationError
from protocol.parameters import MAX_SITES
from protocol.terms import (
    CohortTerms,
    CryptoTerms,
    DataTerms,
    ModelTerms,
    Terms,
    TrainingTerms,
    check_choice,
    check_range,
)

_DAY_SECONDS = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FederationConfig:
    """How many sites there are, how they are simulated, and how long the provider waits for them.

    Attributes:
        sites: Number of sites, 2..128.
        cohort: Who may be summed together.
        partition: How the public table is dealt to simulated sites, "dirichlet" or "iid".
        alpha: Dirichlet concentration, 0.01..1000; the smaller, the more the sites differ.
        join_seconds: How long the provider waits for sites to join.
        ready_seconds: How long it waits for sites to train.
        upload_seconds: How long it waits for a cohort's uploads before it pauses the run.
        client_cpus: Cores that the simulation reserves for one site, 1..64.
        verify: After the run, train the plaintext twin and compare bit for bit.
    """

    sites: int = 5
    cohort: CohortTerms = field(default_factory=CohortTerms)
    partition: str = "dirichlet"
    alpha: float = 0.5
    join_seconds: float = 30.0
    ready_seconds: float = 600.0
    upload_seconds: float = 600.0
    client_cpus: int = 1
    verify: bool = True

    def __post_init__(self) -> None:
        check_range("federation.sites", self.sites, 2, MAX_SITES)
        check_choice("federation.partition", self.partition, ("dirichlet", "iid"))
        check_range("federation.alpha", self.alpha, 0.01, 1000)
        check_range("federation.join_seconds", self.join_seconds, 1, _DAY_SECONDS)
        check_range("federation.ready_seconds", self.ready_seconds, 1, _DAY_SECONDS)
        check_range("federation.upload_seconds", self.upload_seconds, 1, _DAY_SECONDS)
        check_range("federation.client_cpus", self.client_cpus, 1, 64)
        if self.sites < self.cohort.smallest_cohort:
            raise ConfigurationError(
                f"federation.sites = {self.sites} is below federation.cohort.smallest_cohort = "
                f"{self.cohort.smallest_cohort}: no sum could ever be made"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentConfig:
    """A whole experiment; one attribute per Hydra group."""

    data: DataTerms
    model: ModelTerms = field(default_factory=ModelTerms)
    strategy: TrainingTerms = field(default_factory=TrainingTerms)
    crypto: CryptoTerms = field(default_factory=CryptoTerms)
    federation: FederationConfig = field(default_factory=FederationConfig)

    @property
    def terms(self) -> Terms:
        """The part that the agreement pins."""
        return Terms(
            data=self.data,
            model=self.model,
            training=self.strategy,
            crypto=self.crypto,
            cohort=self.federation.cohort,
        )
