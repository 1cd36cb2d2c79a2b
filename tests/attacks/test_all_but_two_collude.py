"""All sites but two pool their keys with the provider.

Who: the provider and n - 2 of n sites. Want: the update of one of the two honest sites.
Answer: the mask of the two honest sites comes from keys that only they hold. The coalition gets the sum of the two
(that much it has in any case, by subtracting its own) and nothing else: what is left of one honest update after all
known masks are off is uniform. Masks from a key that all sites share, the obvious shortcut, give both away.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from coalition import LEAST_LIKELY, Insider, stands_at, truth, uniform_noise_p, uniform_residues_p, weaken_pairs

from protocol.errors import ResidualError
from protocol.masks import mask_residues
from protocol.schedule import expand, extract
from protocol.terms import CohortTerms
from protocol.update import SealedUpdate

EVERYONE, INSIDERS, HONEST = (0, 1, 2, 3, 4), (0, 2, 4), (1, 3)


@pytest.fixture
def consortium(found, founded_once):
    """Five hospitals that tolerate three colluders."""
    experiment = founded_once.experiment
    cohort = CohortTerms(tolerated_colluders=3, smallest_cohort=5)
    return found(replace(experiment, federation=replace(experiment.federation, sites=len(EVERYONE), cohort=cohort)))


def start(federation):
    """Open a run and have round 1 prepared."""
    federation.open()
    federation.prepare_all()
    federation.sum_up()
    federation.prepare_all()


def honest_updates(federation, insiders):
    """Return the two honest updates without any mask that an insider can compute."""
    terms, (_, state) = federation.terms(EVERYONE), stands_at(federation, INSIDERS[0])
    updates = {}
    for site in HONEST:
        update = SealedUpdate.from_bytes(federation.upload(site, EVERYONE), terms)
        for insider in insiders:
            update = insider.unmask(update, terms, state)
        updates[site] = update
    return updates


def test_pair_keys_from_a_secret_of_the_whole_group_give_single_updates_away(consortium, monkeypatch):
    def group_key(one, other, secret):
        return extract(secret.reveal(), bytes([min(one, other), max(one, other)]))

    weaken_pairs(
        monkeypatch, lambda card, *, site, consortium_secret, **_: group_key(site, card.site, consortium_secret)
    )
    start(consortium)
    agreement, insiders = consortium.agreement, [Insider(consortium, site) for site in INSIDERS]
    updates = honest_updates(consortium, insiders)

    # what the two honest sites share follows from what every insider has
    terms, (_, state) = consortium.terms(EVERYONE), stands_at(consortium, INSIDERS[0])
    shared = group_key(*HONEST, consortium.member(INSIDERS[0]).consortium_secret)
    mask = {expand(shared, "mask", *terms.context, state): False}  # the smaller of the two has added it
    parameters = agreement.parameters
    residues = mask_residues(
        updates[HONEST[0]].residues, mask, modulus=parameters.modulus, bits=parameters.modulus_bits
    )
    stolen = insiders[0].read([replace(updates[HONEST[0]], residues=residues)])

    assert np.array_equal(stolen, truth(consortium, HONEST[0]))
    assert uniform_noise_p(agreement, stolen) < LEAST_LIKELY


def test_the_coalition_gets_the_sum_of_the_two_and_nothing_else(consortium):
    start(consortium)
    agreement, insiders = consortium.agreement, [Insider(consortium, site) for site in INSIDERS]

    updates = honest_updates(consortium, insiders)

    one, other = updates.values()
    assert np.array_equal(insiders[0].read([one, other]), sum(truth(consortium, site) for site in HONEST))
    for site, update in updates.items():
        assert uniform_residues_p(agreement, update.residues) > LEAST_LIKELY
        with pytest.raises(ResidualError):
            insiders[0].read([update])
        noise = insiders[0].read_noise(update)
        assert uniform_noise_p(agreement, noise) > LEAST_LIKELY
        # knowing what the update holds does not help to recognise it
        span = int(agreement.parameters.modulus / agreement.parameters.scale)
        rest = (noise - truth(consortium, site) + span // 2) % span - span // 2
        assert uniform_noise_p(agreement, rest) > LEAST_LIKELY
