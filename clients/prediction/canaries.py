"""Patients whose scores are known, hidden among the others: answers are not authenticated, and wrong ones show here.

A service that computes something else for a share s of the patients, without knowing whom, passes m canaries with a
probability of (1 - s)^m. One that is honest about the model but adds up slowly changing errors below the margin is not
found.

Trust: runs at the client, on records and scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from clients.prediction.records import Values
from protocol.errors import AnswerRefusedError, ConfigurationError
from protocol.prediction.description import ModelDescription

MARGIN: Final = 1e-4
"""What a known score may be off by itself, in the logit: known scores are often written with four digits."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Canaries:
    """Known patients.

    Attributes:
        features: float64 (m, d), in the columns' units; NaN where missing.
        logits: float64 (m,), their scores with everything that the reader adds.
    """

    features: Values
    logits: Values

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or self.logits.shape != self.features.shape[:1] or not len(self.logits):  # noqa: PLR2004  rows and columns
            raise ConfigurationError(
                f"canaries: features of shape {self.features.shape} and logits of shape {self.logits.shape}, where "
                "(m, d) and (m,) are needed, m > 0"
            )
        if not np.isfinite(self.logits).all():
            raise ConfigurationError("canaries: a known score is not a number")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Mixture:
    """A batch of patients with canaries among them.

    Attributes:
        records: float64 (n + m, d), standardised, in random order.
        order: int64 (n + m,): which of the patients and then the canaries lies there.
        known: float64 (m,): the canaries' scores.
    """

    records: Values
    order: npt.NDArray[np.int64]
    known: Values

    @classmethod
    def of(cls, patients: Values, description: ModelDescription, canaries: Canaries | None) -> Mixture:
        """Mix standardised patients, shape (n, d), with canaries at places that the operating system draws."""
        if canaries is None:
            return cls(records=patients, order=np.arange(len(patients)), known=np.empty(0))
        both = np.concatenate([patients, description.standardised(canaries.features)])
        order = np.random.default_rng().permutation(len(both))
        return cls(records=both[order], order=order, known=canaries.logits)

    def patients_scores(self, logits: Values, tolerance: float) -> Values:
        """Check the canaries' scores, shape (n + m,), and return the patients', shape (n,), in their order.

        Args:
            logits: As decrypted, with everything that the reader adds.
            tolerance: Largest error of an encrypted score.

        Raises:
            AnswerRefusedError: A canary has another score than it should have.
        """
        scores = np.empty_like(logits)
        scores[self.order] = logits
        patients = len(scores) - len(self.known)
        wrong = ~(np.abs(scores[patients:] - self.known) <= tolerance + MARGIN)  # NaN is wrong, too
        if wrong.any():
            raise AnswerRefusedError(
                f"scores of known patients: {wrong.sum()} of {len(wrong)} are wrong by more than "
                f"{tolerance + MARGIN:.0e}, so none of this answer can be trusted; are they from this very model?"
            )
        return scores[:patients]
