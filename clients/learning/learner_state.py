"""What all sites hold in common after the same sums.

Trust: runs at a site; every site of the run knows it, the provider does not.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from clients.data.table import Values
from clients.learning.evaluation import COUNTS, FederatedMetrics
from clients.learning.optimisers import OptimiserState
from clients.learning.statistics import Standardisation
from protocol.packing import Integers

_METRIC_NAMES: Final = tuple(a.name for a in fields(FederatedMetrics) if a.name not in COUNTS)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LearnerState:
    """The shared side of learning: the same bits at every site.

    Attributes:
        standardisation: Mean and deviation of the features; None before the STATISTICS sum.
        model: float64 (P,), the shared values of the model.
        optimiser: What the optimiser remembers.
        step_exponents: int64 (T,), log2 of each tensor's grid step in the next TRAIN round.
        least_exponents: int64 (T,), log2 of the finest step that each tensor may still get.
        best_loss: Lowest training loss of a model over all sites so far, in nats; infinite before one is known.
        federated: Metrics of the last sum, of the model as it was *before* that sum; None before there are any.
    """

    standardisation: Standardisation | None = None
    model: Values = field(repr=False)
    step_exponents: Integers = field(repr=False)
    least_exponents: Integers = field(repr=False)
    optimiser: OptimiserState = field(default_factory=OptimiserState)
    best_loss: float = math.inf
    federated: FederatedMetrics | None = None

    def to_tensors(self) -> dict[str, npt.NDArray[Any]]:
        """Return the state as named float64 and int64 arrays; what is None has no name."""
        tensors: dict[str, npt.NDArray[Any]] = {
            "model": self.model,
            "step_exponents": self.step_exponents,
            "least_exponents": self.least_exponents,
            "best_loss": np.array([self.best_loss]),
            "optimiser.steps": np.array([self.optimiser.steps], dtype=np.int64),
            "optimiser.first": self.optimiser.first,
            "optimiser.second": self.optimiser.second,
        }
        if self.standardisation is not None:
            tensors["standardisation.mean"] = self.standardisation.mean
            tensors["standardisation.deviation"] = self.standardisation.deviation
            tensors["standardisation.records"] = np.array([self.standardisation.records], dtype=np.int64)
        if self.federated is not None:
            numbers = [getattr(self.federated, name) for name in _METRIC_NAMES]
            tensors["federated"] = np.array([math.nan if number is None else number for number in numbers])
            for name in COUNTS:
                tensors[f"federated.{name}"] = np.array(getattr(self.federated, name), dtype=np.int64)
        return tensors

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, npt.NDArray[Any]]) -> LearnerState:
        """Invert `to_tensors` exactly."""
        common = federated = None
        if "standardisation.mean" in tensors:
            common = Standardisation(
                mean=tensors["standardisation.mean"],
                deviation=tensors["standardisation.deviation"],
                records=int(tensors["standardisation.records"][0]),
            )
        if "federated" in tensors:
            values = tensors["federated"].tolist()
            numbers: list[Any] = [None if math.isnan(value) else value for value in values]
            named = dict(zip(_METRIC_NAMES, numbers, strict=True))
            named |= {name: tuple(tensors[f"federated.{name}"].tolist()) for name in COUNTS}
            federated = FederatedMetrics(**{**named, "records": int(named["records"])})
        return cls(
            standardisation=common,
            model=tensors["model"],
            step_exponents=tensors["step_exponents"],
            least_exponents=tensors["least_exponents"],
            optimiser=OptimiserState(
                steps=int(tensors["optimiser.steps"][0]),
                first=tensors["optimiser.first"],
                second=tensors["optimiser.second"],
            ),
            best_loss=float(tensors["best_loss"][0]),
            federated=federated,
        )

    def shared_digest(self) -> bytes:
        """Return SHA-256 over the state, each array framed by name, type and shape: no two states encode alike."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.to_tensors().items()):
            little_endian = np.ascontiguousarray(tensor, dtype=tensor.dtype.newbyteorder("<"))
            digest.update(f"{name} {little_endian.dtype.str} {little_endian.shape}\n".encode())
            digest.update(little_endian.tobytes())
        return digest.digest()
