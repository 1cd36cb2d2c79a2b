"""How many patients have which score, without the cells of few, and what that still guarantees.

Mistakes are what sits in small cells: to read a measure off the other cells alone would make every model look better
than it is. So a measure is given as the interval that holds it wherever the patients of the small cells are.

Trust: runs at a site, on sums over all sites.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from clients.learning.intervals import DECISION_THRESHOLD
from protocol.errors import ValueRefusedError
from protocol.packing import HISTOGRAM_BINS

LARGEST_BOUND: Final = 0.25
"""What is known to no better than +- this is not known, and no report shows it as a number."""

BORDER: Final = int(DECISION_THRESHOLD * HISTOGRAM_BINS)
"""The first bin of patients who are called positive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelCells:
    """The patients of one label, summed over sites that each left its small cells out.

    Attributes:
        lower: Patients who are called negative.
        upper: Patients who are called positive.
        scores: Patients with a score in each of HISTOGRAM_BINS equal bins.
    """

    lower: int
    upper: int
    scores: tuple[int, ...]

    @property
    def count(self) -> int:
        """Patients whose label is known."""
        return self.lower + self.upper

    @property
    def hidden_lower(self) -> int:
        """Patients who are called negative, but in which bin is not known.

        A site that left the coarser cell out has left out every bin of it too, so these are all patients of sites that
        did not.
        """
        return self.lower - sum(self.scores[:BORDER])

    @property
    def hidden_upper(self) -> int:
        """Patients who are called positive, but in which bin is not known."""
        return self.upper - sum(self.scores[BORDER:])

    @property
    def highest(self) -> list[int]:
        """Patients by rising score, the hidden as high as can be.

        Besides the bins there are four places: below all, at the top of the lower half, at the bottom of the upper
        half, above all.
        """
        return [0, *self.scores[:BORDER], self.hidden_lower, 0, *self.scores[BORDER:], self.hidden_upper]

    @property
    def lowest(self) -> list[int]:
        """Patients in the same places, the hidden as low as can be."""
        return [self.hidden_lower, *self.scores[:BORDER], 0, self.hidden_upper, *self.scores[BORDER:], 0]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreCells:
    """Patients by label and score, summed over sites that each left its small cells out.

    Attributes:
        records: All patients, those of small cells included.
        positives: Those that are known to have label 1.
        negatives: Those that are known to have label 0.
    """

    records: int
    positives: LabelCells
    negatives: LabelCells

    @classmethod
    def of(
        cls,
        *,
        records: int,
        confusion: Sequence[int],
        positive_scores: Sequence[int],
        negative_scores: Sequence[int],
    ) -> ScoreCells:
        """Put summed fields of `clients.learning.evaluation.metric_sums` together.

        Raises:
            ValueRefusedError: A cell holds more patients than the one that it is part of.
        """
        true_positives, false_positives, true_negatives, false_negatives = confusion
        cells = cls(
            records=records,
            positives=LabelCells(lower=false_negatives, upper=true_positives, scores=tuple(positive_scores)),
            negatives=LabelCells(lower=true_negatives, upper=false_positives, scores=tuple(negative_scores)),
        )
        hidden = [part for label in (cells.positives, cells.negatives) for part in (*label.lowest, *label.highest)]
        if min(cells.unknown, *hidden) < 0:
            raise ValueRefusedError("fields confusion and scores: a cell holds more patients than it is part of")
        return cells

    @property
    def unknown(self) -> int:
        """Patients in small cells of the confusion counts: neither label nor score is known."""
        return self.records - self.positives.count - self.negatives.count

    def accuracy(self) -> tuple[float, float]:
        """Return the share of right decisions at DECISION_THRESHOLD, as middle and half width of what is possible."""
        half = self.unknown / 2
        return (self.positives.upper + self.negatives.lower + half) / self.records, half / self.records

    def auc(self) -> tuple[float, float] | tuple[None, None]:
        """Return the area under the ROC curve, as middle and half width of what is possible; None if a label is absent.

        At the lower end every patient whose place is not known stands where it costs most, and pairs within a bin are
        in the wrong order; at the upper end it is the opposite. The unknown then lose or win all of their pairs, so
        both ends are farthest out with the labels that make the most pairs.
        """
        positives, negatives = self.positives.count, self.negatives.count
        unknown_positives = min(max((negatives + self.unknown - positives) // 2, 0), self.unknown)
        pairs = (positives + unknown_positives) * (negatives + self.unknown - unknown_positives)
        if not pairs:
            return None, None
        surely_right = _pairs_above(self.positives.lowest, self.negatives.highest)
        surely_wrong = _pairs_above(self.negatives.lowest, self.positives.highest)
        return (pairs + surely_right - surely_wrong) / 2 / pairs, (pairs - surely_right - surely_wrong) / 2 / pairs


def _pairs_above(upper: Sequence[int], lower: Sequence[int]) -> int:
    """Count the pairs in which one of `upper` stands at a higher place than one of `lower`."""
    return sum(count * below for count, below in zip(upper[1:], accumulate(lower[:-1]), strict=True))
