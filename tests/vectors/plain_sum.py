"""Sites that learn together without encryption: contributions are added as plain integers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clients.data.table import Values
from clients.learning.learner import Learner
from clients.learning.learner_state import LearnerState
from protocol.packing import Integers, RoundKind


def summed(learners: Sequence[Learner], state: LearnerState, kind: RoundKind, round_number: int) -> Integers:
    """Return the sum of the sites' contributions, each with the personal values it starts from."""
    return np.sum(
        [learner.contribution(state, learner.initial_personal(), kind, round_number).packed for learner in learners],
        axis=0,
    )


def after_statistics(learners: Sequence[Learner]) -> LearnerState:
    """Return the state in which training begins."""
    state = learners[0].initial_state()
    return learners[0].apply(state, RoundKind.STATISTICS, summed(learners, state, RoundKind.STATISTICS, 0))


def federation(learners: Sequence[Learner], rounds: int) -> tuple[list[list[LearnerState]], list[list[Values]]]:
    """Run a whole federation; return each site's states and personal values, sum by sum."""
    states = [[learner.initial_state()] for learner in learners]
    personals = [[learner.initial_personal()] for learner in learners]
    for round_number, kind in enumerate([RoundKind.STATISTICS, *[RoundKind.TRAIN] * rounds, RoundKind.EVALUATE]):
        contributions = [
            learner.contribution(history[-1], personal[-1], kind, round_number)
            for learner, history, personal in zip(learners, states, personals, strict=True)
        ]
        total = np.sum([contribution.packed for contribution in contributions], axis=0)
        for learner, history, personal, own in zip(learners, states, personals, contributions, strict=True):
            history.append(learner.apply(history[-1], kind, total))
            personal.append(learner.personal_after(history[-2], history[-1], own.personal))
    return states, personals
