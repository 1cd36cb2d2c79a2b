"""The state chain: a digest over all that was summed and over the shared model.

Each mask depends on the state, so the masks of sites in different states do not cancel; and a state is good for one
upload. A provider that shows one site another model gains an undecodable sum.

Trust: sites compute it. The provider sees it only through `state_mac`, whose key it does not have.
"""

from __future__ import annotations

import numpy as np

from protocol.agreement import Cohort
from protocol.packing import Integers
from protocol.schedule import authenticate, digest


def initial_state(agreement: bytes) -> bytes:
    """Return the state before the first sum.

    It depends on nothing that a run could change, so that one agreement carries one run: sums of the same data over two
    cohorts, from two runs, would give away the difference.

    Args:
        agreement: A, the agreement's digest.
    """
    return digest("state", agreement)


def next_state(state: bytes, exact_sum: Integers, shared: bytes) -> bytes:
    """Return the state after a sum was released.

    Args:
        state: The state before it.
        exact_sum: The sum's integers.
        shared: Digest of shared model and optimiser state after applying it.
    """
    return digest("state/next", state, np.ascontiguousarray(exact_sum, dtype="<i8").tobytes(), shared)


def voided_state(state: bytes, voided: Cohort) -> bytes:
    """Return the state in which a round's updates are made once the uploads of some sites were given up.

    Masks for a cohort without those sites need a state of their own: there is one upload per state.

    Args:
        state: The state that the round began in.
        voided: Roster positions of the sites whose uploads were given up, ascending; without any, the state stays.
    """
    return digest("state/voided", state, *voided) if voided else state


def state_mac(group_key: bytes, state: bytes) -> bytes:
    """Return what the provider may see of a state: equal for equal states, and nothing else."""
    return authenticate(group_key, "state-mac", state)
