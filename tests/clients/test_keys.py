"""A run's keys: the two ends of a pair agree, each purpose has its own key, and nobody else has any of them."""

from __future__ import annotations

import copy
import os
import pickle
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from clients.identity import Identity
from clients.keys import EpochKeys, PairKeys
from clients.opening import Opening
from clients.run_files import RunFiles
from clients.secret import SecretBytes
from protocol.errors import SealError, SecretMaterialError
from protocol.handshake import SealedSecret, Session
from protocol.masks import mask_residues
from protocol.packing import RoundKind
from protocol.rounds import RoundTerms

STATE = bytes(range(32))
EVERYONE = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def pairs(opened_once):
    """Each site's pair keys, by roster position."""
    session = opened_once.parsed_session()
    return {site: Opening(opened_once.member(site), opened_once.run).pair_keys(session) for site in EVERYONE}


@pytest.fixture(scope="module")
def terms(opened_once):
    return RoundTerms(
        agreement=opened_once.agreement,
        session=opened_once.parsed_session().digest,
        epoch=1,
        round=0,
        cohort=EVERYONE,
        state=bytes(32),
    )


def pair_keys_of(federation, position, **changes):
    """Make a site's pair keys with one ingredient replaced."""
    member = federation.member(position)
    ingredients = {
        "agreement": member.agreement,
        "session": federation.parsed_session(),
        "site": position,
        "identity": member.identity,
        "ephemeral": RunFiles(member.vault, federation.run).ephemeral(),
        "consortium_secret": member.consortium_secret,
    }
    return PairKeys(**ingredients | changes)


def test_both_ends_of_each_pair_derive_one_mask_key_and_opposite_signs(pairs, terms):
    masks = {site: pairs[site].mask_keys(terms, STATE) for site in EVERYONE}

    for site in EVERYONE:
        assert len(masks[site]) == len(EVERYONE) - 1
        for peer in EVERYONE:
            if peer > site:
                (shared,) = masks[site].keys() & masks[peer].keys()
                assert masks[site][shared] is True
                assert masks[peer][shared] is False
    assert len({key for keys in masks.values() for key in keys}) == 6


def test_masks_hide_each_site_and_cancel_in_the_sum_of_the_whole_cohort(pairs, terms):
    parameters = terms.agreement.parameters
    shape = terms.agreement.plan(RoundKind.TRAIN).shape
    zeros = np.zeros(shape, dtype=np.uint32)

    masked = [
        mask_residues(
            zeros, pairs[site].mask_keys(terms, STATE), modulus=parameters.modulus, bits=parameters.modulus_bits
        ).astype(np.uint64)
        for site in EVERYONE
    ]

    assert not (np.sum(masked, axis=0) % parameters.modulus).any()
    for subset in (masked[:1], masked[:2], masked[:3]):
        assert np.count_nonzero(np.sum(subset, axis=0) % parameters.modulus) > 0.99 * zeros.size


@pytest.mark.parametrize(
    "change",
    [{"round": 1}, {"epoch": 2}, {"session": bytes(32)}, {"cohort": (0, 1, 2)}, {"state of masks": bytes(32)}],
    ids=lambda change: next(iter(change)),
)
def test_mask_keys_are_used_for_one_sum_only(pairs, terms, change):
    before = pairs[0].mask_keys(terms, STATE)

    state = change.get("state of masks", STATE)
    changed = terms if "state of masks" in change else replace(terms, **change)

    assert not before.keys() & pairs[0].mask_keys(changed, state).keys()


@pytest.mark.parametrize(
    "ingredient",
    [
        {"identity": Identity.generate()},
        {"ephemeral": X25519PrivateKey.generate()},
        {"consortium_secret": SecretBytes(os.urandom(32))},
    ],
    ids=lambda ingredient: next(iter(ingredient)),
)
def test_without_any_one_ingredient_there_is_no_pair_key(opened_once, terms, ingredient):
    right = pair_keys_of(opened_once, 1).mask_keys(terms, STATE)

    assert not right.keys() & pair_keys_of(opened_once, 1, **ingredient).mask_keys(terms, STATE).keys()


def test_a_peer_s_key_of_small_order_is_refused(opened_once):
    session = opened_once.parsed_session()
    cards = [replace(card, exchange_key=bytes(32)) if card.site == 2 else card for card in session.cards]

    with pytest.raises(SealError):
        pair_keys_of(opened_once, 1, session=Session(cards=tuple(cards)))


def test_the_epoch_secret_is_sealed_to_one_site(opened_once, pairs):
    identity, secret = opened_once.member(0).identity, EpochKeys.draw()

    sealed = pairs[0].seal(secret, bytes(32), identity, epoch=1, to=2)
    received = SealedSecret.from_bytes(sealed.to_bytes(), opened_once.agreement, opened_once.parsed_session())

    assert pairs[2].open(received) == secret
    assert secret.reveal() not in sealed.to_bytes()
    for other in (1, 3):
        with pytest.raises(SealError):
            pairs[other].open(received)


@pytest.mark.parametrize("field", ["epoch", "recipient", "sealed"])
def test_a_sealed_secret_is_bound_to_what_it_was_sealed_for(opened_once, pairs, field):
    sealed = pairs[0].seal(EpochKeys.draw(), bytes(32), opened_once.member(0).identity, epoch=1, to=2)
    other = {"epoch": 2, "recipient": 1, "sealed": bytes(48)}[field]

    with pytest.raises(SealError):
        pairs[2].open(replace(sealed, **{field: other}))


def test_each_epoch_secret_is_new():
    drawn = [EpochKeys.draw().reveal() for _ in range(8)]

    assert len(set(drawn)) == 8
    assert {len(raw) for raw in drawn} == {32}


def test_the_check_tells_equal_keys_from_others(opened_once):
    agreement, session, secret = opened_once.agreement, opened_once.parsed_session().digest, EpochKeys.draw()
    keys = EpochKeys(secret, agreement, session)

    assert keys.check() == EpochKeys(SecretBytes(secret.reveal()), agreement, session).check()
    assert keys.check() != EpochKeys(EpochKeys.draw(), agreement, session).check()
    assert keys.check() != EpochKeys(secret, agreement, bytes(32)).check()
    assert keys.check() != EpochKeys(secret, replace(agreement, code_digest="0" * 64), session).check()


def test_every_tag_key_is_used_for_one_sum_and_one_site(opened_once, terms):
    keys = EpochKeys(EpochKeys.draw(), opened_once.agreement, terms.session)

    derived = [keys.tag_vectors_key(terms, STATE), keys.tag_vectors_key(terms, bytes(32))]
    derived += [keys.tag_seal_key(terms, STATE, site) for site in EVERYONE]
    for change in ({"round": 1}, {"epoch": 2}, {"session": bytes(32)}, {"cohort": (0, 1, 2)}):
        changed = replace(terms, **change)
        derived += [keys.tag_vectors_key(changed, STATE), keys.tag_seal_key(changed, STATE, 0)]

    assert len(set(derived)) == len(derived)


def test_the_state_s_mac_depends_on_state_and_secret_and_shows_neither(opened_once):
    agreement, secret = opened_once.agreement, EpochKeys.draw()
    keys, others = EpochKeys(secret, agreement, bytes(32)), EpochKeys(EpochKeys.draw(), agreement, bytes(32))

    assert keys.state_mac(STATE) == keys.state_mac(bytes(STATE))
    assert keys.state_mac(STATE) != keys.state_mac(bytes(32))
    assert keys.state_mac(STATE) != others.state_mac(STATE)
    assert STATE not in keys.state_mac(STATE)


def test_keys_do_not_show_or_duplicate_themselves(opened_once, pairs):
    epoch_keys = EpochKeys(EpochKeys.draw(), opened_once.agreement, bytes(32))

    assert repr(pairs[0]) == "PairKeys(<redacted>)"
    assert repr(epoch_keys) == "EpochKeys(<redacted>)"
    for keys in (pairs[0], epoch_keys):
        for duplicate in (pickle.dumps, copy.deepcopy):
            with pytest.raises((SecretMaterialError, TypeError)):
                duplicate(keys)
