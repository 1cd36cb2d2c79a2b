from __future__ import annotations

import hashlib
import tracemalloc
from dataclasses import replace
from itertools import accumulate

import numpy as np
import pytest
import tenseal as ts
import tenseal.sealapi as seal
from consortium import BITS_OF_MODULUS, COHORT, Consortium, fixed_bytes, golden
from hostile import flipped, flips, hostile_bytes, resized
from hypothesis import given, settings

from protocol.errors import (
    AgreementMismatchError,
    ChecksumError,
    CohortMismatchError,
    EpochMismatchError,
    LengthError,
    MalformedError,
    ParametersMismatchError,
    ProtocolError,
    ResidueRangeError,
    RoundKindMismatchError,
    RoundMismatchError,
    SecretMaterialError,
    SessionMismatchError,
    SignatureError,
    SiteMismatchError,
    StateMismatchError,
)
from protocol.expansion import expand_seeds
from protocol.packing import RoundKind
from protocol.update import EncryptedAggregate, SealedUpdate, check_no_secret

CONSORTIUM = Consortium()
AGREEMENT, TERMS = CONSORTIUM.agreement, CONSORTIUM.terms()
MODULUS = AGREEMENT.parameters.modulus
UPDATE, AGGREGATE = golden("update_0"), golden("aggregate")
EXPANDING = Consortium(largest_seeded_cohort=2)
EXPANDED = golden("aggregate_expanded")

HEADER_ERRORS = [
    (4, MalformedError),  # magic
    (1, RoundKindMismatchError),
    (3, ParametersMismatchError),  # modulus, ring degree, tag vectors
    (4, EpochMismatchError),
    (4, RoundMismatchError),
    (2, (SiteMismatchError, SignatureError)),  # outside the cohort, or a site that has not signed it
    (14, ParametersMismatchError),  # sites, ciphertexts, values
    (32, AgreementMismatchError),
    (32, SessionMismatchError),
    (32, CohortMismatchError),
    (32, StateMismatchError),
]
BODY = 2048 * 4
TAIL_ERRORS = [(64, SignatureError), (16, SignatureError), (64, SignatureError), (64, SignatureError)]
"""Seeds, checksum, sealed tag, signature."""

UPDATE_FIELDS = [4, 1, 1, 1, 1, 4, 4, 2, 2, 4, 8, 32, 32, 32, 32, BODY, 64, 16, 64, 64]
PROOF_FIELDS = [160, 64, 16, 64, 64]
AGGREGATE_FIELDS = [4, 4, 2, 2, BODY, *PROOF_FIELDS, *PROOF_FIELDS, *PROOF_FIELDS]
SHORT_PROOF_FIELDS = [160, 32, 16, 64, 64]
EXPANDED_FIELDS = [4, 4, 2, 2, BODY, BODY, *SHORT_PROOF_FIELDS, *SHORT_PROOF_FIELDS, *SHORT_PROOF_FIELDS]


def read(data, terms=TERMS):
    return SealedUpdate.from_bytes(data, terms)


def read_and_check(data, consortium=CONSORTIUM):
    """Do with an aggregate what every site does before it looks at tags."""
    terms = consortium.terms()
    aggregate = EncryptedAggregate.from_bytes(data, consortium.agreement)
    if aggregate.round != terms.round:
        raise RoundMismatchError("round", expected=terms.round, got=aggregate.round)
    for proof in aggregate.proofs:
        proof.check(terms)
    return aggregate


def spans(fields):
    """Yield (positions, error) for consecutive fields of these sizes."""
    ends = list(accumulate(size for size, _ in fields))
    return [(range(end - size, end), error) for end, (size, error) in zip(ends, fields, strict=True)]


def peak_memory(refused):
    """Return the most bytes that a refused parse held at a time."""
    tracemalloc.start()
    with pytest.raises(ProtocolError):
        refused()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


@pytest.fixture(scope="module")
def secret_key(tmp_path_factory):
    """The bytes of a real CKKS secret key of this federation's parameters, as SEAL saves it."""
    parms = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
    parms.set_poly_modulus_degree(2048)
    parms.set_coeff_modulus(seal.CoeffModulus.Create(2048, [32]))
    path = tmp_path_factory.mktemp("seal") / "key"
    seal.KeyGenerator(seal.SEALContext(parms, True, seal.SEC_LEVEL_TYPE.TC128)).secret_key().save(str(path))
    return path.read_bytes()


@pytest.fixture(scope="module")
def secret_context():
    """A real TenSEAL context with its secret key in it."""
    context = ts.context(ts.SCHEME_TYPE.CKKS, poly_modulus_degree=8192, coeff_mod_bit_sizes=[60, 40, 60])
    return context.serialize(save_secret_key=True)


@pytest.mark.parametrize("site", COHORT)
def test_updates_are_fixed_for_ever(site):
    assert CONSORTIUM.update(TERMS, site).to_bytes() == golden(f"update_{site}")


@pytest.mark.parametrize("site", COHORT)
def test_a_good_update_is_read_back(site):
    data, made = golden(f"update_{site}"), CONSORTIUM.update(TERMS, site)

    for update in (read(data), read(memoryview(data))):
        assert update.proof == made.proof
        assert np.array_equal(update.residues, made.residues)
        assert update.to_bytes() == data


@pytest.mark.parametrize("largest_seeded_cohort", [3, 2], ids=["seeded", "expanded"])
@pytest.mark.parametrize("hidden", [(), (1000,)], ids=["one ciphertext", "several ciphertexts"])
@pytest.mark.parametrize("round_number", [0, 1, 3])
@pytest.mark.parametrize("modulus_bits", [24, 32, 40])
def test_updates_and_aggregates_of_every_modulus_and_round_are_read_back(
    modulus_bits, round_number, hidden, largest_seeded_cohort
):
    consortium = Consortium(
        value_bits=BITS_OF_MODULUS[modulus_bits], hidden=hidden, largest_seeded_cohort=largest_seeded_cohort
    )
    terms = consortium.terms(round_number)
    update, aggregate = consortium.update(terms, 1), consortium.aggregate(terms)

    update_read = read(update.to_bytes(), terms)
    aggregate_read = EncryptedAggregate.from_bytes(aggregate.to_bytes(), consortium.agreement)

    assert update_read.proof == update.proof
    assert np.array_equal(update_read.residues, update.residues)
    assert (aggregate_read.round, aggregate_read.proofs) == (round_number, aggregate.proofs)
    assert np.array_equal(aggregate_read.residues, aggregate.residues)
    assert aggregate_read.residues.shape == terms.sum_shape
    assert aggregate_read.cohort == COHORT
    assert aggregate_read.to_bytes() == aggregate.to_bytes()


def test_an_update_is_laid_out_as_documented():
    proof = CONSORTIUM.update(TERMS, 0).proof

    assert UPDATE[:160] == proof.header.to_bytes()
    assert UPDATE[160 + BODY :] == proof.seeds + proof.checksum + proof.tag + proof.signature
    assert proof.to_bytes() == UPDATE[:160] + UPDATE[160 + BODY :]


@pytest.mark.parametrize("data", resized(UPDATE, UPDATE_FIELDS), ids=len)
def test_an_update_of_another_length_is_refused(data):
    with pytest.raises(LengthError) as refusal:
        read(data)

    assert (refusal.value.expected, refusal.value.got) == (len(UPDATE), len(data))


@pytest.mark.parametrize(("places", "error"), spans(HEADER_ERRORS))
def test_every_flipped_bit_of_the_header_is_refused_by_its_field(places, error):
    for _, data in flips(UPDATE, places):
        with pytest.raises(error):
            read(data)


@pytest.mark.parametrize(("places", "error"), spans([(160 + BODY, None), *TAIL_ERRORS])[1:])
def test_every_flipped_bit_of_seeds_checksum_tag_and_signature_is_refused(places, error):
    for _, data in flips(UPDATE, places):
        with pytest.raises(error):
            read(data)


def test_flipped_bits_of_residues_are_refused():
    for bit in (*range(8 * 160, 8 * 170), *range(8 * 170, 8 * (160 + BODY), 131), 8 * (160 + BODY) - 1):
        with pytest.raises(ChecksumError):
            read(flipped(UPDATE, bit))


def test_the_spans_above_cover_the_whole_update():
    assert sum(size for size, _ in HEADER_ERRORS) + BODY + sum(size for size, _ in TAIL_ERRORS) == len(UPDATE)


@pytest.mark.parametrize(
    ("terms", "error"),
    [
        pytest.param(Consortium(clip=2.0).terms(), AgreementMismatchError, id="agreement"),
        pytest.param(Consortium(run="another").terms(), SessionMismatchError, id="session"),
        pytest.param(replace(TERMS, epoch=2), EpochMismatchError, id="epoch"),
        pytest.param(CONSORTIUM.terms(2), RoundMismatchError, id="the next round"),
        pytest.param(CONSORTIUM.terms(0), RoundMismatchError, id="the statistics round"),
        pytest.param(CONSORTIUM.terms(cohort=(0, 1, 2)), CohortMismatchError, id="cohort"),
        pytest.param(CONSORTIUM.terms(cohort=(0, 1, 2, 3)), CohortMismatchError, id="larger cohort"),
        pytest.param(replace(TERMS, state=fixed_bytes("state", 2)), StateMismatchError, id="state"),
    ],
)
def test_an_update_signed_under_other_terms_is_refused(terms, error):
    site = 0
    consortium = Consortium(clip=terms.agreement.terms.training.clip)
    data = consortium.update(terms, site).to_bytes()
    assert read(data, terms).proof.header.site == site

    with pytest.raises(error) as refusal:
        read(data)
    assert refusal.type is error


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"kind": int(RoundKind.EVALUATE)}, RoundKindMismatchError),
        ({"kind": 255}, RoundKindMismatchError),
        ({"modulus_bits": 40}, ParametersMismatchError),
        ({"ring_degree_bits": 12}, ParametersMismatchError),
        ({"tag_vectors": 3}, ParametersMismatchError),
        ({"sites": 5}, ParametersMismatchError),
        ({"ciphertexts": 2}, ParametersMismatchError),
        ({"ciphertexts": 2**32 - 1}, ParametersMismatchError),
        ({"values": TERMS.plan.values + 1}, ParametersMismatchError),
        ({"values": 2**64 - 1}, ParametersMismatchError),
        ({"site": 2}, SiteMismatchError),
        ({"site": 4}, SiteMismatchError),
        ({"site": 65535}, SiteMismatchError),
        ({"site": 1}, SignatureError),
    ],
)
def test_a_site_that_signs_a_header_it_may_not_send_is_refused(changes, error):
    update = CONSORTIUM.update(TERMS, 0, header=replace(TERMS.header_of(0), **changes))

    with pytest.raises(error) as refusal:
        # residues are written as wide as the round's own, so that nothing but the header is wrong
        read(update.proof.header.to_bytes() + UPDATE[160 : 160 + BODY] + update.proof.to_bytes()[160:])
    assert refusal.type is error


def test_an_update_signed_by_another_site_is_refused():
    with pytest.raises(SignatureError) as refusal:
        read(CONSORTIUM.update(TERMS, 0, signer=1).to_bytes())

    assert refusal.value.expected == "one by hospital-1"


@pytest.mark.parametrize("part", [range(160 + BODY, 160 + BODY + 64), range(160 + BODY + 80, 160 + BODY + 144)])
def test_seeds_or_tag_of_another_site_are_refused(part):
    other = golden("update_1")

    with pytest.raises(SignatureError):
        read(UPDATE[: part.start] + other[part.start : part.stop] + UPDATE[part.stop :])


def test_residues_of_another_site_are_refused():
    with pytest.raises(ChecksumError):
        read(UPDATE[:160] + golden("update_1")[160 : 160 + BODY] + UPDATE[160 + BODY :])


def test_residues_of_another_site_with_their_checksum_are_refused():
    other, checksum = golden("update_1"), slice(160 + BODY + 64, 160 + BODY + 80)
    data = bytearray(UPDATE[:160] + other[160 : 160 + BODY] + UPDATE[160 + BODY :])
    data[checksum] = other[checksum]

    with pytest.raises(SignatureError):
        read(data)


@pytest.mark.parametrize("place", [0, 1000, 2047])
@pytest.mark.parametrize("modulus_bits", [24, 32, 40])
@pytest.mark.parametrize("beyond", ["q", "the largest word"])
def test_a_signed_residue_of_q_or_more_is_refused(modulus_bits, place, beyond):
    consortium = Consortium(value_bits=BITS_OF_MODULUS[modulus_bits])
    terms, modulus = consortium.terms(), consortium.agreement.parameters.modulus
    residues = consortium.residues(terms, 0).copy()
    residues[0, place] = modulus if beyond == "q" else (1 << modulus_bits) - 1

    with pytest.raises(ResidueRangeError):
        read(consortium.update(terms, 0, residues=residues).to_bytes(), terms)


def test_a_secret_key_in_place_of_an_update_stops_the_reading(secret_key):
    for data in (secret_key, secret_key[:3], secret_key.ljust(len(UPDATE), b"\0")[: len(UPDATE)]):
        with pytest.raises(SecretMaterialError):
            read(data)
        with pytest.raises(SecretMaterialError):
            read(memoryview(data))
        with pytest.raises(SecretMaterialError):
            check_no_secret(data)


def test_the_refusal_of_a_secret_key_holds_nothing_of_it(secret_key):
    with pytest.raises(SecretMaterialError) as refusal:
        read(secret_key)

    assert str(refusal.value) == "a SEAL object (a key?) came in place of a message; nothing of it was read"


def test_a_secret_key_in_place_of_an_aggregate_is_refused(secret_key):
    with pytest.raises(MalformedError):
        EncryptedAggregate.from_bytes(secret_key, AGREEMENT)


def test_a_tenseal_context_in_place_of_a_message_is_refused(secret_context):
    for data in (secret_context, secret_context[: len(UPDATE)]):
        with pytest.raises(MalformedError):
            read(data)
        with pytest.raises(MalformedError):
            EncryptedAggregate.from_bytes(data, AGREEMENT)


@pytest.mark.parametrize("data", [UPDATE, AGGREGATE, b"", b"\x5e\xa1", b"\x00\x5e\xa1\x10"])
def test_what_does_not_begin_like_a_seal_object_is_not_taken_for_one(data):
    check_no_secret(data)


def test_the_aggregate_is_fixed_for_ever():
    assert CONSORTIUM.aggregate(TERMS).to_bytes() == AGGREGATE


def test_the_golden_aggregate_is_the_sum_of_the_golden_updates():
    aggregate = read_and_check(AGGREGATE)
    updates = [read(golden(f"update_{site}")) for site in COHORT]

    assert aggregate.proofs == tuple(update.proof for update in updates)
    assert aggregate.residues.tolist() == (sum(u.residues.astype(object) for u in updates) % MODULUS).tolist()


@pytest.mark.parametrize("data", resized(AGGREGATE, AGGREGATE_FIELDS), ids=len)
def test_an_aggregate_of_another_length_is_refused(data):
    with pytest.raises(LengthError):
        EncryptedAggregate.from_bytes(data, AGREEMENT)


@pytest.mark.parametrize(
    ("places", "errors"),
    [
        (range(4), MalformedError),  # magic
        (range(4, 8), (MalformedError, RoundMismatchError)),  # a round that the run has not, or has
        (range(8, 10), (LengthError, MalformedError)),  # count
        (range(10, 12), MalformedError),  # zeros
    ],
)
def test_every_flipped_bit_of_an_aggregates_head_is_refused(places, errors):
    for _, data in flips(AGGREGATE, places):
        with pytest.raises(errors):
            read_and_check(data)


def test_a_bit_flipped_anywhere_in_the_proofs_of_an_aggregate_is_refused():
    for place, data in flips(AGGREGATE, range(12 + BODY, len(AGGREGATE), 7)):
        with pytest.raises(ProtocolError):
            read_and_check(data)
        assert data[place] != AGGREGATE[place]


def test_a_bit_flipped_in_the_residues_of_an_aggregate_is_read_as_it_is():
    # no checksum covers the sum; what it must add up to is in the sealed tags
    changed = EncryptedAggregate.from_bytes(flipped(AGGREGATE, 8 * 12), AGREEMENT)

    assert np.count_nonzero(changed.residues != CONSORTIUM.aggregate(TERMS).residues) == 1


@pytest.mark.parametrize("place", [0, 2047])
@pytest.mark.parametrize("word", [MODULUS, 2**32 - 1])
def test_a_residue_of_q_or_more_in_an_aggregate_is_refused(place, word):
    aggregate = CONSORTIUM.aggregate(TERMS)
    aggregate.residues[0, place] = word

    with pytest.raises(ResidueRangeError):
        EncryptedAggregate.from_bytes(aggregate.to_bytes(), AGREEMENT)


@pytest.mark.parametrize("number", [4, 2**32 - 1])
def test_an_aggregate_of_a_round_that_the_run_does_not_have_is_refused(number):
    with pytest.raises(MalformedError) as refusal:
        EncryptedAggregate.from_bytes(AGGREGATE[:4] + number.to_bytes(4, "little") + AGGREGATE[8:], AGREEMENT)

    assert (refusal.value.what, refusal.value.got) == ("round", number)


def test_an_aggregate_of_more_proofs_than_the_roster_has_sites_is_refused_before_its_length_is_looked_at():
    proof = AGGREGATE[12 + BODY : 12 + BODY + sum(PROOF_FIELDS)]
    data = AGGREGATE[:8] + (5).to_bytes(2, "little") + AGGREGATE[10 : 12 + BODY] + 5 * proof

    with pytest.raises(MalformedError) as refusal:
        EncryptedAggregate.from_bytes(data, AGREEMENT)
    assert (refusal.value.expected, refusal.value.got) == ("at most 4", 5)


def test_an_aggregate_may_claim_a_cohort_that_the_agreement_then_refuses():
    proofs = CONSORTIUM.aggregate(TERMS).proofs
    doubled = replace(CONSORTIUM.aggregate(TERMS), proofs=(proofs[0], proofs[0], proofs[1]))

    with pytest.raises(ProtocolError):
        AGREEMENT.check_cohort(EncryptedAggregate.from_bytes(doubled.to_bytes(), AGREEMENT).cohort)


def test_claimed_counts_cost_no_memory():
    most = b"\xff\xff"
    head = AGGREGATE[:8] + most + AGGREGATE[10:]

    assert peak_memory(lambda: EncryptedAggregate.from_bytes(head, AGREEMENT)) < 1 << 16
    assert peak_memory(lambda: EncryptedAggregate.from_bytes(head[:12], AGREEMENT)) < 1 << 16
    assert peak_memory(lambda: read(UPDATE[:20] + b"\xff" * 12 + UPDATE[32:])) < 1 << 16
    assert peak_memory(lambda: read(UPDATE[:100])) < 1 << 16


@settings(max_examples=150)
@given(hostile_bytes(UPDATE))
def test_hostile_updates_raise_nothing_but_a_refusal(data):
    try:
        update = read(data)
    except (ProtocolError, SecretMaterialError):
        return
    assert update.to_bytes() == data


@settings(max_examples=150)
@given(hostile_bytes(AGGREGATE))
def test_hostile_aggregates_raise_nothing_but_a_refusal(data):
    try:
        aggregate = EncryptedAggregate.from_bytes(data, AGREEMENT)
    except (ProtocolError, SecretMaterialError):
        return
    assert aggregate.to_bytes() == data


def test_the_expanded_aggregate_is_fixed_for_ever_and_laid_out_as_documented():
    terms = EXPANDING.terms()
    aggregate = EXPANDING.aggregate(terms)
    updates = [EXPANDING.update(terms, site) for site in COHORT]
    modulus = EXPANDING.agreement.parameters.modulus

    assert aggregate.to_bytes() == EXPANDED
    assert EXPANDED[:12] == AGGREGATE[:12]
    first = sum(update.residues.astype(object) for update in updates) % modulus
    assert EXPANDED[12 : 12 + BODY] == first.astype("<u4").tobytes()
    second = sum(expand_seeds(u.proof.seeds, EXPANDING.agreement.parameters).astype(object) for u in updates) % modulus
    assert EXPANDED[12 + BODY : 12 + 2 * BODY] == second.astype("<u4").tobytes()
    assert EXPANDED[12 + 2 * BODY :] == b"".join(
        proof.header.to_bytes() + hashlib.sha256(proof.seeds).digest() + proof.checksum + proof.tag + proof.signature
        for proof in (update.proof for update in updates)
    )


def test_an_update_is_the_same_whatever_becomes_of_its_seeds():
    assert len(EXPANDING.update(EXPANDING.terms(), 0).to_bytes()) == len(UPDATE)


def test_a_proof_without_its_seeds_is_signed_by_the_same_signature():
    terms = EXPANDING.terms()
    proof = EXPANDING.update(terms, 0).proof

    assert proof.without_seeds() == proof
    assert proof.without_seeds().seeds == b""
    proof.without_seeds().check(terms)
    for changed in (
        replace(proof, seeds=bytes(64)),
        replace(proof.without_seeds(), seeds_digest=bytes(32)),
        replace(proof.without_seeds(), seeds_digest=b""),
    ):
        assert changed != proof
        with pytest.raises(SignatureError):
            changed.check(terms)


def test_a_digest_beside_seeds_counts_for_nothing():
    proof = CONSORTIUM.update(TERMS, 0).proof

    assert replace(proof, seeds_digest=bytes(32)).seeds_digest == hashlib.sha256(proof.seeds).digest()


@pytest.mark.parametrize("data", resized(EXPANDED, EXPANDED_FIELDS), ids=len)
def test_an_expanded_aggregate_of_another_length_is_refused(data):
    with pytest.raises(LengthError):
        EncryptedAggregate.from_bytes(data, EXPANDING.agreement)


def test_the_form_of_an_aggregate_is_not_the_sender_s_choice():
    with pytest.raises(LengthError):
        EncryptedAggregate.from_bytes(EXPANDED, AGREEMENT)
    with pytest.raises(LengthError):
        EncryptedAggregate.from_bytes(AGGREGATE, EXPANDING.agreement)


def test_a_bit_flipped_anywhere_in_the_proofs_of_an_expanded_aggregate_is_refused():
    read_and_check(EXPANDED, EXPANDING)
    for place, data in flips(EXPANDED, range(12 + 2 * BODY, len(EXPANDED), 7)):
        with pytest.raises(ProtocolError):
            read_and_check(data, EXPANDING)
        assert data[place] != EXPANDED[place]


@pytest.mark.parametrize("place", [(0, 0), (0, 2047), (1, 0), (1, 2047)])
@pytest.mark.parametrize("word", [MODULUS, 2**32 - 1])
def test_a_residue_of_q_or_more_in_either_polynomial_is_refused(place, word):
    aggregate = EXPANDING.aggregate(EXPANDING.terms())
    aggregate.residues[place] = word

    with pytest.raises(ResidueRangeError):
        EncryptedAggregate.from_bytes(aggregate.to_bytes(), EXPANDING.agreement)


def test_claimed_counts_of_expanded_aggregates_cost_no_memory():
    head = EXPANDED[:8] + b"\xff\xff" + EXPANDED[10:]

    for data in (head, head[:12], EXPANDED[:12], EXPANDED[:-1]):
        assert peak_memory(lambda data=data: EncryptedAggregate.from_bytes(data, EXPANDING.agreement)) < 1 << 16


@settings(max_examples=150)
@given(hostile_bytes(EXPANDED))
def test_hostile_expanded_aggregates_raise_nothing_but_a_refusal(data):
    try:
        aggregate = EncryptedAggregate.from_bytes(data, EXPANDING.agreement)
    except (ProtocolError, SecretMaterialError):
        return
    assert aggregate.to_bytes() == data
