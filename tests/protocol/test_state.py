from __future__ import annotations

import numpy as np
from consortium import fixed_bytes
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from protocol.state import initial_state, next_state, state_mac, voided_state

AGREEMENT, OTHER, SHARED, GROUP_KEY = (fixed_bytes(name) for name in ("A", "B", "shared", "group"))
START = initial_state(AGREEMENT)
SUM = np.arange(-6, 6, dtype=np.int64).reshape(3, 4)


def test_the_chain_is_fixed_for_ever():
    after = next_state(START, SUM, SHARED)

    assert START.hex()[:16] == "6a49338d5e3c2bb4"
    assert after.hex()[:16] == "92d7e6606a399039"
    assert state_mac(GROUP_KEY, after).hex()[:16] == "a8969bdc42829904"


def test_another_agreement_is_another_chain():
    assert initial_state(OTHER) != START


@given(arrays(np.int64, 5), arrays(np.int64, 5))
def test_another_sum_leads_to_another_state(one, other):
    assert (next_state(START, one, SHARED) == next_state(START, other, SHARED)) == (one.tolist() == other.tolist())


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_another_model_or_another_past_leads_to_another_state(one, other):
    assert (next_state(START, SUM, one) == next_state(START, SUM, other)) == (one == other)
    assert (next_state(one, SUM, SHARED) == next_state(other, SUM, SHARED)) == (one == other)


def test_the_order_of_two_sums_matters():
    other = SUM + 1

    assert next_state(next_state(START, SUM, SHARED), other, SHARED) != next_state(
        next_state(START, other, SHARED), SUM, SHARED
    )


def test_a_round_without_the_uploads_of_some_sites_has_a_state_of_its_own():
    voided = [(), (0,), (1,), (0, 1), (2,), (0, 1, 2), (10,), (1, 0)]
    states = [voided_state(START, sites) for sites in voided]

    assert states[0] == START
    assert len(set(states)) == len(voided)
    assert voided_state(next_state(START, SUM, SHARED), (0,)) not in states
    assert states[3].hex()[:16] == "d372a50121c470f0"


def test_how_the_sum_lies_in_memory_does_not_matter():
    after = next_state(START, SUM, SHARED)

    assert next_state(START, np.asfortranarray(SUM), SHARED) == after
    assert next_state(START, SUM.astype(">i8"), SHARED) == after


def test_the_provider_sees_a_mac_that_depends_on_key_and_state_only():
    assert state_mac(GROUP_KEY, START) == state_mac(GROUP_KEY, START)
    assert len({START, state_mac(GROUP_KEY, START), state_mac(SHARED, START), state_mac(GROUP_KEY, SHARED)}) == 4
