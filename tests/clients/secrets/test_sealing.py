"""A sealed update: the whole cohort's add up to the exact sum, and any one of them says nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from clients.run.files import RunFiles
from clients.run.run_keys import RunKeys
from clients.secrets.ckks import Decryptor
from clients.secrets.keys import ONE_TIME_NONCE, EpochKeys
from clients.secrets.sealing import seal_update
from protocol.errors import ResidualError
from protocol.expansion import expand_seeds
from protocol.packing import RoundKind
from protocol.residues import ResidueSum
from protocol.rounds import RoundTerms
from protocol.tags import tag_from_bytes, tag_of, tag_to_bytes, tag_vectors
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
    secret = RunFiles(opened_once.vault(0), opened_once.run).epoch().common
    return EpochKeys(secret, terms.agreement, terms.session)


@pytest.fixture(scope="module")
def seal(opened_once, terms, epoch_keys):
    """Seal one site's vector with all its real keys."""

    def seal_as(site, packed, terms=terms):
        member = opened_once.member(site)
        return seal_update(
            packed,
            terms=terms,
            state=STATE,
            site=site,
            identity=member.identity,
            pair_keys=RunKeys.load(member, opened_once.run).pairs,
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


def opened_tag(update, terms, epoch_keys):
    """Return the words of an update's tag."""
    key = epoch_keys.tag_seal_key(terms, STATE, update.proof.header.site)
    opened = ChaCha20Poly1305(key).decrypt(ONE_TIME_NONCE, update.proof.tag, update.proof.header.to_bytes())
    return tag_from_bytes(opened[:-32])


@pytest.mark.parametrize("is_seeded", [True, False], ids=["seeded", "expanded"])
def test_in_a_large_cohort_the_tag_covers_the_second_polynomials_too(terms, epoch_keys, seal, is_seeded):
    agreed = terms.agreement
    crypto = replace(agreed.terms.crypto, largest_seeded_cohort=3 if is_seeded else 2)
    terms = replace(terms, agreement=replace(agreed, terms=replace(agreed.terms, crypto=crypto)))
    parameters = agreed.parameters

    update = seal(1, vector(1), terms)

    rows = [update.residues] if is_seeded else [update.residues, expand_seeds(update.proof.seeds, parameters)]
    vectors = tag_vectors(epoch_keys.tag_vectors_key(terms, STATE), parameters, len(rows))
    assert opened_tag(update, terms, epoch_keys) == tag_of(vectors, np.concatenate(rows), parameters)


def test_statistics_and_metrics_fit_one_update(opened_once):
    plans = [opened_once.agreement.plan(kind) for kind in RoundKind]

    assert {plan.shape for plan in plans} == {(1, 2048)}
