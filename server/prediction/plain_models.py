"""Models whose weights the service knows, evaluated on encrypted records.

Trust: runs at the provider, on ciphertexts that it cannot read.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from protocol.errors import ParameterError
from protocol.prediction.backend import prediction_backend
from protocol.prediction.layout import QueryLayout
from protocol.prediction.messages import Query
from protocol.prediction.parameters import RECORD_RANGE, PredictionParameters
from server.prediction.ciphertexts import WORD_BYTES, load_ciphertexts
from server.prediction.kept import Kept

if TYPE_CHECKING:
    from protocol.prediction.backend import Ciphertext, Plaintext

Values = npt.NDArray[np.float64]

_MULTIPLIER_BYTES: Final = 16 << 20
"""Of one model's weights as its queries need them: for all sizes of queries to a model of 120 inputs."""


class PlainLinearModel:
    """Logistic regression.

    Args:
        parameters: Of predictions.
        weights: Shape (d,).
        bias: Added to each score; 0 if it is personal.

    Raises:
        ParameterError: Its scores do not fit the parameters, or it has no weight but zero.
    """

    def __init__(self, parameters: PredictionParameters, weights: Values, bias: float) -> None:
        _check_size("scores", RECORD_RANGE * np.abs(weights).sum() + abs(bias), parameters.largest_logit)
        self._weights = np.rint(weights * 2.0**parameters.weight_bits)
        if not self._weights.any():
            raise ParameterError("the model's weights are all zero: it gives everybody the same score")
        self._parameters = parameters
        self._backend = prediction_backend(parameters)
        self._primes = len(parameters.primes)
        self._bias = self._backend.encode(np.full(parameters.ring_degree, bias * parameters.sum_unit), self._primes)
        self._multipliers: Kept[tuple[QueryLayout, int], Plaintext | None] = Kept(_MULTIPLIER_BYTES)

    def evaluate(self, query: Query) -> Ciphertext:
        """Return the encrypted scores, with sums in between that nobody asked for."""
        layout = QueryLayout.of(self._parameters, inputs=len(self._weights), patients=query.header.patients)
        evaluator, total = self._backend.evaluator, None
        size = self._primes * self._parameters.ring_degree * WORD_BYTES
        for row, records in enumerate(load_ciphertexts(self._backend, query)):
            multiplier = self._multipliers.get((layout, row), partial(self._multiplier, row, layout), size)
            if multiplier is None:
                continue
            evaluator.multiply_plain_inplace(records, multiplier)
            if total is None:
                total = records
            else:
                evaluator.add_inplace(total, records)
        evaluator.add_plain_inplace(total, self._bias)
        return total

    def _multiplier(self, row: int, layout: QueryLayout) -> Plaintext | None:
        """Return w_0 - w_1 X^(N-b) - w_2 X^(N-2b) ... of a ciphertext's features; None if all are zero."""
        weights = self._weights[row * layout.features : (row + 1) * layout.features]
        if not weights.any():
            return None  # SEAL refuses to multiply by zero
        degree = self._parameters.ring_degree
        coefficients = np.zeros(degree)
        coefficients[0] = weights[0]
        coefficients[degree - layout.block * np.arange(1, len(weights))] = -weights[1:]
        return self._backend.encode(coefficients, self._primes)


class PlainQuadraticModel:
    """One hidden layer of h^2/8 + h/2 + 1/4 = (h + 2)^2/8 - 1/4, and a linear one.

    Args:
        parameters: Of predictions.
        hidden_weights: Shape (units, d).
        hidden_biases: Shape (units,).
        output_weights: Shape (units,).
        output_bias: 0 if it is personal.

    Raises:
        ParameterError: Its scores do not fit the parameters, or no unit depends on a record.
    """

    def __init__(
        self,
        parameters: PredictionParameters,
        *,
        hidden_weights: Values,
        hidden_biases: Values,
        output_weights: Values,
        output_bias: float,
    ) -> None:
        largest = RECORD_RANGE * np.abs(hidden_weights).sum(axis=1) + np.abs(hidden_biases + 2)
        _check_size("hidden units", largest.max(), parameters.largest_hidden)
        reach = np.abs(output_weights) * largest**2 / 8
        _check_size(
            "scores", reach.sum() + abs(output_bias) + np.abs(output_weights).sum() / 4, parameters.largest_logit
        )
        weights = np.rint(hidden_weights * 2.0**parameters.weight_bits)
        shifts = hidden_biases + 2
        outputs = np.rint(output_weights / 8 * 2.0**parameters.output_bits)
        is_used = weights.any(axis=1) & (outputs != 0)
        if not is_used.any():
            raise ParameterError("no hidden unit of the model depends on a record")
        self._parameters = parameters
        self._backend = backend = prediction_backend(parameters)
        outer, inner = len(parameters.primes), len(parameters.sum_primes)
        constant = output_bias - output_weights.sum() / 4 + (output_weights * shifts**2 / 8)[~is_used].sum()
        self._constant = backend.encode_scalar(constant * parameters.sum_unit, inner)
        hidden_scale = 2.0 ** (parameters.record_bits + parameters.weight_bits)
        self._units = [
            (
                [backend.encode_scalar(weight, outer) if weight else None for weight in row],
                backend.encode_scalar(shift * hidden_scale, outer),
                backend.encode_scalar(output, inner),
            )
            for row, shift, output in zip(weights[is_used], shifts[is_used], outputs[is_used], strict=True)
        ]

    def evaluate(self, query: Query) -> Ciphertext:
        """Return the encrypted scores."""
        backend, total = self._backend, None
        records = list(load_ciphertexts(backend, query))
        for weights, shift, output in self._units:
            unit = self._hidden(records, weights, shift)
            backend.evaluator.square_inplace(unit)
            backend.evaluator.multiply_plain_inplace(unit, output)
            if total is None:
                total = unit
            else:
                backend.evaluator.add_inplace(total, unit)
        backend.evaluator.add_plain_inplace(total, self._constant)
        return total

    def _hidden(self, records: list[Ciphertext], weights: list[Plaintext | None], shift: Plaintext) -> Ciphertext:
        backend, total = self._backend, None
        for record, weight in zip(records, weights, strict=True):
            if weight is None:
                continue
            product = backend.multiplied(record, weight)
            if total is None:
                total = product
            else:
                backend.evaluator.add_inplace(total, product)
        backend.evaluator.add_plain_inplace(total, shift)
        backend.drop(total, self._parameters.inner_primes)
        return total


def _check_size(what: str, got: float, limit: float) -> None:
    if not got <= limit:
        raise ParameterError(
            f"the model's {what} reach {got:.3g}, and the parameters hold {limit:.3g}: its weights are too large for "
            "standardised records; train it with weight decay"
        )
