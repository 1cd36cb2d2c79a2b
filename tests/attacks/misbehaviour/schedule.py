"""What a misbehaving provider does, drawn from a seed: the same seed is the same schedule, to the last bit flip.

In the manner of Janus' simulated faults (divviup/janus, integration tests): operations are drawn beforehand, plain
enough to print; what they act on is decided when they are carried out, from what the provider has seen by then and
from the operation's own seed.

Trust: tests only.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from protocol.envelope import Request

SITES: Final = 4
EVERYONE: Final = -1
_SEED_BITS: Final = 32
_OPENING: Final = (Request.ANNOUNCE, Request.ENTRUST, Request.OPEN)


class Fault(StrEnum):
    """What becomes of a message, or of the site that handles it."""

    HONEST = "honest"
    REQUEST_DROPPED = "request dropped"
    REPLY_DROPPED = "reply dropped"
    DELAYED = "delayed"
    DELIVERED_LATE = "an old message delivered"
    DUPLICATED = "duplicated"
    REORDERED = "reordered"
    ALTERED = "altered"
    ALTERED_OFTEN = "altered, again and again"
    EQUIVOCATED = "another story for this site"
    SPLIT = "a cohort for one half, another for the rest"
    RESTARTED = "site restarted"
    KILLED = "site killed"
    INTERLEAVED = "interleaved with another site's"


_WEIGHTS: Final = {
    Fault.HONEST: 8,
    Fault.REQUEST_DROPPED: 1,
    Fault.REPLY_DROPPED: 2,
    Fault.DELAYED: 2,
    Fault.DELIVERED_LATE: 4,
    Fault.DUPLICATED: 2,
    Fault.REORDERED: 2,
    Fault.ALTERED: 8,
    Fault.ALTERED_OFTEN: 2,
    Fault.EQUIVOCATED: 8,
    Fault.SPLIT: 1,
    Fault.RESTARTED: 2,
    Fault.KILLED: 6,
    Fault.INTERLEAVED: 3,
}


class Stage(StrEnum):
    """How far the run is when the misbehaviour starts."""

    FOUNDED = "founded"
    OPENED = "opened"
    PREPARED = "statistics prepared"
    STARTED = "training prepared"
    LAST = "evaluation prepared"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One thing that the provider does.

    Attributes:
        fault: What.
        site: To whom; EVERYONE for each site in turn.
        request: What it asks; None for the honest next step of that site.
        other_run: Whether it asks in the agreement's other run.
        seed: Decides the details.
    """

    fault: Fault
    site: int
    request: Request | None
    other_run: bool
    seed: int

    def __str__(self) -> str:
        site = "everyone" if self.site == EVERYONE else f"site {self.site}"
        asked = "next step" if self.request is None else str(self.request)
        return f"{self.fault}: {asked} to {site}{' in the other run' if self.other_run else ''} [{self.seed}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A sequence of operations.

    Attributes:
        seed: Reproduces it.
        stage: Where it starts.
        smallest_cohort: 3, or 2, with which four sites can be split into two cohorts.
        operations: In order.
        ends_honest: Whether the provider turns honest afterwards and completes the run.
    """

    seed: int
    stage: Stage
    smallest_cohort: int
    operations: tuple[Operation, ...]
    ends_honest: bool

    def __str__(self) -> str:
        head = f"schedule {self.seed}: {self.stage}, cohorts of {self.smallest_cohort} or more"
        lines = [f"  {number:2}. {operation}" for number, operation in enumerate(self.operations)]
        return "\n".join([head, *lines, *(["  then honest to the end"] if self.ends_honest else [])])


def schedule_of(seed: int) -> Schedule:
    """Draw the schedule of a seed."""
    rng = random.Random(seed)
    (stage,) = rng.choices(list(Stage), weights=[3, 2, 3, 4, 3])
    smallest_cohort = rng.choice([3, 3, 2])
    operations = []
    if smallest_cohort == 2 and stage is Stage.STARTED and rng.random() < 0.5:
        operations = [_for_everyone(rng, fault) for fault in (Fault.SPLIT, Fault.HONEST, Fault.HONEST)]
    requests = _OPENING if stage is Stage.FOUNDED and rng.random() < 0.5 else tuple(Request)
    operations += [_operation(rng, requests) for _ in range(rng.randint(3, 9))]
    return Schedule(
        seed=seed,
        stage=stage,
        smallest_cohort=smallest_cohort,
        operations=tuple(operations),
        ends_honest=rng.random() < 0.05,
    )


def _operation(rng: random.Random, requests: Sequence[Request]) -> Operation:
    (fault,) = rng.choices(list(_WEIGHTS), weights=list(_WEIGHTS.values()))
    if fault is Fault.SPLIT or (fault is Fault.HONEST and rng.random() < 0.3):
        return _for_everyone(rng, fault)
    return Operation(
        fault=fault,
        site=rng.randrange(SITES),
        request=None if rng.random() < 0.7 else rng.choice(requests),
        other_run=rng.random() < 0.05,
        seed=rng.getrandbits(_SEED_BITS),
    )


def _for_everyone(rng: random.Random, fault: Fault) -> Operation:
    return Operation(fault=fault, site=EVERYONE, request=None, other_run=False, seed=rng.getrandbits(_SEED_BITS))
