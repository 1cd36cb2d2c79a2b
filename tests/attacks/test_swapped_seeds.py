"""Seeds are public and half of every ciphertext: whoever may change them changes what a sum decrypts to.

Who: the provider, alone or with a site that signs what it likes. Want: an altered sum that sites decrypt. Seeds of
two sites in one row may change places without any effect, because only their sum counts; seeds of two rows, or new
ones, turn a sum into noise after its tags have held, which ends the run for the site, and where nobody looks at the
noise, into a model. Answer: the digest of a site's seeds is in what it signs, and sealed beside its tag.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from coalition import LEAST_LIKELY, Insider, prepare_parts, refusal, stands_at, truth, uniform_noise_p

from clients.secrets.ckks import Decryptor
from protocol.envelope import Request
from protocol.errors import ResidualError, TagError
from protocol.parameters import SEED_BYTES
from protocol.terms import ModelTerms
from protocol.update import EncryptedAggregate, UpdateProof


@pytest.fixture
def deliver(found, founded_once):
    """Run to the sum of round 1, of three ciphertexts, which is made and not delivered."""

    def run():
        federation = found(replace(founded_once.experiment, model=ModelTerms(kind="mlp", hidden=(64, 64))))
        federation.open()
        for _ in range(2):
            federation.prepare_all()
            federation.sum_up()
        return federation

    return run


@pytest.fixture
def uncovered(monkeypatch):
    """Sites whose signatures and tags say nothing of seeds."""

    def digest_nothing(proof):
        object.__setattr__(proof, "seeds_digest", bytes(32))

    return lambda: monkeypatch.setattr(UpdateProof, "__post_init__", digest_nothing)


def rows_of(proof):
    return [proof.seeds[start : start + SEED_BYTES] for start in range(0, len(proof.seeds), SEED_BYTES)]


def rows_swapped(proofs):
    first, *rest = proofs
    return replace(first, seeds=b"".join(rows_of(first)[::-1])), *rest


def sites_swapped(proofs):
    first, second, *rest = proofs
    return replace(first, seeds=second.seeds), replace(second, seeds=first.seeds), *rest


def replaced(proofs):
    first, *rest = proofs
    return replace(first, seeds=bytes(range(SEED_BYTES)) * len(rows_of(first))), *rest


def by_insider(federation, proofs):
    """Change the seeds of site 0, which signs them anew after its update and its tag have left."""
    first, *rest = rows_swapped(proofs)
    return replace(first, signature=federation.member(0).identity.sign(first.signed_bytes())), *rest


def altered_sum(federation, alter) -> bytes:
    aggregate = EncryptedAggregate.from_bytes(federation.sums[1], federation.agreement)
    return replace(aggregate, proofs=alter(aggregate.proofs)).to_bytes()


@pytest.mark.parametrize("alter", [rows_swapped, replaced], ids=lambda alter: alter.__name__)
def test_uncovered_seeds_turn_the_sum_into_noise_and_end_the_run(deliver, uncovered, monkeypatch, alter):
    uncovered()
    federation = deliver()
    altered = altered_sum(federation, alter)
    insider, secret = Insider(federation, 2), sum(truth(federation, site) for site in federation.everyone)

    with pytest.raises(ResidualError):
        federation.prepare(1, 2, [altered])  # the tags held
    with pytest.raises(TagError, match="aggregates refused"):
        federation.prepare(1, 2)  # not even the right sum is taken after that

    assert np.array_equal(insider.read_sum(federation.sums[1]), secret)
    monkeypatch.setattr(Decryptor, "_check_noise", lambda *_: None)
    noise = insider.read_sum(altered)
    assert uniform_noise_p(federation.agreement, secret[0]) < LEAST_LIKELY
    assert uniform_noise_p(federation.agreement, noise[0]) > LEAST_LIKELY


def test_uncovered_seeds_of_one_row_may_change_places_between_sites_without_effect(deliver, uncovered):
    uncovered()
    federation = deliver()
    altered = altered_sum(federation, sites_swapped)

    assert np.array_equal(Insider(federation, 2).read_sum(altered), Insider(federation, 2).read_sum(federation.sums[1]))


def test_changed_seeds_are_refused_before_decryption(deliver, grid_of):
    federation = deliver()
    grid, before = grid_of(federation), stands_at(federation, 1)

    for alter in (rows_swapped, sites_swapped, replaced):
        parts = prepare_parts(2, [altered_sum(federation, alter)])
        assert refusal(grid, federation, 1, Request.PREPARE, **parts) == "SignatureError"
    signed = prepare_parts(2, [altered_sum(federation, lambda proofs: by_insider(federation, proofs))])
    assert refusal(grid, federation, 1, Request.PREPARE, **signed) == "TagError"

    assert stands_at(federation, 1) == before
    federation.prepare(1, 2)
