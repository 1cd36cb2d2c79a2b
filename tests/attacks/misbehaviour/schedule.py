"""What a misbehaving provider does, drawn from a seed: the same seed is the same schedule, to the last bit flip.

In the manner of Janus' simulated faults (divviup/janus, integration tests): operations are drawn beforehand, plain
enough to print; what they act on is decided when they are carried out, from what the provider has seen by then and
from the operation's own seed.

Trust: tests only.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from protocol.envelope import Request
from protocol.parameters import MIN_SITES

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
    GIVEN_UP = "a site is asked to give its upload up, and others are told"
    FALSELY_GIVEN_UP = "a void note that is false or forged"
    OVERRULED = "people overrule a site"
    REGROUPED = "a cohort without somebody"


_WEIGHTS: Final = {
    Fault.HONEST: 8,
    Fault.REQUEST_DROPPED: 1,
    Fault.REPLY_DROPPED: 2,
    Fault.DELAYED: 2,
    Fault.DELIVERED_LATE: 4,
    Fault.DUPLICATED: 2,
    Fault.REORDERED: 2,
    Fault.ALTERED: 8,
    Fault.ALTERED_OFTEN: 3,
    Fault.EQUIVOCATED: 8,
    Fault.SPLIT: 1,
    Fault.RESTARTED: 2,
    Fault.KILLED: 6,
    Fault.INTERLEAVED: 3,
    Fault.GIVEN_UP: 3,
    Fault.FALSELY_GIVEN_UP: 4,
    Fault.OVERRULED: 2,
    Fault.REGROUPED: 3,
}
_WAYS_TO_GIVE_UP: Final = (Fault.GIVEN_UP, Fault.FALSELY_GIVEN_UP, Fault.FALSELY_GIVEN_UP, Fault.OVERRULED)


class Stage(StrEnum):
    """How far the run is when the misbehaviour starts."""

    FOUNDED = "founded"
    OPENED = "opened"
    PREPARED = "statistics prepared"
    STARTED = "training prepared"
    LAST = "evaluation prepared"


_WITH_A_ROUND: Final = (Stage.PREPARED, Stage.STARTED, Stage.LAST)


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
        epoch_rounds: Rounds between two key epochs; 0 for one epoch.
        insider: A site that signs void notes for the provider whenever it likes; None where no colluder is tolerated.
        operations: In order.
        ends_honest: Whether the provider turns honest afterwards and completes the run.
    """

    seed: int
    stage: Stage
    smallest_cohort: int
    epoch_rounds: int
    insider: int | None
    operations: tuple[Operation, ...]
    ends_honest: bool

    def __str__(self) -> str:
        epochs = "an epoch for each round" if self.epoch_rounds else "one epoch"
        insider = "nobody" if self.insider is None else f"site {self.insider}"
        head = (
            f"schedule {self.seed}: {self.stage}, cohorts of {self.smallest_cohort} or more, {epochs}, "
            f"{insider} in league with the provider"
        )
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
    if stage in _WITH_A_ROUND and rng.random() < 0.3:
        operations += _two_sums(rng, in_two_runs=stage is Stage.PREPARED and rng.random() < 0.4)
    requests = _OPENING if stage is Stage.FOUNDED and rng.random() < 0.7 else tuple(Request)
    operations += [_operation(rng, requests) for _ in range(rng.randint(2, 7))]
    return Schedule(
        seed=seed,
        stage=stage,
        smallest_cohort=smallest_cohort,
        epoch_rounds=rng.choice([0, 0, 1]),
        insider=rng.randrange(SITES) if smallest_cohort > MIN_SITES and rng.random() < 0.5 else None,
        operations=tuple(operations),
        ends_honest=rng.random() < 0.05,
    )


def _two_sums(rng: random.Random, *, in_two_runs: bool) -> list[Operation]:
    """Draw what leads to two sums of one round, in one run or in two, with somebody given up between them."""
    first = _for_everyone(rng, rng.choice([Fault.HONEST, Fault.REGROUPED]))
    give_up = replace(_for_everyone(rng, rng.choice(_WAYS_TO_GIVE_UP)), site=rng.randrange(SITES))
    prepare, second = _for_everyone(rng, Fault.HONEST), _for_everyone(rng, Fault.REGROUPED)
    if in_two_runs:
        give_up = replace(give_up, fault=rng.choice([Fault.FALSELY_GIVEN_UP, Fault.OVERRULED]))
        return [first, *(replace(operation, other_run=True) for operation in (give_up, prepare, second))]
    return [first, give_up, second]


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
