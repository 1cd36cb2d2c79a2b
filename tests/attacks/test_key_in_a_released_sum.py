"""One altered sum whose plaintext is the CKKS key: whoever sees it released, or a model made of it, has the key.

Who: the provider, where a released model is published. Want: the CKKS key.
How: a ciphertext of zero and the scale decrypts to scale times key, on the grid and without any noise.
Answer: tags cover the first polynomial and the digest of the seeds, and the second polynomial is made of the seeds
alone. Any later form in which the provider sends the second polynomial must tag it as well: that is the defence
switched off here. Source: Li, Micciancio, On the security of homomorphic encryption on approximate numbers (2021).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tenseal.sealapi as seal
from coalition import Insider, prepare_parts, refusal, stands_at
from forgery import key_polynomial, ring, without_tags

from clients.ckks import Decryptor
from clients.release import release
from clients.run_files import RunFiles
from clients.seal_format import _HEADER, _MAGIC, _decompress
from protocol.envelope import Request
from protocol.errors import ResidualError
from protocol.update import EncryptedAggregate


@pytest.fixture
def delivered(started):
    """A run in which the sum of round 1 is made and not delivered."""
    started.sum_up()
    return started


@pytest.fixture
def taken_as_sent(monkeypatch):
    """Sites that take the second polynomial from the provider, in place of making it of the seeds."""

    def send(polynomial):
        def slots_of(self, residues, seeds, row, scratch):
            public = self._backend
            public.load(scratch.write(public.template.build(residues, seeds[0][:64]))).save(scratch.path)
            saved = scratch.read()
            body = _decompress(saved)[: -polynomial.nbytes] + polynomial.astype("<u8").tobytes()
            header = _HEADER.pack(_MAGIC, _HEADER.size, saved[3], saved[4], 0, 0, _HEADER.size + len(body))
            plaintext = seal.Plaintext()
            self._decryptor.decrypt(public.load(scratch.write(header + body)), plaintext)
            return public.encoder.decode_complex(plaintext)

        monkeypatch.setattr(Decryptor, "_slots_of", slots_of)

    return send


def released(federation, aggregate):
    """Release a sum at a site, as the round's sum that it waits for."""
    insider, state = Insider(federation, 1), RunFiles(federation.vault(1), federation.run).position().state
    terms = insider.terms(1, aggregate.cohort, state)
    return release(aggregate, terms=terms, state=state, epoch_keys=insider.epoch_keys, own_proof=None)


def nothing_but_zeros(federation):
    aggregate = EncryptedAggregate.from_bytes(federation.sums[1], federation.agreement)
    return replace(aggregate, residues=np.zeros_like(aggregate.residues))


def test_without_tags_a_second_polynomial_of_the_provider_s_choice_releases_the_key(
    delivered, taken_as_sent, monkeypatch
):
    parameters = delivered.agreement.parameters
    without_tags(monkeypatch)
    taken_as_sent(np.full(parameters.ring_degree, int(parameters.scale), dtype=np.uint64))

    plaintext = released(delivered, nothing_but_zeros(delivered))

    key = key_polynomial(Insider(delivered, 0).epoch_keys.ckks)
    assert np.array_equal(ring(parameters).values(plaintext[0]), key)
    assert set(plaintext[0].tolist()) == {-1, 0, 1}


def test_even_without_tags_seeds_leave_no_choice_and_the_noise_gives_the_sum_away(delivered, monkeypatch):
    without_tags(monkeypatch)

    with pytest.raises(ResidualError):
        released(delivered, nothing_but_zeros(delivered))


def with_other_seeds(aggregate, _):
    first, *rest = aggregate.proofs
    return replace(aggregate, proofs=(replace(first, seeds=bytes(len(first.seeds))), *rest))


def with_zeros(aggregate, _):
    return replace(aggregate, residues=np.zeros_like(aggregate.residues))


def with_scale(aggregate, parameters):
    return replace(aggregate, residues=np.full_like(aggregate.residues, int(parameters.scale)))


@pytest.mark.parametrize(
    ("alter", "error"),
    [(with_zeros, "TagError"), (with_scale, "TagError"), (with_other_seeds, "SignatureError")],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_with_tags_neither_polynomial_can_be_chosen(delivered, grid_of, alter, error):
    before = stands_at(delivered, 1)
    aggregate = EncryptedAggregate.from_bytes(delivered.sums[1], delivered.agreement)
    altered = alter(aggregate, delivered.agreement.parameters).to_bytes()

    got = refusal(grid_of(delivered), delivered, 1, Request.PREPARE, **prepare_parts(2, [altered]))

    assert got == error
    assert stands_at(delivered, 1) == before
