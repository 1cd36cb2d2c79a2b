"""What a consortium fixes before it starts: the plain, checked values that an agreement pins.

Each class checks itself when it is made, so a value of one of these types is a valid one. `conf/` registers the same
classes as Hydra schemas; there is no second definition to keep in step.

Trust: public on both sides.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from protocol.errors import ConfigurationError
from protocol.parameters import MAX_SITES, MIN_SITES, MIN_VALUE_BITS

MAX_ROUNDS = 10_000


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Raise unless low <= value <= high.

    Raises:
        ConfigurationError: Names the key, the value and the range.
    """
    if not low <= value <= high:  # neither does NaN; and any integer can be compared, however large
        raise ConfigurationError(f"{name} = {value} is outside {low}..{high}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise unless value is one of the choices.

    Raises:
        ConfigurationError: Names the key, the value and the choices.
    """
    if value not in choices:
        raise ConfigurationError(f"{name} = {value!r} is not one of {', '.join(choices)}")


def _as_floats(terms: object, *names: str) -> None:
    """Store whole numbers of these attributes as floats, so that equal terms have one encoding."""
    for name in names:
        object.__setattr__(terms, name, float(getattr(terms, name)))


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureTerms:
    """One input column, with the public constants it is centred and scaled by before anything is summed.

    Attributes:
        name: Column name.
        centre: Public centre, in the column's unit.
        scale: Public scale, in the column's unit; > 0.
    """

    name: str
    centre: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_range(f"data.features[{self.name}].centre", self.centre, -1e12, 1e12)
        check_range(f"data.features[{self.name}].scale", self.scale, 1e-12, 1e12)
        _as_floats(self, "centre", "scale")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataTerms:
    """The table that every site has.

    Attributes:
        name: Name of the data set.
        features: Input columns, in order.
        label: Column with the outcome, 0 or 1.
        test_fraction: Share of a site's patients that are held out, 0.05..0.5.
    """

    name: str
    features: tuple[FeatureTerms, ...]
    label: str = "label"
    test_fraction: float = 0.25

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", tuple(self.features))
        check_range("data.test_fraction", self.test_fraction, 0.05, 0.5)
        if not self.features:
            raise ConfigurationError("data.features is empty")
        names = [feature.name for feature in self.features]
        if len({*names, self.label}) != len(names) + 1:
            raise ConfigurationError("data.features: a column is named twice, or is also the label")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelTerms:
    """Architecture of the shared model; its outputs are logits.

    Attributes:
        kind: "logistic_regression" or "mlp".
        hidden: Widths of the hidden layers; empty for logistic regression.
    """

    kind: str = "logistic_regression"
    hidden: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        check_choice("model.kind", self.kind, ("logistic_regression", "mlp"))
        for width in self.hidden:
            check_range("model.hidden", width, 1, 1 << 20)
        if (self.kind == "mlp") != bool(self.hidden):
            raise ConfigurationError(f"model.hidden = {list(self.hidden)} does not fit model.kind = {self.kind!r}")

    def tensor_shapes(self, inputs: int) -> dict[str, tuple[int, ...]]:
        """Name and shape of each tensor, in the order in which they are packed."""
        widths = [inputs, *self.hidden, 1]
        shapes: dict[str, tuple[int, ...]] = {}
        for layer, (fan_in, fan_out) in enumerate(pairwise(widths)):
            shapes[f"layers.{layer}.weight"] = (fan_out, fan_in)
            shapes[f"layers.{layer}.bias"] = (fan_out,)
        return shapes


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingTerms:
    """How sites train between two sums.

    Attributes:
        rounds: Training rounds, 1..10000.
        local_epochs: Passes over a site's training patients per round.
        batch_size: Patients per SGD step.
        learning_rate: SGD step size.
        weight_decay: L2 penalty on weights (not on biases).
        proximal: FedProx coefficient mu; 0 is FedAvg.
        clip: Largest absolute change of a parameter in the first round; later ranges follow the last exact sum.
        seed: Public seed of initial model, hold-out split and batch order.
    """

    rounds: int = 20
    local_epochs: int = 2
    batch_size: int = 16
    learning_rate: float = 0.05
    weight_decay: float = 0.01
    proximal: float = 0.0
    clip: float = 4.0
    seed: int = 76

    def __post_init__(self) -> None:
        check_range("strategy.rounds", self.rounds, 1, MAX_ROUNDS)
        check_range("strategy.local_epochs", self.local_epochs, 1, 1000)
        check_range("strategy.batch_size", self.batch_size, 1, 1 << 20)
        check_range("strategy.learning_rate", self.learning_rate, 1e-9, 1e3)
        check_range("strategy.weight_decay", self.weight_decay, 0, 1e3)
        check_range("strategy.proximal", self.proximal, 0, 1e3)
        check_range("strategy.clip", self.clip, 2.0**-20, 2.0**20)
        check_range("strategy.seed", self.seed, 0, 2**32 - 1)
        _as_floats(self, "learning_rate", "weight_decay", "proximal", "clip")


@dataclass(frozen=True, slots=True, kw_only=True)
class CryptoTerms:
    """What the sums are asked to promise; the advisor turns it into CKKS parameters.

    Attributes:
        value_bits: Wanted exact signed bits per value; 21 at up to 16 sites takes the 32-bit prime.
        security_bits: Wanted classical security.
    """

    value_bits: int = 21
    security_bits: int = 128

    def __post_init__(self) -> None:
        check_range("crypto.value_bits", self.value_bits, MIN_VALUE_BITS, 32)
        check_range("crypto.security_bits", self.security_bits, 128, 128)


@dataclass(frozen=True, slots=True, kw_only=True)
class CohortTerms:
    """Who may be summed together.

    Attributes:
        tolerated_colluders: t, sites that may collude with the provider or each other.
        smallest_cohort: m, fewest sites in a sum; at least t + 2.
    """

    tolerated_colluders: int = 1
    smallest_cohort: int = 3

    def __post_init__(self) -> None:
        check_range("federation.cohort.tolerated_colluders", self.tolerated_colluders, 0, MAX_SITES - 2)
        check_range("federation.cohort.smallest_cohort", self.smallest_cohort, MIN_SITES, MAX_SITES)
        if self.smallest_cohort < self.tolerated_colluders + 2:
            raise ConfigurationError(
                f"federation.cohort.smallest_cohort = {self.smallest_cohort} must be at least tolerated_colluders + 2 "
                f"= {self.tolerated_colluders + 2}: a smaller sum gives colluders a single site's update"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """All that the agreement fixes beside the roster."""

    data: DataTerms
    model: ModelTerms = field(default_factory=ModelTerms)
    training: TrainingTerms = field(default_factory=TrainingTerms)
    crypto: CryptoTerms = field(default_factory=CryptoTerms)
    cohort: CohortTerms = field(default_factory=CohortTerms)
