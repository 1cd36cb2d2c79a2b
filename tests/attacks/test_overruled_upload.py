"""People give up an upload that has left after all: NOT defended, and here is what it costs.

Who: the provider and one site that decrypts for it; the people of all other sites, whom it tells that an upload never
came. Want: that upload. Nothing at a site can know what the provider has got, so who overrules a site exposes it if its
upload has left; the README says so. These tests show what is lost, and that it is nothing but that site's update, and
only if all others decide the same.
"""

from __future__ import annotations

import numpy as np
import pytest
from coalition import (
    LEAST_LIKELY,
    Insider,
    call_parts,
    collect,
    model_fields,
    prepare_parts,
    refusal,
    stands_at,
    truth,
    uniform_noise_p,
    void_parts,
)

from protocol.envelope import Request
from protocol.errors import ResidualError
from protocol.state import voided_state
from protocol.update import SealedUpdate

INSIDER, HONEST, VICTIM = 0, (1, 2), 3
EVERYONE, OTHERS = (0, 1, 2, 3), (0, 1, 2)


def overrule(federation, sites) -> None:
    """Have the people of some sites give up the victim's upload for round 1."""
    for site in sites:
        federation.site(site).overrule(federation.run, 1, federation.agreement.roster[VICTIM].name)


def test_lost_if_all_others_overrule_an_upload_that_has_left_that_site_s_update(started):
    secret, insider = truth(started, VICTIM), Insider(started, INSIDER)
    first = insider.read_sum(collect(started, EVERYONE))

    overrule(started, OTHERS)
    second = insider.read_sum(collect(started, OTHERS))

    assert model_fields(started.agreement, 1, first - second) == model_fields(started.agreement, 1, secret)


def test_holds_nothing_but_the_overruled_site_s_update_is_exposed(started):
    # the two sums say what the others' sum says, and what the victim's update says, and no more
    secrets, insider = {site: truth(started, site) for site in EVERYONE}, Insider(started, INSIDER)
    state = stands_at(started, INSIDER)[1]
    terms = {EVERYONE: insider.terms(1, EVERYONE, state)}
    terms[OTHERS] = insider.terms(1, OTHERS, voided_state(state, (VICTIM,)))
    of_all = {site: SealedUpdate.from_bytes(started.upload(site, EVERYONE), terms[EVERYONE]) for site in EVERYONE}
    overrule(started, OTHERS)
    of_others = {site: SealedUpdate.from_bytes(started.upload(site, OTHERS), terms[OTHERS]) for site in OTHERS}

    assert model_fields(started.agreement, 1, insider.read(list(of_others.values()))) == model_fields(
        started.agreement, 1, sum(secrets[site] for site in OTHERS)
    )
    for site in HONEST:
        pair = [
            insider.unmask(of_all[site], terms[EVERYONE], state),
            insider.unmask(of_others[site], terms[OTHERS], voided_state(state, (VICTIM,))),
        ]
        for update in pair:  # one honest site for itself stays behind its masks with the other one
            with pytest.raises(ResidualError):
                insider.read([update])
            assert uniform_noise_p(started.agreement, insider.read_noise(update)) > LEAST_LIKELY
        # nor do its two masked updates together say anything: their masks are fresh ones
        difference = insider.read_noise(pair[0]) - insider.read_noise(pair[1])
        assert np.abs(difference).max() > started.agreement.parameters.modulus / started.agreement.parameters.scale / 4


@pytest.mark.parametrize("site", HONEST)
def test_holds_one_site_s_decision_alone_changes_nothing_for_the_others(started, grid_of, site):
    insider, grid = Insider(started, INSIDER), grid_of(started)
    (other,) = set(HONEST) - {site}
    before = {peer: stands_at(started, peer) for peer in EVERYONE}

    overrule(started, [site])

    assert {peer: stands_at(started, peer) for peer in EVERYONE} == before
    # the site that decided is alone in its state: what it uploads there adds up to nothing
    alone = insider.terms(1, OTHERS, voided_state(before[site][1], (VICTIM,)))
    together = insider.terms(1, OTHERS, before[site][1])
    mixed = [
        insider.unmask(
            SealedUpdate.from_bytes(started.upload(site, OTHERS), alone),
            alone,
            voided_state(before[site][1], (VICTIM,)),
        ),
        insider.unmask(SealedUpdate.from_bytes(started.upload(other, OTHERS), together), together, before[site][1]),
    ]
    with pytest.raises(ResidualError):
        insider.read(mixed)
    assert uniform_noise_p(started.agreement, insider.read_noise(*mixed)) > LEAST_LIKELY
    assert refusal(grid, started, site, Request.UPLOAD, **call_parts(1, EVERYONE)) == "SecondUploadError"


def test_holds_the_others_go_on_with_the_site_and_the_one_that_decided_alone_refuses_their_sum(started, grid_of):
    data = collect(started, EVERYONE)
    overrule(started, [1])

    for peer in (0, 2, VICTIM):
        started.prepare(peer, 2, [data])
    assert len({stands_at(started, peer) for peer in (0, 2, VICTIM)}) == 1
    assert refusal(grid_of(started), started, 1, Request.PREPARE, **prepare_parts(2, [data])) == "TagError"


def test_holds_the_overruled_site_is_told_nothing_and_may_not_sign_that_nothing_left(started, grid_of):
    collect(started, EVERYONE)
    overrule(started, OTHERS)
    grid = grid_of(started)

    assert refusal(grid, started, VICTIM, Request.VOID, **void_parts(1)) == "SecondUploadError"
    assert refusal(grid, started, VICTIM, Request.UPLOAD, **call_parts(1, OTHERS)) == "SecondUploadError"


def test_holds_no_message_of_the_provider_s_overrules_anybody(started, grid_of):
    # neither a note that the victim did not sign nor the others' word that they are ready without it
    collect(started, EVERYONE)
    overrule(started, [2])
    ready = started.prepare(2, 1)

    assert refusal(grid_of(started), started, 1, Request.PREPARE, **prepare_parts(1, [ready])) == "MalformedError"
    assert refusal(grid_of(started), started, 1, Request.UPLOAD, **call_parts(1, OTHERS)) == "SecondUploadError"
