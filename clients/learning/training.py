"""Train the shared model on one site's patients.

Trust: runs at a site and sees patients' records. The result depends on them and leaves only inside an encrypted sum.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from clients.data.table import Labels, Values
from clients.learning.models import Network, flat_values, load_values
from protocol.terms import ModelTerms, TrainingTerms


def train(
    model: ModelTerms,
    start: Values,
    features: npt.NDArray[np.float32],
    labels: Labels,
    training: TrainingTerms,
    *,
    epochs: int,
    rng: np.random.Generator,
) -> Values:
    """Run plain SGD in float32; the same arguments give the same bits in every process of a machine.

    With `training.proximal` > 0 each step also pulls shared tensors towards `start` (FedProx, Li et al., MLSys 2020).

    Args:
        model: The architecture.
        start: float64 (P,), rounded to float32.
        features: float32 (n, d), standardised.
        labels: int8 (n,), 0 or 1.
        training: Batch size, learning rate, weight decay (on weights, not biases) and proximal coefficient.
        epochs: Passes over the rows.
        rng: Draws the batch order.

    Returns:
        float64 (P,) of float32 values. NaN or infinite where training diverged: the grid refuses them later.
    """
    torch.set_num_threads(1)  # several threads would add up in an order, and to bits, that change from run to run
    network = Network(model, features.shape[1])
    load_values(network, start)
    names, parameters = zip(*network.named_parameters(), strict=True)
    origins = [parameter.detach().clone() for parameter in parameters]
    inputs = torch.tensor(features)
    outcomes = torch.tensor(labels, dtype=torch.float32)
    for _ in range(epochs):
        order = torch.tensor(rng.permutation(len(labels)))
        for first in range(0, len(labels), training.batch_size):
            batch = order[first : first + training.batch_size]
            loss = binary_cross_entropy_with_logits(network(inputs[batch]), outcomes[batch])
            gradients = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                for name, parameter, origin, slope in zip(names, parameters, origins, gradients, strict=True):
                    step = slope
                    if training.weight_decay and parameter.dim() > 1:
                        step = step.add(parameter, alpha=training.weight_decay)
                    if training.proximal and name not in model.personal:
                        step = step.add(parameter - origin, alpha=training.proximal)
                    parameter.sub_(step, alpha=training.learning_rate)
    return flat_values(network)
