"""The shared model as a torch module, and as the flat vector that is trained, summed and released.

Trust: runs at a site. The architecture is public; the parameters are known to sites only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import torch

from clients.data.table import Values
from protocol.errors import ValueRefusedError
from protocol.terms import ModelTerms


class Network(torch.nn.Module):
    """Fully connected layers, the activation between them, one logit at the end; one layer is logistic regression.

    The parameters are not initialised; `load_values` sets them.

    Args:
        terms: The architecture.
        inputs: Number of features, d.
    """

    def __init__(self, terms: ModelTerms, inputs: int) -> None:
        super().__init__()
        widths = [inputs, *terms.hidden]
        self.hidden = torch.nn.ModuleList(_linear(fan_in, fan_out) for fan_in, fan_out in pairwise(widths))
        self.output = _linear(widths[-1], 1)
        self._activation = quadratic if terms.activation == "quadratic" else torch.relu

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the logits, shape (n,), of features of shape (n, d)."""
        signal = features
        for layer in self.hidden:
            signal = self._activation(layer(signal))
        logits: torch.Tensor = self.output(signal)
        return logits.squeeze(1)


def quadratic(signal: torch.Tensor) -> torch.Tensor:
    """Return h^2/8 + h/2 + 1/4 of each h, softplus up to its second order but for the constant.

    A ciphertext can be squared, but neither compared nor exponentiated. (h + 2)^2/8 - 1/4 is the same.
    """
    return (signal * 0.125 + 0.5) * signal + 0.25


def _linear(fan_in: int, fan_out: int) -> torch.nn.Linear:
    return torch.nn.Linear(fan_in, fan_out, device="meta").to_empty(device="cpu")


class ParameterLayout:
    """Which of a model's values are shared and which stay at the site.

    Args:
        terms: The architecture, and the names of personal tensors.
        inputs: Number of features, d.

    Attributes:
        shapes: Shape of each tensor, in order.
        slices: Where each tensor lies in the vector of all P values.
        shared_slices: Where each shared tensor lies in the vector of shared values.
    """

    def __init__(self, terms: ModelTerms, inputs: int) -> None:
        self.shapes = terms.tensor_shapes(inputs)
        self.slices = tensor_slices(self.shapes)
        self.shared_slices = tensor_slices(terms.shared_shapes(inputs))
        self._is_shared = np.concatenate(
            [np.full(math.prod(shape), name not in terms.personal) for name, shape in self.shapes.items()]
        )

    def split(self, values: Values) -> tuple[Values, Values]:
        """Return the shared and the personal values of a vector of all P."""
        return values[self._is_shared], values[~self._is_shared]

    def join(self, shared: Values, personal: Values) -> Values:
        """Invert `split`."""
        values = np.empty(len(self._is_shared))
        values[self._is_shared] = shared
        values[~self._is_shared] = personal
        return values


def tensor_slices(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, slice]:
    """Return where each tensor lies in the flat vector, tensors in the given order."""
    slices = {}
    offset = 0
    for name, shape in shapes.items():
        slices[name] = slice(offset, offset + math.prod(shape))
        offset += math.prod(shape)
    return slices


def tensors_of(shapes: Mapping[str, tuple[int, ...]], values: Values) -> dict[str, Values]:
    """Return the named tensors of a flat vector, tensors in the order of their shapes."""
    return {name: values[place].reshape(shapes[name]) for name, place in tensor_slices(shapes).items()}


def initial_values(terms: ModelTerms, inputs: int, seed: int) -> Values:
    """Return the model that every site starts from.

    Args:
        terms: The architecture.
        inputs: Number of features, d.
        seed: The agreement's public seed.

    Returns:
        float64 (P,): zeros for logistic regression; otherwise uniform within 1/sqrt(inputs of the layer), each value
        representable in float32.
    """
    shapes = terms.tensor_shapes(inputs)
    if terms.kind == "logistic_regression":
        return np.zeros(sum(math.prod(shape) for shape in shapes.values()))
    generator = np.random.Generator(np.random.PCG64(seed))
    widths = [inputs, *terms.hidden, 1]
    layers = []
    for fan_in, fan_out in pairwise(widths):
        bound = 1 / math.sqrt(fan_in)
        layers.append(generator.uniform(-bound, bound, size=fan_out * fan_in + fan_out))
    return np.concatenate(layers).astype(np.float32).astype(np.float64)


def load_values(network: Network, values: Values) -> None:
    """Set all parameters from a flat vector, rounded to the network's precision.

    Args:
        network: Changed in place.
        values: float64 (P,).

    Raises:
        ValueRefusedError: The vector has another length.
    """
    parameters = dict(network.named_parameters())
    slices = tensor_slices({name: tuple(parameter.shape) for name, parameter in parameters.items()})
    count = sum(parameter.numel() for parameter in parameters.values())
    if values.shape != (count,):
        raise ValueRefusedError(f"model: expected {count} values, got an array of shape {values.shape}")
    flat = torch.tensor(values)
    with torch.no_grad():
        for name, place in slices.items():
            parameters[name].copy_(flat[place].view(parameters[name].shape))


def flat_values(network: Network) -> Values:
    """Return all parameters as one float64 vector of shape (P,)."""
    flat = torch.cat([parameter.detach().reshape(-1) for parameter in network.parameters()])
    return flat.to(torch.float64).numpy()
