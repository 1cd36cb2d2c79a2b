"""Sum the gradients of one site's patients, each so short that none weighs more than agreed.

Trust: runs at a site and sees patients' records. The sum depends on them and leaves only with noise, and encrypted.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch.func import functional_call, grad, vmap
from torch.nn.functional import binary_cross_entropy_with_logits

from clients.data.table import Labels, Values
from clients.learning.models import Network, load_values
from protocol.errors import ValueRefusedError
from protocol.packing import Integers
from protocol.terms import ModelTerms

GRADIENT_BITS: Final = 40
"""Fixed-point bits of a patient's gradient below the longest one; sums of 2^22 patients still fit 64-bit integers."""

_MOST_VALUES: Final = 1 << 23
"""Values of patients' gradients that are in memory at once."""


def clipped_gradient_sum(
    model: ModelTerms, values: Values, features: npt.NDArray[np.float32], labels: Labels, *, clip_norm: float
) -> Integers:
    """Return the sum of patients' loss gradients, each scaled down to an L2 norm of at most clip_norm.

    Every gradient is cut to fixed point before it is added. That makes it no longer, and the sum of integers is exact:
    one patient more or less changes it by that patient's gradient and nothing else.

    Source: Abadi et al., Deep Learning with Differential Privacy (2016), algorithm 1, with all patients as one lot.

    Args:
        model: The architecture.
        values: All of the model's parameters, float64 (P,).
        features: float32 (n, d), standardised.
        labels: int8 (n,), 0 or 1.
        clip_norm: Largest norm of a patient's gradient, > 0.

    Returns:
        int64 (P,), in units of 2^-GRADIENT_BITS of clip_norm.

    Raises:
        ValueRefusedError: A gradient is NaN or infinite.
    """
    torch.set_num_threads(1)  # several threads would add up in an order, and to bits, that change from run to run
    network = Network(model, features.shape[1]).double()
    load_values(network, values)
    parameters = {name: parameter.detach() for name, parameter in network.named_parameters()}

    def loss(at: dict[str, torch.Tensor], patient: torch.Tensor, outcome: torch.Tensor) -> torch.Tensor:
        logits = functional_call(network, at, (patient.unsqueeze(0),))
        return binary_cross_entropy_with_logits(logits, outcome.unsqueeze(0))

    gradients_of = vmap(grad(loss), in_dims=(None, 0, 0))
    total = np.zeros(len(values), dtype=np.int64)
    rows = max(1, _MOST_VALUES // len(values))
    for first in range(0, len(labels), rows):
        chunk = slice(first, first + rows)
        gradients = gradients_of(
            parameters,
            torch.tensor(features[chunk], dtype=torch.float64),
            torch.tensor(labels[chunk], dtype=torch.float64),
        )
        flat = torch.cat([gradients[name].flatten(1) for name in parameters], dim=1).numpy()
        with np.errstate(over="ignore", invalid="ignore"):  # refused by name below
            norms = np.linalg.norm(flat, axis=1, keepdims=True)
        if not np.isfinite(norms).all():
            raise ValueRefusedError("gradient: NaN or infinite value; the run diverged")
        # a last bit below, so that no rounding makes a clipped gradient too long
        scaled = flat * ((1 - 2.0**-48) / np.maximum(norms, clip_norm))
        total += np.trunc(scaled * 2.0**GRADIENT_BITS).astype(np.int64).sum(axis=0)
    return total
