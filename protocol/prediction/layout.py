"""How patients lie in a query's ciphertexts.

Linear models, on coefficients: a ciphertext is cut into blocks of a power of two that holds all patients, one feature
in each block. Multiplied by w_0 - w_1 X^(N-b) - w_2 X^(N-2b) - ..., the first block of length b becomes the sum over
all its features, because X^N = -1. The other blocks become sums that nobody asked for; the service blinds them.

Quadratic models, on slots: one ciphertext per feature, one patient per slot. Patients are repeated until the slots are
full: an empty slot would be answered with the score of an average patient.

Trust: public on both sides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from protocol.errors import LengthError
from protocol.prediction.parameters import PredictionParameters

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryLayout:
    """Where features and patients of one query lie.

    Attributes:
        ciphertexts: How many.
        features: In each ciphertext.
        block: Positions from one feature to the next.
    """

    ciphertexts: int
    features: int
    block: int

    @classmethod
    def of(cls, parameters: PredictionParameters, *, inputs: int, patients: int) -> Self:
        """Return the layout of a query.

        Args:
            parameters: Of the model.
            inputs: Number of features, d.
            patients: Number of patients, n.

        Raises:
            LengthError: No query holds so many patients.
        """
        if not 1 <= patients <= parameters.patients:
            raise LengthError("patients of a query", expected=f"1..{parameters.patients}", got=patients)
        if not parameters.is_linear:
            return cls(ciphertexts=inputs, features=1, block=parameters.ring_degree // 2)
        block = 1 << (patients - 1).bit_length()
        features = min(parameters.ring_degree // block, inputs)
        return cls(ciphertexts=-(-inputs // features), features=features, block=block)

    def arrange(self, records: Values, positions: int) -> Values:
        """Lay patients out on coefficients or slots.

        Args:
            records: Shape (n, d).
            positions: N coefficients or N/2 slots of a ciphertext.

        Returns:
            Shape (ciphertexts, positions).
        """
        patients, inputs = records.shape
        arranged = np.zeros((self.ciphertexts, positions))
        for feature in range(inputs):
            row, place = divmod(feature, self.features)
            block = arranged[row, place * self.block : (place + 1) * self.block]
            if self.features == 1:
                block[:] = np.resize(records[:, feature], len(block))
            else:
                block[:patients] = records[:, feature]
        return arranged
