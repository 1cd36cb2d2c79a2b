"""Models that the service holds encrypted under their owner's key, evaluated on records under the same key.

Each weight is a ciphertext of its own. Nothing is relinearised: an answer has one polynomial more than it has encrypted
factors, and its reader decrypts that. The last bias is the reader's to add.

Trust: runs at the provider, on models and records that it cannot read.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np

from protocol.prediction.backend import prediction_backend
from protocol.prediction.layout import QueryLayout
from protocol.prediction.messages import EncryptedModel, Query
from protocol.prediction.parameters import PredictionParameters
from protocol.prediction.wire import PAIR
from server.prediction.ciphertexts import WORD_BYTES, load_ciphertext, load_ciphertexts
from server.prediction.kept import Kept

if TYPE_CHECKING:
    from protocol.prediction.backend import Ciphertext

_MULTIPLIER_BYTES: Final = 16 << 20
"""Of one model's weights as its queries need them: for all sizes of queries to a model of 60 inputs."""


class EncryptedLinearModel:
    """Logistic regression.

    Args:
        parameters: Of predictions.
        weights: The weights of d inputs.
    """

    def __init__(self, parameters: PredictionParameters, weights: EncryptedModel) -> None:
        self._parameters = parameters
        self._weights = weights
        self._backend = prediction_backend(parameters)
        self._multipliers: Kept[tuple[QueryLayout, int], Ciphertext] = Kept(_MULTIPLIER_BYTES)

    def evaluate(self, query: Query) -> Ciphertext:
        """Return the encrypted scores."""
        layout = QueryLayout.of(self._parameters, inputs=len(self._weights.seeds), patients=query.header.patients)
        evaluator, total = self._backend.evaluator, None
        size = PAIR * len(self._parameters.primes) * self._parameters.ring_degree * WORD_BYTES
        for row, records in enumerate(load_ciphertexts(self._backend, query)):
            make = partial(self._multiplier, row, layout)
            evaluator.multiply_inplace(records, self._multipliers.get((layout, row), make, size))
            if total is None:
                total = records
            else:
                evaluator.add_inplace(total, records)
        return total

    def _multiplier(self, row: int, layout: QueryLayout) -> Ciphertext:
        """Return w_0 - w_1 X^(N-b) - w_2 X^(N-2b) ... of a ciphertext's features."""
        backend, degree = self._backend, self._parameters.ring_degree
        first = row * layout.features
        total = load_ciphertext(backend, self._weights, first)
        for place in range(1, min(layout.features, len(self._weights.seeds) - first)):
            monomial = np.zeros(degree)
            monomial[degree - place * layout.block] = -1.0
            weight = load_ciphertext(backend, self._weights, first + place)
            backend.evaluator.multiply_plain_inplace(weight, backend.encode(monomial, len(self._parameters.primes)))
            backend.evaluator.add_inplace(total, weight)
        return total


class EncryptedQuadraticModel:
    """One hidden layer of (h + 2)^2/8, and a linear one; the weights are those of h + 2 and an eighth of the last.

    Args:
        parameters: Of predictions.
        weights: Shape (units, d), (units,) and (units,), one after the other.
        inputs: d.
        units: Of the hidden layer.
    """

    def __init__(self, parameters: PredictionParameters, weights: EncryptedModel, inputs: int, units: int) -> None:
        self._parameters = parameters
        self._weights = weights
        self._inputs = inputs
        self._units = units
        self._backend = prediction_backend(parameters)
        self._record_unit = self._backend.encode_scalar(2.0**parameters.record_bits, len(parameters.primes))

    def evaluate(self, query: Query) -> Ciphertext:
        """Return the encrypted scores."""
        backend, evaluator, total = self._backend, self._backend.evaluator, None
        records = list(load_ciphertexts(backend, query))
        for unit in range(self._units):
            hidden = self._hidden(records, unit)
            score = backend.product(hidden, hidden)
            output = load_ciphertext(backend, self._weights, self._units * (self._inputs + 1) + unit)
            for _ in range(self._parameters.inner_primes):
                evaluator.mod_switch_to_next_inplace(output)
            evaluator.multiply_inplace(score, output)
            if total is None:
                total = score
            else:
                evaluator.add_inplace(total, score)
        return total

    def _hidden(self, records: list[Ciphertext], unit: int) -> Ciphertext:
        backend = self._backend
        total = load_ciphertext(backend, self._weights, self._units * self._inputs + unit)
        backend.evaluator.multiply_plain_inplace(total, self._record_unit)
        for place, record in enumerate(records):
            weight = load_ciphertext(backend, self._weights, unit * self._inputs + place)
            backend.evaluator.multiply_inplace(weight, record)
            backend.evaluator.add_inplace(total, weight)
        backend.drop(total, self._parameters.inner_primes)
        return total
