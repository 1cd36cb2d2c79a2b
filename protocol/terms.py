"""What a consortium fixes before it starts: the plain, checked values that an agreement pins.

Each class checks itself when it is made, so a value of one of these types is a valid one. `conf/` registers the same
classes as Hydra schemas; there is no second definition to keep in step.

Trust: public on both sides.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from math import prod

from protocol.checks import check_choice, check_range, keep_floats
from protocol.data_terms import DataTerms
from protocol.errors import ConfigurationError
from protocol.parameters import MAX_SITES, MIN_SITES, MIN_VALUE_BITS
from protocol.privacy_terms import PrivacyTerms

MAX_ROUNDS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelTerms:
    """Architecture of the shared model; its outputs are logits.

    Attributes:
        kind: "logistic_regression" or "mlp".
        hidden: Widths of the hidden layers; empty for logistic regression.
        activation: What hidden units make of their sum h: "relu", also if an mlp's is left empty, or "quadratic",
            h^2/8 + h/2 + 1/4, which can be computed on encrypted patients; empty for logistic regression.
        personal: Tensors that each site trains for itself and never sends, such as "output.bias".
    """

    kind: str = "logistic_regression"
    hidden: tuple[int, ...] = ()
    activation: str = ""
    personal: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        object.__setattr__(self, "personal", tuple(self.personal))
        check_choice("model.kind", self.kind, ("logistic_regression", "mlp"))
        for width in self.hidden:
            check_range("model.hidden", width, 1, 1 << 20)
        if (self.kind == "mlp") != bool(self.hidden):
            raise ConfigurationError(f"model.hidden = {list(self.hidden)} does not fit model.kind = {self.kind!r}")
        self._check_activation()
        names = tuple(self.tensor_shapes(1))
        for name in self.personal:
            check_choice("model.personal", name, names)
        if len(set(self.personal)) != len(self.personal) or len(self.personal) == len(names):
            raise ConfigurationError("model.personal names a tensor twice, or leaves nothing to be shared")

    def _check_activation(self) -> None:
        if not self.hidden:
            if self.activation:
                raise ConfigurationError(f"model.activation = {self.activation!r}, but the model has no hidden layer")
            return
        object.__setattr__(self, "activation", self.activation or "relu")  # equal terms have one encoding
        check_choice("model.activation", self.activation, ("relu", "quadratic"))
        # each further layer doubles the polynomial's degree: two learnt heart disease no better than one (AUC 0.910),
        # three learnt less (0.806) and diverged over cells in a wrong unit; and ciphertexts can be squared once
        if self.activation == "quadratic" and len(self.hidden) > 1:
            raise ConfigurationError(
                f"model.hidden = {list(self.hidden)}: model.activation = 'quadratic' takes one hidden layer"
            )

    def tensor_shapes(self, inputs: int) -> dict[str, tuple[int, ...]]:
        """Name and shape of each tensor, in order."""
        widths = [inputs, *self.hidden, 1]
        layers = [*(f"hidden.{layer}" for layer in range(len(self.hidden))), "output"]
        shapes: dict[str, tuple[int, ...]] = {}
        for layer, (fan_in, fan_out) in zip(layers, pairwise(widths), strict=True):
            shapes[f"{layer}.weight"] = (fan_out, fan_in)
            shapes[f"{layer}.bias"] = (fan_out,)
        return shapes

    def shared_shapes(self, inputs: int) -> dict[str, tuple[int, ...]]:
        """Name and shape of each tensor that is summed, in the order in which they are packed."""
        shapes = self.tensor_shapes(inputs)
        return {name: shape for name, shape in shapes.items() if name not in self.personal}


OPTIMISERS = ("fedavg", "fedavgm", "fedadagrad", "fedadam", "fedyogi")


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimiserTerms:
    """What every site makes of the mean change, in the same way, before the next round.

    Attributes:
        kind: "fedavg" adds it; the others follow Hsu et al. (2019) and Reddi et al. (ICLR 2021).
        learning_rate: Step size on the mean change; 1 adds it as it is.
        momentum: Share of the last step that is kept (fedavgm).
        beta_1: Share of the first moment that is kept (fedadam, fedyogi).
        beta_2: Share of the second moment that is kept (fedadam, fedyogi).
        tau: Added to the root of the second moment; the larger, the less adaptive.
    """

    kind: str = "fedavg"
    learning_rate: float = 1.0
    momentum: float = 0.9
    beta_1: float = 0.9
    beta_2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        check_choice("strategy.optimiser.kind", self.kind, OPTIMISERS)
        check_range("strategy.optimiser.learning_rate", self.learning_rate, 1e-9, 1e3)
        check_range("strategy.optimiser.momentum", self.momentum, 0, 0.9999)
        check_range("strategy.optimiser.beta_1", self.beta_1, 0, 0.9999)
        check_range("strategy.optimiser.beta_2", self.beta_2, 0, 0.9999)
        check_range("strategy.optimiser.tau", self.tau, 1e-9, 1e3)
        keep_floats(self, "learning_rate", "momentum", "beta_1", "beta_2", "tau")


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
        optimiser: How sites apply the mean change.
    """

    rounds: int = 20
    local_epochs: int = 2
    batch_size: int = 16
    learning_rate: float = 0.05
    weight_decay: float = 0.01
    proximal: float = 0.0
    clip: float = 4.0
    seed: int = 76
    optimiser: OptimiserTerms = field(default_factory=OptimiserTerms)

    def __post_init__(self) -> None:
        check_range("strategy.rounds", self.rounds, 1, MAX_ROUNDS)
        check_range("strategy.local_epochs", self.local_epochs, 1, 1000)
        check_range("strategy.batch_size", self.batch_size, 1, 1 << 20)
        check_range("strategy.learning_rate", self.learning_rate, 1e-9, 1e3)
        check_range("strategy.weight_decay", self.weight_decay, 0, 1e3)
        check_range("strategy.proximal", self.proximal, 0, 1e3)
        check_range("strategy.clip", self.clip, 2.0**-20, 2.0**20)
        check_range("strategy.seed", self.seed, 0, 2**32 - 1)
        keep_floats(self, "learning_rate", "weight_decay", "proximal", "clip")


@dataclass(frozen=True, slots=True, kw_only=True)
class CryptoTerms:
    """What the sums are asked to promise; the advisor turns it into CKKS parameters.

    Attributes:
        value_bits: Wanted exact signed bits per value; 21 at up to 16 sites takes the 32-bit prime.
        security_bits: Wanted classical security.
        epoch_rounds: Rounds after which sites move to fresh keys and delete the old ones; 0 for one epoch per run.
        largest_seeded_cohort: Cohorts of up to so many sites get each other's seeds with a sum, and expand them; in
            larger ones the provider expands them and adds up the second polynomials too.
    """

    value_bits: int = 21
    security_bits: int = 128
    epoch_rounds: int = 0
    largest_seeded_cohort: int = 16

    def __post_init__(self) -> None:
        check_range("crypto.value_bits", self.value_bits, MIN_VALUE_BITS, 32)
        check_range("crypto.security_bits", self.security_bits, 128, 128)
        check_range("crypto.epoch_rounds", self.epoch_rounds, 0, MAX_ROUNDS)
        check_range("crypto.largest_seeded_cohort", self.largest_seeded_cohort, 1, MAX_SITES)


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

    @property
    def honest_sites(self) -> int:
        """Sites of a cohort, at least, whose part no reader of its sum knows; every site reads it and knows its own."""
        return self.smallest_cohort - max(self.tolerated_colluders, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """All that the agreement fixes beside the roster."""

    data: DataTerms
    model: ModelTerms = field(default_factory=ModelTerms)
    training: TrainingTerms = field(default_factory=TrainingTerms)
    crypto: CryptoTerms = field(default_factory=CryptoTerms)
    cohort: CohortTerms = field(default_factory=CohortTerms)
    privacy: PrivacyTerms = field(default_factory=PrivacyTerms)

    def __post_init__(self) -> None:
        if self.privacy.has_noise and self.model.personal:
            raise ConfigurationError(
                "privacy.noise_multiplier > 0 and model.personal exclude each other: with noise, all values are shared"
            )

    @property
    def shared_values(self) -> int:
        """Number of values of the model that are summed."""
        return sum(prod(shape) for shape in self.model.shared_shapes(len(self.data.inputs)).values())

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, hex: by it a run says which terms it follows, without anything to parse."""
        canonical = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()
