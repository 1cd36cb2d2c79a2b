"""A sealed update: the whole cohort's add up to the exact sum, and any one of them says nothing."""

from __future__ import annotations

import numpy as np
import pytest

from clients.ckks import Decryptor
from clients.keys import EpochKeys
from clients.opening import Opening
from clients.run_files import RunFiles
from clients.sealing import seal_update
from protocol.errors import ResidualError
from protocol.packing import RoundKind
from protocol.residues import ResidueSum
from protocol.rounds import RoundTerms
from protocol.tags import tag_of, tag_to_bytes, tag_vectors
from protocol.update import SealedUpdate

COHORT = (0, 1, 3)
STATE = bytes(range(32))


@pytest.fixture(scope="module")
def terms(opened_once):
    return RoundTerms(
        agreement=opened_once.agreement,
        session=opened_once.parsed_session().digest,
        epoch=1,
        round=1,
        cohort=COHORT,
        state=bytes(32),
    )


@pytest.fixture(scope="module")
def epoch_keys(opened_once, terms):
    _, secret = RunFiles(opened_once.vault(0), opened_once.run).epoch()
    return EpochKeys(secret, terms.agreement, terms.session)


@pytest.fixture(scope="module")
def seal(opened_once, terms, epoch_keys):
    """Seal one site's vector with all its real keys."""
    session = opened_once.parsed_session()

    def seal_as(site, packed):
        member = opened_once.member(site)
        return seal_update(
            packed,
            terms=terms,
            state=STATE,
            site=site,
            identity=member.identity,
            pair_keys=Opening(member, opened_once.run).pair_keys(session),
            epoch_keys=epoch_keys,
        )

    return seal_as


def vector(site):
    random = np.random.default_rng(site)
    return random.integers(-1000, 1000, (1, 2048))


def decrypted(terms, epoch_keys, updates):
    parameters = terms.agreement.parameters
    total = ResidueSum(parameters.modulus, parameters.modulus_bits, updates[0].residues.shape)
    for update in updates:
        total.add(update.residues)
    return Decryptor(epoch_keys.ckks).decrypt(total.reduce(), [update.proof.seeds for update in updates])


def test_an_update_is_what_its_terms_ask_for(terms, seal):
    update = seal(1, vector(1))

    received = SealedUpdate.from_bytes(update.to_bytes(), terms)

    assert received.proof == update.proof
    assert received.proof.header == terms.header_of(1)
    assert np.array_equal(received.residues, update.residues)


def test_the_cohort_s_updates_add_up_exactly(terms, epoch_keys, seal):
    updates = [seal(site, vector(site)) for site in COHORT]

    assert np.array_equal(decrypted(terms, epoch_keys, updates), sum(vector(site) for site in COHORT))


def test_fewer_than_the_cohort_s_updates_say_nothing_even_to_who_has_the_key(terms, epoch_keys, seal):
    updates = [seal(site, vector(site)) for site in COHORT]

    for subset in (updates[:1], updates[1:2], updates[2:], updates[:2], updates[1:]):
        with pytest.raises(ResidualError):
            decrypted(terms, epoch_keys, subset)


def test_sealing_the_same_values_twice_gives_different_bytes(seal):
    one, other = seal(1, vector(1)), seal(1, vector(1))

    assert one.proof.seeds != other.proof.seeds
    assert one.proof.tag != other.proof.tag
    assert np.mean(one.residues == other.residues) < 0.01


def test_zeros_look_like_anything_else(terms, seal):
    residues = seal(1, np.zeros((1, 2048), dtype=np.int64)).residues

    # uniform in Z_q: the mean of 2048 draws is within 6 standard deviations of q/2
    modulus = terms.agreement.parameters.modulus
    assert abs(residues.mean() / modulus - 0.5) < 6 / np.sqrt(12 * residues.size)
    assert len(np.unique(residues)) > 0.99 * residues.size


def test_the_tag_covers_what_is_sent_and_is_not_readable(terms, epoch_keys, seal):
    update = seal(1, vector(1))
    parameters = terms.agreement.parameters
    vectors = tag_vectors(epoch_keys.tag_vectors_key(terms, STATE), parameters, 1)

    clear = tag_to_bytes(tag_of(vectors, update.residues, parameters))

    assert clear not in update.to_bytes()
    assert clear[:8] not in update.proof.tag


def test_statistics_and_metrics_fit_one_update(opened_once):
    plans = [opened_once.agreement.plan(kind) for kind in RoundKind]

    assert {plan.shape for plan in plans} == {(1, 2048)}
