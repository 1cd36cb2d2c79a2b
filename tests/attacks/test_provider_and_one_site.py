"""The provider hands one site's update to another site, which holds the CKKS key.

Who: the provider, and one site. Want: a single update. It is what every CKKS stack gives away in which all hospitals
have one key and nothing else (FLARE, IBM FL, FedML and the Flower examples).
Answer: pairwise one-time masks on the residues, uniform in Z_q: without the masks that the victim shares with honest
sites the update decrypts to noise, whoever holds the key.
"""

from __future__ import annotations

import numpy as np
import pytest
from coalition import LEAST_LIKELY, Insider, stands_at, truth, uniform_noise_p, uniform_residues_p

from protocol.errors import ResidualError
from protocol.update import SealedUpdate

INSIDER, VICTIM = 0, 3
EVERYONE = (0, 1, 2, 3)


@pytest.fixture
def intercepted(started):
    """Let the victim upload; return terms, state, and its update as the insider gets it."""

    def upload():
        terms, (_, state) = started.terms(EVERYONE), stands_at(started, INSIDER)
        return terms, state, SealedUpdate.from_bytes(started.upload(VICTIM, EVERYONE), terms)

    return upload


def test_with_masks_off_the_key_s_holder_reads_one_update(started, intercepted, monkeypatch):
    monkeypatch.setattr("clients.secrets.sealing.mask_residues", lambda residues, mask_keys, **modulus: residues)
    secret = truth(started, VICTIM)

    _, _, update = intercepted()

    stolen = Insider(started, INSIDER).read([update])
    assert np.array_equal(stolen, secret)
    assert stolen.any()
    # and the test below would notice: what decodes is not spread over all of Z_q
    assert uniform_noise_p(started.agreement, stolen) < LEAST_LIKELY


def test_a_masked_update_decrypts_to_uniform_noise(started, intercepted):
    insider, agreement = Insider(started, INSIDER), started.agreement

    terms, state, update = intercepted()

    for seen in (update, insider.unmask(update, terms, state)):  # also without the mask that the insider knows
        assert uniform_residues_p(agreement, seen.residues) > LEAST_LIKELY
        with pytest.raises(ResidualError):
            insider.read([seen])
        assert uniform_noise_p(agreement, insider.read_noise(seen)) > LEAST_LIKELY
    low_bytes = update.residues.view(np.uint8)[:, ::4]
    counts = np.bincount(low_bytes.reshape(-1), minlength=256)
    assert counts.max() < 8 + 8 * np.sqrt(8)  # 2048 bytes, 8 of each value expected


def test_nor_do_the_updates_of_all_but_one_of_the_others_help(started, intercepted):
    insider = Insider(started, INSIDER)
    terms, state, update = intercepted()
    others = [SealedUpdate.from_bytes(started.upload(site, EVERYONE), terms) for site in (1, 2)]
    of_victim, *of_others = [insider.unmask(each, terms, state) for each in (update, *others)]

    for other in of_others:
        with pytest.raises(ResidualError):
            insider.read([of_victim, other])
    whole = insider.read([of_victim, *of_others])
    assert np.array_equal(whole, sum(truth(started, site) for site in (1, 2, 3)))
