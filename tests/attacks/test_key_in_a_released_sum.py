"""One altered sum whose plaintext is the CKKS key: whoever sees it released, or a model made of it, has the key.

Who: the provider, where a released model is published. Want: the CKKS key.
How: in a large cohort the provider sends the sum of the second polynomials. A constant added to it adds a multiple of
the key to what the sum decrypts to, on the grid and without any noise. Answer: tags cover the second polynomials that
the provider sends. In smaller cohorts it sends the seeds, which leave it no choice, and whose digest is under the tag.
Source: Li, Micciancio, On the security of homomorphic encryption on approximate numbers (2021).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from coalition import Insider, prepare_parts, refusal, stands_at, truth
from forgery import key_polynomial, ring, with_tags_of_first_polynomials_alone, without_tags

from clients.run.files import RunFiles
from clients.secrets.release import release
from protocol.envelope import Request
from protocol.errors import ResidualError, TagError
from protocol.update import EncryptedAggregate

ABOVE_THE_SUM = 1 << 22
"""In grid steps: the key's coefficients, -1, 0 and 1, times this stand out from all but the largest summed values."""


@pytest.fixture
def delivered(started):
    """A run in which the sum of round 1 is made, seeded, and not delivered."""
    started.sum_up()
    return started


def released(federation, aggregate):
    """Release a sum at a site, as the round's sum that it waits for."""
    insider, state = Insider(federation, 1), RunFiles(federation.vault(1), federation.run).position().state
    terms = insider.terms(1, aggregate.cohort, state)
    return release(aggregate, terms=terms, state=state, epoch_keys=insider.epoch_keys, own_proof=None)


def sum_of_round_1(federation):
    return EncryptedAggregate.from_bytes(federation.sums[1], federation.agreement)


def with_zeros(aggregate, _):
    return replace(aggregate, residues=np.zeros_like(aggregate.residues))


def with_scale(aggregate, parameters):
    return replace(aggregate, residues=np.full_like(aggregate.residues, int(parameters.scale)))


def with_other_seeds(aggregate, _):
    first, *rest = aggregate.proofs
    other = replace(first, seeds=bytes(len(first.seeds)), seeds_digest=bytes(32))
    return replace(aggregate, proofs=(other, *rest))


def with_the_key_as_plaintext(aggregate, parameters):
    """Return zeros as first polynomials and the scale as second ones."""
    residues = np.zeros_like(aggregate.residues)
    residues[len(residues) // 2 :] = int(parameters.scale)
    return replace(aggregate, residues=residues)


def with_the_key_above_the_sum(aggregate, parameters):
    """Leave the first polynomials as they are and add a constant to the second ones."""
    residues = aggregate.residues.astype(np.uint64)
    residues[len(residues) // 2 :] += np.uint64(int(parameters.scale) * ABOVE_THE_SUM)
    return replace(aggregate, residues=(residues % np.uint64(parameters.modulus)).astype(aggregate.residues.dtype))


def test_without_tags_a_second_polynomial_of_the_provider_s_choice_releases_the_key(expanded, monkeypatch):
    without_tags(monkeypatch)
    parameters = expanded.agreement.parameters

    plaintext = released(expanded, with_the_key_as_plaintext(sum_of_round_1(expanded), parameters))

    key = key_polynomial(Insider(expanded, 0).epoch_keys.ckks)
    assert all(np.array_equal(ring(parameters).values(row), key) for row in plaintext)
    assert set(plaintext[0].tolist()) == {-1, 0, 1}


def test_tags_over_the_first_polynomials_alone_release_the_key_above_the_honest_sum(run_expanded, monkeypatch):
    with_tags_of_first_polynomials_alone(monkeypatch)
    federation = run_expanded()
    parameters = federation.agreement.parameters
    honest = sum(truth(federation, site) for site in federation.everyone)

    with pytest.raises(TagError):  # the first polynomials are covered
        released(federation, with_zeros(sum_of_round_1(federation), parameters))
    plaintext = released(federation, with_the_key_above_the_sum(sum_of_round_1(federation), parameters))

    # the same key in every row: a few large counts of the honest sum cannot hide it
    coefficients = np.median(np.rint(plaintext / ABOVE_THE_SUM), axis=0).astype(np.int64)
    key = key_polynomial(Insider(federation, 0).epoch_keys.ckks)
    assert np.array_equal(ring(parameters).values(coefficients), key)
    assert np.array_equal(plaintext - coefficients * ABOVE_THE_SUM, honest)


def test_even_without_tags_seeds_leave_no_choice_and_the_noise_gives_the_sum_away(delivered, monkeypatch):
    without_tags(monkeypatch)

    with pytest.raises(ResidualError):
        released(delivered, with_zeros(sum_of_round_1(delivered), delivered.agreement.parameters))


@pytest.mark.parametrize(
    ("form", "alter", "error"),
    [
        ("delivered", with_zeros, "TagError"),
        ("delivered", with_scale, "TagError"),
        ("delivered", with_other_seeds, "SignatureError"),
        ("expanded", with_zeros, "TagError"),
        ("expanded", with_scale, "TagError"),
        ("expanded", with_the_key_as_plaintext, "TagError"),
        ("expanded", with_the_key_above_the_sum, "TagError"),
        ("expanded", with_other_seeds, "SignatureError"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_with_tags_neither_polynomial_can_be_chosen(request, grid_of, form, alter, error):
    federation = request.getfixturevalue(form)
    before = stands_at(federation, 1)
    altered = alter(sum_of_round_1(federation), federation.agreement.parameters).to_bytes()

    got = refusal(grid_of(federation), federation, 1, Request.PREPARE, **prepare_parts(2, [altered]))

    assert got == error
    assert stands_at(federation, 1) == before
