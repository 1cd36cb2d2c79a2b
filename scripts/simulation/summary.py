"""What a run came to: how good the models are, what it cost, and whether the encrypted sums were right.

Trust: made by the simulation's observer, who alone may look into the directories of provider and sites at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from scripts.events import Outcome

SUMMARY_NAME: Final = "summary.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """How good a model's scores are on held-out patients.

    Attributes:
        auc: Area under the ROC curve; None if all patients have the same label.
        accuracy: Share of right decisions.
        brier: Mean squared distance between score and label.
        n: Number of patients.
    """

    auc: float | None
    accuracy: float
    brier: float
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The same patients, scored by two models.

    Attributes:
        local: By the model that a site trains alone; for pooled patients, by each one's own site's.
        federated: By the shared model.
    """

    local: Scores
    federated: Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteResult:
    """One site's part.

    Attributes:
        train_records: Patients that it trained with.
        test_records: Patients that it held out.
        scores: On the held-out patients.
        local_everywhere: Of the model it trained alone, on the held-out patients of all sites.
    """

    train_records: int
    test_records: int
    scores: Comparison
    local_everywhere: Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Bytes of a training round, mean over the rounds.

    Attributes:
        up_bytes_per_site_per_round: Sent by one site.
        down_bytes_per_site_per_round: Received by one site.
        up_bytes_per_value: Sent per value of the packing plan.
    """

    up_bytes_per_site_per_round: float
    down_bytes_per_site_per_round: float
    up_bytes_per_value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Seconds:
    """Time over the whole run.

    Attributes:
        total: From the provider's first event to its last.
        train: Training at a site, mean over sites.
        encrypt: Sealing updates at a site, mean over sites.
        aggregate: Adding at the provider.
        decrypt: Verifying and decrypting sums at a site, mean over sites.
    """

    total: float
    train: float
    encrypt: float
    aggregate: float
    decrypt: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Crypto:
    """The CKKS parameters of the run's sums; see `protocol.parameters.CkksParameters`."""

    ring_degree: int
    modulus_bits: int
    guard_bits: int
    value_bits: int
    security_bits: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Privacy:
    """What the noise of a run promises; see `clients.learning.epsilon`.

    Attributes:
        epsilon: Of the model updates of all rounds, given the statistics.
        delta: The delta that goes with it.
    """

    epsilon: float
    delta: float


def privacy_in_words(epsilon: float, delta: float) -> str:
    """Return epsilon with what it is about."""
    return f"epsilon {epsilon:.2f} at delta {delta:g} of the model updates, given the statistics"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checks:
    """Whether the encrypted run gave what it should.

    Attributes:
        max_abs_difference_from_plaintext: Largest difference between a parameter of the shared model and the one that
            the same run without encryption gives; None if that was not asked for, or noise was drawn, which no other
            run repeats.
        sites_bit_identical: Whether all sites hold the same shared model, byte for byte; None without models.
    """

    max_abs_difference_from_plaintext: float | None
    sites_bit_identical: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """All of it.

    Attributes:
        outcome: How the run ended.
        rounds: Training rounds that were summed.
        sites: Names of the sites that joined.
        model_parameters: Parameters of the shared model.
        pooled: Scores over all sites' held-out patients together; None without results.
        results: Site name -> its result, for the sites that have one.
        traffic: Bytes; None before the first training round.
        seconds: Times.
        crypto: CKKS parameters.
        privacy: What noise promises; None without noise.
        checks: Comparisons.
    """

    outcome: Outcome
    rounds: int
    sites: tuple[str, ...]
    model_parameters: int
    pooled: Comparison | None
    results: Mapping[str, SiteResult]
    traffic: Traffic | None
    seconds: Seconds
    crypto: Crypto
    privacy: Privacy | None
    checks: Checks

    @property
    def typical_local(self) -> Scores | None:
        """What a typical site reaches alone: medians over sites, each judged on all sites' held-out patients."""
        alone = [result.local_everywhere for result in self.results.values()]
        if not alone:
            return None
        known = [scores.auc for scores in alone if scores.auc is not None]
        return Scores(
            auc=median(known) if known else None,
            accuracy=median(scores.accuracy for scores in alone),
            brier=median(scores.brier for scores in alone),
            n=alone[0].n,
        )

    def as_json(self) -> dict[str, Any]:
        """Return the summary as nested objects of plain values."""
        pooled = self.pooled
        typical = self.typical_local
        return {
            "status": self.outcome.status.value,
            "reason": self.outcome.reason,
            "rounds": self.rounds,
            "sites": list(self.sites),
            "model": {"parameters": self.model_parameters},
            "metrics": {
                "global": asdict(pooled.federated) if pooled else None,
                "global_local": asdict(pooled.local) if pooled else None,
                "typical_local": asdict(typical) if typical else None,
                "sites": {
                    name: {
                        "records": {"train": result.train_records, "test": result.test_records},
                        **asdict(result.scores),
                        "local_everywhere": asdict(result.local_everywhere),
                    }
                    for name, result in self.results.items()
                },
            },
            "traffic": asdict(self.traffic) if self.traffic else None,
            "seconds": asdict(self.seconds),
            "crypto": asdict(self.crypto),
            "privacy": asdict(self.privacy) if self.privacy else None,
            "agreement": asdict(self.checks),
        }

    def write(self, run_directory: Path) -> None:
        """Write `SUMMARY_NAME` into the run directory."""
        text = json.dumps(self.as_json(), indent=2, allow_nan=False)
        (run_directory / SUMMARY_NAME).write_text(text + "\n", encoding="utf-8")
