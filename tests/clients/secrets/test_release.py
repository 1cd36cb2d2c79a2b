"""Nothing is decrypted before the last check has passed: an altered sum gets no answer that depends on the key."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import clients.run.state_chain
import clients.secrets.ckks
from clients.run.files import RunFiles
from clients.run.run_keys import RunKeys
from clients.secrets.keys import EpochKeys
from clients.secrets.release import check_aggregate, release
from clients.secrets.sealing import seal_update
from protocol.errors import (
    CohortError,
    CohortMismatchError,
    EpochMismatchError,
    LengthError,
    ProtocolError,
    ResidualError,
    ResidueRangeError,
    RoundMismatchError,
    SessionMismatchError,
    SignatureError,
    SiteMismatchError,
    StateMismatchError,
    TagError,
)
from protocol.parameters import MODULI
from protocol.rounds import RoundTerms
from protocol.update import EncryptedAggregate
from strategies.round_sum import RoundSum

COHORT = (0, 1, 2, 3)
STATE = bytes(range(32))


@pytest.fixture(scope="module", params=[4, 3], ids=["seeded", "expanded"])
def agreement(request, opened_once):
    """The consortium's agreement, with sums of four sites in either form."""
    agreed = opened_once.agreement
    crypto = replace(agreed.terms.crypto, largest_seeded_cohort=request.param)
    return replace(agreed, terms=replace(agreed.terms, crypto=crypto))


@pytest.fixture(scope="module")
def epoch_keys(opened_once, agreement):
    secret = RunFiles(opened_once.vault(0), opened_once.run).epoch().common
    return EpochKeys(secret, agreement, opened_once.parsed_session().digest)


@pytest.fixture(scope="module")
def terms(opened_once, agreement, epoch_keys):
    return RoundTerms(
        agreement=agreement,
        session=opened_once.parsed_session().digest,
        epoch=1,
        round=1,
        cohort=COHORT,
        state=epoch_keys.state_mac(STATE),
    )


def vector(site):
    return np.random.default_rng(site).integers(-1000, 1000, (1, 2048))


@pytest.fixture(scope="module")
def aggregate_of(opened_once, epoch_keys):
    """Seal each site's vector under the terms, and add them up."""

    def make(terms, state=STATE):
        total = RoundSum(terms)
        for site in terms.cohort:
            member = opened_once.member(site)
            update = seal_update(
                vector(site),
                terms=terms,
                state=state,
                site=site,
                identity=member.identity,
                pair_keys=RunKeys.load(member, opened_once.run).pairs,
                epoch_keys=epoch_keys,
            )
            total.add(update.to_bytes())
        return total.close()

    return make


@pytest.fixture(scope="module")
def aggregate(aggregate_of, terms):
    return aggregate_of(terms)


@pytest.fixture
def decryptions(monkeypatch):
    """Every sum that the decryptor gets is noted here, and then really decrypted."""
    calls = []

    def note(name):
        decrypt = getattr(clients.secrets.ckks.Decryptor, name)

        def noted(self, *arguments, **sites):
            calls.append(name)
            return decrypt(self, *arguments, **sites)

        monkeypatch.setattr(clients.secrets.ckks.Decryptor, name, noted)

    note("decrypt")
    note("decrypt_expanded")
    return calls


def noisy(residues, seeds):
    """Add an error of 30 to each ciphertext's first coefficient: more than four honest ones carry together."""
    return ((residues.astype(np.uint64) + 30) % MODULI[2048, 32]).astype(residues.dtype), seeds


def with_residue(aggregate, at, change, modulus):
    residues = aggregate.residues.copy()
    residues[at] = (int(residues[at]) + change) % modulus
    return replace(aggregate, residues=residues)


def with_proofs(aggregate, *proofs):
    return replace(aggregate, proofs=proofs)


def test_the_honest_sum_is_released_exactly(aggregate, terms, epoch_keys, decryptions):
    exact = release(aggregate, terms=terms, state=STATE, epoch_keys=epoch_keys, own_proof=aggregate.proofs[1])

    assert np.array_equal(exact, sum(vector(site) for site in COHORT))
    assert decryptions == ["decrypt" if terms.is_seeded else "decrypt_expanded"]


def test_a_site_that_was_not_in_the_cohort_may_check_the_sum_too(aggregate, terms, epoch_keys):
    check_aggregate(aggregate, terms=terms, state=STATE, epoch_keys=epoch_keys, own_proof=None)


def one_residue_more(aggregate, modulus, _):
    return with_residue(aggregate, (0, 7), 1, modulus)


def one_residue_less(aggregate, modulus, _):
    return with_residue(aggregate, (0, 2047), -1, modulus)


def two_residues_that_cancel(aggregate, modulus, _):
    return with_residue(with_residue(aggregate, (0, 0), 1, modulus), (0, 1), -1, modulus)


def a_multiple_of_the_sum(aggregate, modulus, _):
    return replace(aggregate, residues=(aggregate.residues.astype(np.uint64) * 2 % modulus).astype(np.uint32))


def nothing_but_zeros(aggregate, _, __):
    return replace(aggregate, residues=np.zeros_like(aggregate.residues))


def swapped_seeds(aggregate, _, __):
    first, second, *rest = aggregate.proofs
    return with_proofs(aggregate, with_seeds_of(second, first), with_seeds_of(first, second), *rest)


def with_seeds_of(other, proof):
    """Return a proof with another's seeds, or their digest."""
    return replace(proof, seeds=other.seeds, seeds_digest=other.seeds_digest)


def one_seed_bit_changed(aggregate, _, __):
    first, *rest = aggregate.proofs
    name = "seeds" if first.seeds else "seeds_digest"
    changed = bytearray(getattr(first, name))
    changed[0] ^= 1
    return with_proofs(aggregate, replace(first, **{name: bytes(changed)}), *rest)


def swapped_halves(aggregate, _, __):
    """Swap, in an expanded sum, the first polynomial and the second."""
    flat = aggregate.residues.reshape(-1)
    return replace(aggregate, residues=np.roll(flat, flat.size // 2).reshape(aggregate.residues.shape))


def a_row_cut_off(aggregate, _, __):
    return replace(aggregate, residues=aggregate.residues[:-1])


def a_row_more(aggregate, _, __):
    return replace(aggregate, residues=np.concatenate((aggregate.residues, aggregate.residues[:1])))


def one_residue_of_the_last_polynomial(aggregate, modulus, _):
    return with_residue(aggregate, (-1, 5), 1, modulus)


def swapped_tags(aggregate, _, __):
    first, second, *rest = aggregate.proofs
    return with_proofs(aggregate, replace(first, tag=second.tag), replace(second, tag=first.tag), *rest)


def a_dropped_proof(aggregate, _, __):
    return with_proofs(aggregate, *aggregate.proofs[:-1])


def a_doubled_proof(aggregate, _, __):
    return with_proofs(aggregate, *aggregate.proofs, aggregate.proofs[-1])


def one_proof_in_another_s_place(aggregate, _, __):
    first, second, third, _ = aggregate.proofs
    return with_proofs(aggregate, first, second, third, third)


def a_signature_of_another_site(aggregate, _, __):
    first, second, *rest = aggregate.proofs
    return with_proofs(aggregate, replace(first, signature=second.signature), second, *rest)


def another_checksum(aggregate, _, __):
    first, *rest = aggregate.proofs
    return with_proofs(aggregate, replace(first, checksum=bytes(16)), *rest)


def another_round_s_number(aggregate, _, __):
    return replace(aggregate, round=2)


def another_sum_s_residues(aggregate, _, other):
    return replace(aggregate, residues=other.residues)


def another_sum_s_proof(aggregate, _, other):
    return with_proofs(aggregate, other.proofs[0], *aggregate.proofs[1:])


ALTERATIONS = [
    (one_residue_more, TagError),
    (one_residue_less, TagError),
    (two_residues_that_cancel, TagError),
    (a_multiple_of_the_sum, TagError),
    (nothing_but_zeros, TagError),
    (one_residue_of_the_last_polynomial, TagError),
    (swapped_halves, TagError),
    (a_row_cut_off, LengthError),
    (a_row_more, LengthError),
    (swapped_seeds, SignatureError),
    (one_seed_bit_changed, SignatureError),
    (swapped_tags, SignatureError),
    (a_dropped_proof, TagError),
    (a_doubled_proof, TagError),
    (one_proof_in_another_s_place, TagError),
    (a_signature_of_another_site, SignatureError),
    (another_checksum, SignatureError),
    (another_round_s_number, RoundMismatchError),
    (another_sum_s_residues, TagError),
    (another_sum_s_proof, TagError),
]


@pytest.mark.parametrize(("alter", "error"), ALTERATIONS, ids=lambda value: value.__name__)
def test_an_altered_sum_is_refused_before_decryption(
    aggregate, aggregate_of, terms, epoch_keys, decryptions, alter, error
):
    altered = alter(aggregate, terms.agreement.parameters.modulus, aggregate_of(terms))

    with pytest.raises(error):
        release(altered, terms=terms, state=STATE, epoch_keys=epoch_keys, own_proof=None)
    assert decryptions == []


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"round": 2}, RoundMismatchError),
        ({"epoch": 2}, EpochMismatchError),
        ({"session": bytes(32)}, SessionMismatchError),
        ({"state": bytes(32)}, StateMismatchError),
        ({"cohort": (0, 1, 2)}, CohortMismatchError),
        ({"cohort": (1, 2, 3)}, SiteMismatchError),
    ],
    ids=str,
)
def test_a_proof_made_under_other_terms_is_refused_before_decryption(
    aggregate, terms, epoch_keys, decryptions, change, error
):
    expected = replace(terms, **change)

    with pytest.raises(error):
        release(
            replace(aggregate, round=expected.round),
            terms=expected,
            state=STATE,
            epoch_keys=epoch_keys,
            own_proof=None,
        )
    assert decryptions == []


def test_tags_made_in_another_state_are_refused_before_decryption(aggregate, terms, epoch_keys, decryptions):
    with pytest.raises(TagError, match="sealed tag"):
        release(aggregate, terms=terms, state=bytes(32), epoch_keys=epoch_keys, own_proof=None)
    assert decryptions == []


def test_a_sum_without_this_site_s_own_update_is_refused_before_decryption(
    aggregate, aggregate_of, terms, epoch_keys, decryptions
):
    uploaded = aggregate_of(terms).proofs[1]

    with pytest.raises(TagError, match="own entry"):
        release(aggregate, terms=terms, state=STATE, epoch_keys=epoch_keys, own_proof=uploaded)
    assert decryptions == []


def test_an_insider_s_swapped_seeds_are_refused_although_the_signature_is_good(
    opened_once, aggregate, terms, epoch_keys, decryptions
):
    # A site may sign what it likes; the seeds must still be those that it tagged.
    first, *rest = aggregate.proofs
    unsigned = with_seeds_of(rest[0], first)
    signed = replace(unsigned, signature=opened_once.member(0).identity.sign(unsigned.signed_bytes()))

    with pytest.raises(TagError, match="seeds"):
        release(with_proofs(aggregate, signed, *rest), terms=terms, state=STATE, epoch_keys=epoch_keys, own_proof=None)
    assert decryptions == []


def test_noise_out_of_bounds_after_good_tags_is_refused(opened_once, aggregate_of, terms, epoch_keys, monkeypatch):
    encrypt = clients.secrets.ckks.Encryptor.encrypt
    monkeypatch.setattr(clients.secrets.ckks.Encryptor, "encrypt", lambda self, packed: noisy(*encrypt(self, packed)))
    aggregate = aggregate_of(terms)

    check_aggregate(aggregate, terms=terms, state=STATE, epoch_keys=epoch_keys, own_proof=None)
    with pytest.raises(ResidualError):
        release(aggregate, terms=terms, state=STATE, epoch_keys=epoch_keys, own_proof=None)


@pytest.fixture
def delivered(started):
    """A run in which the sum of round 1 is made and not delivered."""
    started.sum_up()
    return started


def deliver(federation, position, data):
    return federation.prepare(position, 2, [*federation.sums[:1], data])


@pytest.mark.parametrize(
    ("alter", "error"),
    [
        (lambda data: data[:100] + bytes([data[100] ^ 1]) + data[101:], TagError),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), SignatureError),
        (lambda data: data[:12] + b"\xff\xff\xff\xff" + data[16:], ResidueRangeError),
        (lambda data: data[:-1], ProtocolError),
        (lambda data: b"", ProtocolError),
        (lambda data: data[:4] + b"\x02" + data[5:], ProtocolError),
    ],
    ids=["a residue", "a signature", "a residue out of range", "torn", "empty", "its round"],
)
def test_a_sum_altered_on_its_way_leaves_the_site_as_it_was(delivered, decryptions, alter, error):
    before = RunFiles(delivered.vault(1), delivered.run).position()

    with pytest.raises(error):
        deliver(delivered, 1, alter(delivered.sums[1]))

    after = RunFiles(delivered.vault(1), delivered.run).position()
    assert decryptions == []
    assert (after.round, after.state) == (before.round, before.state)
    deliver(delivered, 1, delivered.sums[1])
    assert len(decryptions) == 1


def test_a_sum_of_a_cohort_that_the_agreement_forbids_is_refused(delivered, decryptions):
    sum_ = EncryptedAggregate.from_bytes(delivered.sums[1], delivered.agreement)
    for proofs in (sum_.proofs[:2], (sum_.proofs[0], *sum_.proofs[:3]), sum_.proofs[::-1]):
        with pytest.raises(CohortError):
            deliver(delivered, 1, replace(sum_, proofs=proofs).to_bytes())
    assert decryptions == []


def test_after_too_many_refusals_not_even_the_right_sum_is_tried(delivered, decryptions, monkeypatch):
    monkeypatch.setattr(clients.run.state_chain, "MAX_TRIES", 3)
    right = delivered.sums[1]
    altered = right[:100] + bytes([right[100] ^ 1]) + right[101:]
    for _ in range(3):
        with pytest.raises(TagError, match="tag of the aggregate"):
            deliver(delivered, 1, altered)

    for data in (altered, right):
        with pytest.raises(TagError, match="fewer than 3"):
            deliver(delivered, 1, data)
    assert decryptions == []
    deliver(delivered, 2, right)


def test_noise_out_of_bounds_after_good_tags_ends_the_run_for_the_site(started, decryptions, monkeypatch):
    encrypt = clients.secrets.ckks.Encryptor.encrypt
    with monkeypatch.context() as patch:
        patch.setattr(clients.secrets.ckks.Encryptor, "encrypt", lambda self, packed: noisy(*encrypt(self, packed)))
        data = started.sum_up()

    with pytest.raises(ResidualError):
        deliver(started, 1, data)
    for _ in range(2):
        with pytest.raises(TagError, match="aggregates refused"):
            deliver(started, 1, data)
    assert len(decryptions) == 1
