"""In a large cohort the provider adds up the second polynomials too, and may add them up wrongly.

Who: the provider, for a digest of seeds with a site that signs what it likes. Want: a sum of its choosing that sites
decrypt; what it gains from one is in test_key_in_a_released_sum.py. Answer: tags cover both polynomials, row by row.
Where they cover the first one alone, a second one that was altered is decrypted: the noise mostly gives it away, but
only afterwards, which is an answer that depends on the key.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from coalition import Insider, prepare_parts, refusal, stands_at, truth
from forgery import with_tags_of_first_polynomials_alone

from protocol.envelope import Request
from protocol.errors import ResidualError, ValueRefusedError
from protocol.update import EncryptedAggregate

INSIDER, READER = 0, 1


def first_and_second(aggregate):
    """Return copies of both polynomials, in words that can be added."""
    return np.split(aggregate.residues.astype(np.uint64), 2)


def with_polynomials(federation, aggregate, first, second):
    residues = np.concatenate((first, second)) % np.uint64(federation.agreement.parameters.modulus)
    return replace(aggregate, residues=residues.astype(aggregate.residues.dtype))


def altered_second(federation, aggregate):
    first, second = first_and_second(aggregate)
    second[1, 7] += np.uint64(1)
    return with_polynomials(federation, aggregate, first, second)


def altered_first(federation, aggregate):
    first, second = first_and_second(aggregate)
    first[1, 7] += np.uint64(1)
    return with_polynomials(federation, aggregate, first, second)


def compensated(federation, aggregate):
    """Take from one polynomial what is added to the other."""
    first, second = first_and_second(aggregate)
    first[0] += np.uint64(1000)
    second[0] += np.uint64(federation.agreement.parameters.modulus - 1000)
    return with_polynomials(federation, aggregate, first, second)


def swapped_rows(federation, aggregate):
    first, second = first_and_second(aggregate)
    return with_polynomials(federation, aggregate, first, second[::-1])


def swapped_polynomials(federation, aggregate):
    first, second = first_and_second(aggregate)
    return with_polynomials(federation, aggregate, second, first)


def doubled(federation, aggregate):
    first, second = first_and_second(aggregate)
    return with_polynomials(federation, aggregate, first + first, second + second)


def another_digest(_, aggregate):
    first, *rest = aggregate.proofs
    return replace(aggregate, proofs=(replace(first, seeds_digest=rest[0].seeds_digest), *rest))


def swapped_digests(_, aggregate):
    first, second, *rest = aggregate.proofs
    swapped = replace(first, seeds_digest=second.seeds_digest), replace(second, seeds_digest=first.seeds_digest)
    return replace(aggregate, proofs=(*swapped, *rest))


def digest_signed_by_an_insider(federation, aggregate):
    """Change the seeds' digest of a site that signs it anew, after its update and its tag have left."""
    proofs = list(aggregate.proofs)
    changed = replace(proofs[INSIDER], seeds_digest=bytes(32))
    signature = federation.member(INSIDER).identity.sign(changed.signed_bytes())
    proofs[INSIDER] = replace(changed, signature=signature)
    return replace(aggregate, proofs=tuple(proofs))


def altered(federation, alter):
    honest = EncryptedAggregate.from_bytes(federation.sums[1], federation.agreement)
    return alter(federation, honest).to_bytes()


@pytest.mark.parametrize("alter", [altered_second, swapped_rows], ids=lambda alter: alter.__name__)
def test_under_tags_of_the_first_polynomials_alone_it_is_decrypted(run_expanded, monkeypatch, alter):
    with_tags_of_first_polynomials_alone(monkeypatch)
    federation = run_expanded()

    with pytest.raises(ResidualError):
        federation.prepare(READER, 2, [altered(federation, alter)])


def test_under_tags_of_the_first_polynomials_alone_a_shift_by_the_key_is_released(run_expanded, monkeypatch):
    with_tags_of_first_polynomials_alone(monkeypatch)
    federation = run_expanded()
    scale = np.uint64(int(federation.agreement.parameters.scale))

    def shifted(federation, aggregate):
        first, second = first_and_second(aggregate)
        return with_polynomials(federation, aggregate, first, second + scale)

    with suppress(ValueRefusedError):  # that shifted counts of patients may not fit together is no defence of the key
        federation.prepare(READER, 2, [altered(federation, shifted)])

    log = federation.vault(READER).lines("events.jsonl")
    assert [entry["round"] for entry in log if entry["event"] == "released"] == [0, 1]


@pytest.mark.parametrize(
    ("alter", "error"),
    [
        (altered_second, "TagError"),
        (altered_first, "TagError"),
        (compensated, "TagError"),
        (swapped_rows, "TagError"),
        (swapped_polynomials, "TagError"),
        (doubled, "TagError"),
        (another_digest, "SignatureError"),
        (swapped_digests, "SignatureError"),
        (digest_signed_by_an_insider, "TagError"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_an_altered_expanded_sum_is_refused_before_decryption(expanded, grid_of, alter, error):
    before = stands_at(expanded, READER)
    parts = prepare_parts(2, [altered(expanded, alter)])

    assert refusal(grid_of(expanded), expanded, READER, Request.PREPARE, **parts) == error

    assert stands_at(expanded, READER) == before
    expanded.prepare(READER, 2)


def test_the_honest_expanded_sum_is_the_sites_integers(expanded):
    honest = sum(truth(expanded, site) for site in expanded.everyone)

    assert np.array_equal(Insider(expanded, INSIDER).read_sum(expanded.sums[1]), honest)
