"""Apply the mean change to the shared model: server optimisers, run at every site.

The provider cannot run them, for it cannot see the sum. Every site does, on the same exact sum and with the same bits:
float64, elementwise + - * / and square roots only, powers by repeated multiplication, no reduction.

Sources: FedAvgM, Hsu et al. (2019), https://arxiv.org/abs/1909.06335; FedAdagrad, FedAdam and FedYogi, Reddi et al.,
Adaptive Federated Optimization (ICLR 2021), with FedAdam's bias correction as in Flower.

Trust: runs at a site; every site of the run knows the result, the provider does not.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from clients.data.table import Values
from protocol.terms import OptimiserTerms


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OptimiserState:
    """What an optimiser remembers between two sums.

    Attributes:
        steps: Sums applied.
        first: float64 (P,), the last step (fedavgm) or the first moment; empty before one, and for fedavg.
        second: float64 (P,), the second moment; empty where there is none.
    """

    steps: int = 0
    first: Values = field(default_factory=lambda: np.zeros(0), repr=False)
    second: Values = field(default_factory=lambda: np.zeros(0), repr=False)


def apply_change(
    terms: OptimiserTerms, model: Values, change: Values, state: OptimiserState
) -> tuple[Values, OptimiserState]:
    """Return the model after one step, and what to remember.

    Args:
        terms: The optimiser.
        model: float64 (P,).
        change: float64 (P,), the sites' weighted mean change.
        state: What the optimiser remembers.
    """
    steps = state.steps + 1
    if terms.kind == "fedavg":
        return model + terms.learning_rate * change, OptimiserState(steps=steps)
    before = state if state.steps else OptimiserState(first=np.zeros_like(change), second=np.zeros_like(change))
    if terms.kind == "fedavgm":
        velocity = terms.momentum * before.first + change
        return model + terms.learning_rate * velocity, OptimiserState(steps=steps, first=velocity)
    square = change * change
    if terms.kind == "fedadagrad":
        first, second, rate = change, before.second + square, terms.learning_rate
    else:
        first = terms.beta_1 * before.first + (1 - terms.beta_1) * change
        if terms.kind == "fedadam":
            second = terms.beta_2 * before.second + (1 - terms.beta_2) * square
            # with one power more than Kingma and Ba, as Flower has it
            rate = terms.learning_rate * float(
                np.sqrt(1 - _power(terms.beta_2, steps + 1)) / (1 - _power(terms.beta_1, steps + 1))
            )
        else:
            second = before.second - (1 - terms.beta_2) * square * np.sign(before.second - square)
            rate = terms.learning_rate
    moved = model + rate * first / (np.sqrt(second) + terms.tau)
    kept = np.zeros(0) if terms.kind == "fedadagrad" else first
    return moved, OptimiserState(steps=steps, first=kept, second=second)


def _power(base: float, exponent: int) -> float:
    """Return base ** exponent by repeated multiplication: libraries differ in the last bit of pow."""
    power = 1.0
    for _ in range(exponent):
        power *= base
    return power
