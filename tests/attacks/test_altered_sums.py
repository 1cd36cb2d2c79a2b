"""The provider's arithmetic is wrong on purpose: it adds something, counts a site twice, leaves a site out.

Who: the provider (for the site left out, with an insider that encrypts zeros). Want: a model of its choosing at sites
that notice nothing. Answer: tags over what each site sent, checked before decryption (`check_aggregate`). Where only
those are off, an update that is replaced leaves masks that do not cancel; with neither, the wrong model is applied
silently.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from coalition import Insider, added, prepare_parts, refusal, stands_at, truth

import clients.secrets.release
from clients.run.files import RunFiles
from clients.secrets.ckks import Encryptor
from protocol.envelope import Request
from protocol.errors import ResidualError, TagError
from protocol.packing import RoundKind
from protocol.update import EncryptedAggregate, SealedUpdate

INSIDER, COUNTED_TWICE, LEFT_OUT, READER = 0, 1, 2, 3
EVERYONE = (0, 1, 2, 3)
SHIFT = 1000


@pytest.fixture
def unchecked(monkeypatch):
    """Sites that decrypt whatever has the form of a sum."""
    return lambda: monkeypatch.setattr(clients.secrets.release, "check_aggregate", lambda *_, **__: None)


@pytest.fixture
def unmasked(monkeypatch):
    """Sites that send their ciphertexts as they are."""
    return lambda: monkeypatch.setattr(
        "clients.secrets.sealing.mask_residues", lambda residues, mask_keys, **modulus: residues
    )


def uploaded(federation):
    terms = federation.terms(EVERYONE)
    return [SealedUpdate.from_bytes(federation.upload(site, EVERYONE), terms) for site in EVERYONE]


def sum_of(federation, updates):
    return EncryptedAggregate(
        round=1,
        residues=added(federation.agreement, [update.residues for update in updates]),
        proofs=tuple(update.proof for update in updates),
    )


def shifted(federation, updates):
    """Add SHIFT to the sum's first integer: in NTT form, a constant polynomial is the same number everywhere."""
    honest, parameters = sum_of(federation, updates), federation.agreement.parameters
    constant = np.full_like(honest.residues, SHIFT * int(parameters.scale))
    return replace(honest, residues=added(federation.agreement, [honest.residues, constant]))


def counted_twice(federation, updates):
    """Put one site's update also where another's belongs, under the other's name."""
    copy = updates[COUNTED_TWICE]
    return sum_of(federation, in_place_of_the_left_out(updates, copy.residues, copy.proof.seeds))


def left_out(federation, updates):
    """Put an insider's encryption of zeros where one site's update belongs."""
    zeros = np.zeros(updates[0].residues.shape, dtype=np.int64)
    residues, seeds = Encryptor(Insider(federation, INSIDER).epoch_keys.ckks).encrypt(zeros)
    return sum_of(federation, in_place_of_the_left_out(updates, residues, seeds))


def in_place_of_the_left_out(updates, residues, seeds):
    replaced = updates[LEFT_OUT]
    stand_in = SealedUpdate(proof=replace(replaced.proof, seeds=seeds), residues=residues)
    return [stand_in if update is replaced else update for update in updates]


def expected(federation, alter):
    """Return the wrong sum that the provider is after."""
    packed = {site: truth(federation, site) for site in EVERYONE}
    if alter is shifted:
        total = sum(packed.values())
        total[0, 0] += SHIFT
        return total
    return sum(packed.values()) - packed[LEFT_OUT] + (packed[COUNTED_TWICE] if alter is counted_twice else 0)


ALTERATIONS = pytest.mark.parametrize("alter", [shifted, counted_twice, left_out], ids=lambda alter: alter.__name__)


@ALTERATIONS
def test_with_neither_tags_nor_masks_the_wrong_model_is_applied_silently(started, alter, unchecked, unmasked):
    unchecked()
    unmasked()
    before = RunFiles(started.vault(READER), started.run).position().learner
    wrong = expected(started, alter)

    data = alter(started, uploaded(started)).to_bytes()
    started.prepare(READER, 2, [data])

    after = RunFiles(started.vault(READER), started.run).position().learner
    chosen = started.site(READER).learner(started.run).apply(before, RoundKind.TRAIN, wrong)
    assert after.shared_digest() == chosen.shared_digest()


def test_without_tags_a_shifted_sum_is_applied_silently_whatever_the_masks(started, unchecked):
    unchecked()
    before = RunFiles(started.vault(READER), started.run).position().learner
    wrong = expected(started, shifted)

    started.prepare(READER, 2, [shifted(started, uploaded(started)).to_bytes()])

    after = RunFiles(started.vault(READER), started.run).position().learner
    chosen = started.site(READER).learner(started.run).apply(before, RoundKind.TRAIN, wrong)
    assert after.shared_digest() == chosen.shared_digest()


@pytest.mark.parametrize("alter", [counted_twice, left_out], ids=lambda alter: alter.__name__)
def test_without_tags_masks_alone_turn_a_replaced_update_into_noise(started, alter, unchecked):
    unchecked()
    updates = uploaded(started)

    with pytest.raises(ResidualError):
        started.prepare(READER, 2, [alter(started, updates).to_bytes()])
    with pytest.raises(TagError, match="aggregates refused"):  # and the run is over for this site
        started.prepare(READER, 2, [sum_of(started, updates).to_bytes()])


@ALTERATIONS
def test_an_altered_sum_is_refused_before_decryption(started, grid_of, alter):
    updates, grid = uploaded(started), grid_of(started)
    altered, honest = alter(started, updates), sum_of(started, updates)
    before = stands_at(started, READER)
    for data, error in [
        (altered, "TagError" if alter is shifted else "SignatureError"),
        (replace(altered, proofs=honest.proofs), "TagError"),  # the right proofs, the wrong residues
    ]:
        parts = prepare_parts(2, [data.to_bytes()])
        assert refusal(grid, started, READER, Request.PREPARE, **parts) == error

    assert stands_at(started, READER) == before
    for site in EVERYONE:
        started.prepare(site, 2, [honest.to_bytes()])
    assert len({stands_at(started, site) for site in EVERYONE}) == 1


@ALTERATIONS
def test_tags_alone_are_enough(started, grid_of, alter, unmasked):
    unmasked()
    altered = alter(started, uploaded(started))

    assert refusal(grid_of(started), started, READER, Request.PREPARE, **prepare_parts(2, [altered.to_bytes()])) in {
        "TagError",
        "SignatureError",
    }
