"""A run's keys: the two ends of a pair agree, each purpose has its own key, and nobody else has any of them."""

from __future__ import annotations

import copy
import os
import pickle
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from clients.run.files import RunFiles
from clients.run.run_keys import RunKeys
from clients.secrets.identity import Identity
from clients.secrets.keys import EpochKeys, EpochSecrets, agree_pairs
from clients.secrets.secret import SecretBytes
from protocol.errors import ConfigurationError, SealError, SecretMaterialError
from protocol.handshake import SealedSecret, Session
from protocol.masks import mask_residues
from protocol.packing import RoundKind
from protocol.rounds import RoundTerms

STATE = bytes(range(32))
EVERYONE = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def pairs(opened_once):
    """Each site's pair keys, by roster position."""
    return {site: RunKeys.load(opened_once.member(site), opened_once.run).pairs for site in EVERYONE}


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


@pytest.fixture(scope="module")
def announced(founded_once, tmp_path_factory):
    """A run whose sites have announced themselves and still have their run keys."""
    federation = founded_once.copied_to(tmp_path_factory.mktemp("announced") / "run")
    federation.announce()
    return federation


def agreed(federation, position, **changes):
    """Agree on a site's pair secrets with one ingredient replaced; return their bytes by roster position."""
    member = federation.member(position)
    ingredients = {
        "agreement": member.agreement,
        "session": federation.parsed_session(),
        "site": position,
        "identity": member.identity,
        "ephemeral": RunFiles(member.vault, federation.run).ephemeral(),
        "consortium_secret": member.consortium_secret,
    }
    return {peer: secret.reveal() for peer, secret in agree_pairs(**ingredients | changes).items()}


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
def test_without_any_one_ingredient_there_is_no_pair_secret(announced, ingredient):
    right = agreed(announced, 1)

    assert not set(right.values()) & set(agreed(announced, 1, **ingredient).values())


def test_both_ends_of_each_pair_agree_on_one_secret(announced):
    secrets = {site: agreed(announced, site) for site in EVERYONE}

    for site in EVERYONE:
        assert set(secrets[site]) == set(EVERYONE) - {site}
        assert all(secrets[site][peer] == secrets[peer][site] for peer in secrets[site])
    assert len({secret for shared in secrets.values() for secret in shared.values()}) == 6


def test_a_peer_s_key_of_small_order_is_refused(announced):
    cards = announced.parsed_session().cards
    small = tuple(replace(card, exchange_key=bytes(32)) if card.site == 2 else card for card in cards)

    with pytest.raises(SealError):
        agreed(announced, 1, session=Session(cards=small))


def raw_secrets(secrets):
    return [secrets.common.reveal(), *(pair.reveal() for pair in secrets.pairs.values())]


def later(secrets, epochs):
    """Return the secrets of some epochs later."""
    for _ in range(epochs):
        secrets = secrets.next()
    return secrets


@given(epochs=st.integers(0, 5))
def test_all_sites_come_to_the_same_secrets_of_any_epoch(opened_once, epochs):
    start = {site: RunFiles(opened_once.vault(site), opened_once.run).epoch() for site in EVERYONE}

    secrets = {site: later(start[site], epochs) for site in EVERYONE}

    assert {secrets[site].epoch for site in EVERYONE} == {1 + epochs}
    assert len({secrets[site].common.reveal() for site in EVERYONE}) == 1
    for site in EVERYONE:
        assert set(secrets[site].pairs) == set(EVERYONE) - {site}
        assert all(secrets[site].pairs[peer] == secrets[peer].pairs[site] for peer in secrets[site].pairs)


def test_each_epoch_has_secrets_of_its_own():
    start = EpochSecrets(
        epoch=1, common=EpochKeys.draw(), pairs={peer: SecretBytes(os.urandom(32)) for peer in (1, 2, 3)}
    )

    epochs = [later(start, number) for number in range(4)]

    assert len({raw for secrets in epochs for raw in raw_secrets(secrets)}) == 16
    assert raw_secrets(later(start, 3)) == raw_secrets(epochs[3])


def test_the_next_secret_depends_on_the_one_before_alone():
    # pairs and E go on separately: who shares E alone learns no pair's secret of any epoch
    common, pair = EpochKeys.draw(), SecretBytes(os.urandom(32))
    one = EpochSecrets(epoch=1, common=common, pairs={2: pair})
    other = EpochSecrets(epoch=1, common=EpochKeys.draw(), pairs={2: pair})

    assert one.next().pairs == other.next().pairs
    assert one.next().common != other.next().common


def test_the_keys_of_the_next_epoch_are_others(opened_once, terms):
    # the CKKS key, too: what was decrypted under the old one says nothing about the new
    session = opened_once.parsed_session()
    first = RunFiles(opened_once.vault(0), opened_once.run).epoch()
    old, new = (EpochKeys(secrets.common, opened_once.agreement, session.digest) for secrets in (first, first.next()))

    for derive in (
        EpochKeys.check,
        lambda keys: keys.ckks.digest(),
        lambda keys: keys.state_mac(STATE),
        lambda keys: keys.tag_vectors_key(terms, STATE),
        lambda keys: keys.tag_seal_key(terms, STATE, 0),
    ):
        assert derive(old) != derive(new)


@given(
    epoch=st.integers(1, 2**32 - 1),
    common=st.binary(min_size=32, max_size=32),
    pairs=st.dictionaries(st.integers(0, 127), st.binary(min_size=32, max_size=32), max_size=5),
)
def test_an_epoch_s_secrets_are_read_back(epoch, common, pairs):
    secrets = EpochSecrets(
        epoch=epoch, common=SecretBytes(common), pairs={site: SecretBytes(pair) for site, pair in pairs.items()}
    )

    assert EpochSecrets.from_secret(secrets.to_secret()) == secrets
    assert "redacted" in repr(secrets)
    assert repr(common)[2:-1] not in repr(secrets)


@pytest.mark.parametrize("length", [0, 4, 35, 37, 36 + 33, 36 + 35, 36 + 34 + 1])
def test_damaged_secrets_are_not_taken_for_others(length):
    with pytest.raises(ConfigurationError, match="damaged"):
        EpochSecrets.from_secret(SecretBytes(bytes(length)))


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
    secrets = RunFiles(opened_once.vault(0), opened_once.run).epoch()
    for keys in (pairs[0], epoch_keys, secrets):
        for duplicate in (pickle.dumps, copy.deepcopy):
            with pytest.raises((SecretMaterialError, TypeError)):
                duplicate(keys)
