"""What an experiment's configuration holds: the agreement's terms, and how a federation is simulated.

Trust: public on both sides.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import PurePosixPath

from protocol.checks import check_choice, check_range
from protocol.data_terms import DataTerms
from protocol.errors import ConfigurationError
from protocol.parameters import MAX_SITES
from protocol.privacy_terms import PrivacyTerms
from protocol.terms import CohortTerms, CryptoTerms, ModelTerms, Terms, TrainingTerms

NATURAL = "natural"
"""The partition in which each hospital of the data set is a site, with its own patients."""

_DAY_SECONDS = 86_400.0
_SHA256_DIGITS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceConfig:
    """Where a public file of one hospital's patients comes from.

    Attributes:
        site: The hospital's name as a site: lower-case letters, digits and hyphens.
        file: Path below the data directory, with forward slashes.
        sha256: Digest that the file must have, hex; may be empty for a file without a url.
        url: Where it is published, https; empty if nowhere.
    """

    site: str
    file: str
    sha256: str = ""
    url: str = ""

    def __post_init__(self) -> None:
        key = f"data.sources[{self.site}]"
        path = PurePosixPath(self.file)
        if path.is_absolute() or ".." in path.parts or not path.name or "\\" in self.file:
            raise ConfigurationError(f"{key}.file is not a path below the data directory")
        if self.sha256 and (len(self.sha256) != _SHA256_DIGITS or set(self.sha256) - set("0123456789abcdef")):
            raise ConfigurationError(f"{key}.sha256 is not {_SHA256_DIGITS} lower-case hex digits")
        if self.url and not self.url.startswith("https://"):
            raise ConfigurationError(f"{key}.url does not begin with https://")
        if self.url and not self.sha256:
            raise ConfigurationError(f"{key}: what is downloaded from a url needs a sha256")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig(DataTerms):
    """The table that every site has, and for simulations where public data is.

    Attributes:
        sources: The public files; empty for the data set that comes with scikit-learn.
        dir: Directory of the public files; empty for CIPHERWARD_DATA, else the user's cache, else download.
    """

    sources: tuple[SourceConfig, ...] = ()
    dir: str = ""

    def __post_init__(self) -> None:
        DataTerms.__post_init__(self)  # super() does not know classes with slots
        object.__setattr__(self, "sources", tuple(self.sources))
        if len({source.site for source in self.sources}) != len(self.sources):
            raise ConfigurationError("data.sources names a site twice")

    @property
    def terms(self) -> DataTerms:
        """The part that the agreement pins."""
        return DataTerms(**{field.name: getattr(self, field.name) for field in fields(DataTerms)})


@dataclass(frozen=True, slots=True, kw_only=True)
class FederationConfig:
    """How many sites there are, how they are simulated, and how long the provider waits for them.

    Attributes:
        sites: Number of sites, 2..128.
        cohort: Who may be summed together.
        partition: Who has which patients: "natural" leaves each hospital of the data set its own, "dirichlet" and
            "iid" deal all of them out anew.
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
        check_choice("federation.partition", self.partition, (NATURAL, "dirichlet", "iid"))
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

    data: DataConfig
    model: ModelTerms = field(default_factory=ModelTerms)
    strategy: TrainingTerms = field(default_factory=TrainingTerms)
    crypto: CryptoTerms = field(default_factory=CryptoTerms)
    privacy: PrivacyTerms = field(default_factory=PrivacyTerms)
    federation: FederationConfig = field(default_factory=FederationConfig)

    def __post_init__(self) -> None:
        sources, federation = len(self.data.sources), self.federation
        if federation.partition == NATURAL and sources != federation.sites:
            raise ConfigurationError(
                f"federation.sites = {federation.sites}, but data {self.data.name!r} has {sources} hospitals of its "
                f"own for federation.partition = {NATURAL}"
            )
        _ = self.terms  # which check themselves against each other

    @property
    def terms(self) -> Terms:
        """The part that the agreement pins."""
        return Terms(
            data=self.data.terms,
            model=self.model,
            training=self.strategy,
            crypto=self.crypto,
            cohort=self.federation.cohort,
            privacy=self.privacy,
        )
