"""What a consortium fixes to keep sums from saying much about few patients, or any one: floors, and noise.

Trust: public on both sides.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocol.checks import check_range, keep_floats

_MOST_PATIENTS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyTerms:
    """How few patients are too few, and how much noise hides each.

    A sum over three sites minus one's own part is a sum over two, so what a sum says of a few patients is about them.

    Attributes:
        smallest_cell: Fewest patients that a site counts in one cell of a sum; a cell of fewer is left out before it is
            encrypted. 1 leaves none out.
        smallest_records: Fewest patients of a site that takes part.
        smallest_events: Fewest patients of either outcome at a site that takes part, if it has any of that outcome.
        noise_multiplier: Standard deviation of the noise in a training round's sum over the most that one patient can
            change it; 0 adds none. With noise a round is one step with the gradients of all patients.
        clip_norm: L2 norm that each patient's gradient is scaled down to.
        delta: The delta of differential privacy, for which epsilon is told.
    """

    smallest_cell: int = 5
    smallest_records: int = 10
    smallest_events: int = 5
    noise_multiplier: float = 0.0
    clip_norm: float = 1.0
    delta: float = 1e-5

    def __post_init__(self) -> None:
        check_range("privacy.smallest_cell", self.smallest_cell, 1, _MOST_PATIENTS)
        check_range("privacy.smallest_records", self.smallest_records, 2, _MOST_PATIENTS)
        check_range("privacy.smallest_events", self.smallest_events, 1, _MOST_PATIENTS)
        check_range("privacy.noise_multiplier", self.noise_multiplier, 0, 1e6)
        check_range("privacy.clip_norm", self.clip_norm, 1e-6, 1e6)
        check_range("privacy.delta", self.delta, 1e-15, 0.1)
        keep_floats(self, "noise_multiplier", "clip_norm", "delta")

    @property
    def has_noise(self) -> bool:
        """Whether sites add noise to their updates."""
        return self.noise_multiplier > 0
