from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tenseal as ts
import tenseal.sealapi as seal
from consortium import BITS_OF_MODULUS, COHORT, Consortium, fixed_bytes, golden
from hostile import flipped, resized
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import (
    AgreementMismatchError,
    ChecksumError,
    CohortError,
    CohortIncompleteError,
    CohortMismatchError,
    DuplicateUpdateError,
    EpochMismatchError,
    LengthError,
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
from protocol.packing import RoundKind
from strategies.round_sum import RoundSum

CONSORTIUM = Consortium()
TERMS = CONSORTIUM.terms()
EXPANDING = Consortium(largest_seeded_cohort=2)
UPDATES = {site: golden(f"update_{site}") for site in COHORT}
FIELD_SIZES = [160, 2048 * 4, 64, 16, 64, 64]


def other_update(consortium=CONSORTIUM, terms=TERMS, **changes):
    """Return an update that site 1 has signed, with something in it that this round does not want."""
    return consortium.update(terms, 1, header=replace(terms.header_of(1), **changes)).to_bytes()


def with_residue(word):
    residues = CONSORTIUM.residues(TERMS, 1).copy()
    residues[0, 100] = word
    return CONSORTIUM.update(TERMS, 1, residues=residues).to_bytes()


def seal_secret_key(path):
    parms = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
    parms.set_poly_modulus_degree(2048)
    parms.set_coeff_modulus(seal.CoeffModulus.Create(2048, [32]))
    seal.KeyGenerator(seal.SEALContext(parms, True, seal.SEC_LEVEL_TYPE.TC128)).secret_key().save(str(path))
    return path.read_bytes()


OTHER_AGREEMENT, OTHER_RUN = Consortium(clip=2.0), Consortium(run="another")
WIDER = Consortium(value_bits=BITS_OF_MODULUS[40])
HOSTILE = {
    "another agreement": (other_update(OTHER_AGREEMENT, OTHER_AGREEMENT.terms()), AgreementMismatchError),
    "another session": (other_update(OTHER_RUN, OTHER_RUN.terms()), SessionMismatchError),
    "another epoch": (other_update(terms=replace(TERMS, epoch=2)), EpochMismatchError),
    "the round before": (other_update(terms=CONSORTIUM.terms(0)), RoundMismatchError),
    "the round after": (other_update(terms=CONSORTIUM.terms(2)), RoundMismatchError),
    "another kind of round": (other_update(kind=int(RoundKind.EVALUATE)), RoundKindMismatchError),
    "another cohort": (other_update(terms=CONSORTIUM.terms(cohort=(0, 1, 2))), CohortMismatchError),
    "a larger cohort": (other_update(terms=CONSORTIUM.terms(cohort=(0, 1, 2, 3))), CohortMismatchError),
    "another state": (other_update(terms=replace(TERMS, state=fixed_bytes("state", 7))), StateMismatchError),
    "another modulus": (other_update(WIDER, WIDER.terms()), LengthError),
    "another ring degree": (other_update(ring_degree_bits=12), ParametersMismatchError),
    "other tag vectors": (other_update(tag_vectors=3), ParametersMismatchError),
    "another roster length": (other_update(sites=5), ParametersMismatchError),
    "other ciphertexts": (other_update(ciphertexts=2), ParametersMismatchError),
    "other values": (other_update(values=7), ParametersMismatchError),
    "a site outside the cohort": (CONSORTIUM.update(TERMS, 2).to_bytes(), SiteMismatchError),
    "a site outside the roster": (other_update(site=9), SiteMismatchError),
    "another site's name": (other_update(site=3), SignatureError),
    "another site's signature": (CONSORTIUM.update(TERMS, 1, signer=0).to_bytes(), SignatureError),
    "an altered residue": (flipped(UPDATES[1], 8 * 4000), ChecksumError),
    "an altered seed": (flipped(UPDATES[1], 8 * (160 + 8192)), SignatureError),
    "an altered checksum": (flipped(UPDATES[1], 8 * (160 + 8192 + 64)), SignatureError),
    "an altered tag": (flipped(UPDATES[1], 8 * (160 + 8192 + 80)), SignatureError),
    "an altered signature": (flipped(UPDATES[1], 8 * len(UPDATES[1]) - 1), SignatureError),
    "a residue of q": (with_residue(CONSORTIUM.agreement.parameters.modulus), ResidueRangeError),
    "the largest word": (with_residue(2**32 - 1), ResidueRangeError),
    "an aggregate": (golden("aggregate"), LengthError),
    "a note": (golden("note_ready"), LengthError),
    **{f"{len(data)} bytes": (data, LengthError) for data in resized(UPDATES[1], FIELD_SIZES)},
}


def clean_sum():
    total = RoundSum(TERMS)
    for site in COHORT:
        total.add(UPDATES[site])
    return total.close().to_bytes()


def test_the_sum_of_the_golden_updates_is_the_golden_aggregate():
    assert clean_sum() == golden("aggregate")


@settings(max_examples=6)
@given(st.permutations(COHORT))
def test_the_order_of_arrival_does_not_matter(order):
    total = RoundSum(TERMS)
    for count, site in enumerate(order):
        assert set(total.missing) == set(order[count:])
        assert total.add(UPDATES[site]) == site

    assert total.missing == ()
    assert total.close().to_bytes() == golden("aggregate")


@settings(max_examples=6)
@given(st.permutations(COHORT))
def test_an_expanded_sum_is_the_golden_one_in_whatever_order_its_updates_come(order):
    terms = EXPANDING.terms()
    total = RoundSum(terms)
    for site in order:
        data = EXPANDING.update(terms, site).to_bytes()
        assert total.add(data) == site
        with pytest.raises(DuplicateUpdateError):
            total.add(data)
        with pytest.raises(ChecksumError):
            total.add(flipped(data, 8 * 4000))

    assert total.close().to_bytes() == golden("aggregate_expanded")
    assert total.close().to_bytes() == golden("aggregate_expanded")


def test_the_seeds_of_a_large_cohort_are_forgotten_once_they_are_expanded():
    terms = EXPANDING.terms()
    total = RoundSum(terms)
    for site in COHORT:
        total.add(EXPANDING.update(terms, site).to_bytes())

    assert {proof.seeds for proof in total.close().proofs} == {b""}


@pytest.mark.parametrize("largest_seeded_cohort", [4, 3], ids=["seeded", "expanded"])
@pytest.mark.parametrize("round_number", [0, 1, 3])
@pytest.mark.parametrize("modulus_bits", [24, 32, 40])
def test_sums_of_every_modulus_and_round_equal_python_integers(modulus_bits, round_number, largest_seeded_cohort):
    consortium = Consortium(
        value_bits=BITS_OF_MODULUS[modulus_bits], hidden=(1000,), largest_seeded_cohort=largest_seeded_cohort
    )
    terms = consortium.terms(round_number, cohort=(0, 1, 2, 3))
    total = RoundSum(terms)
    for site in terms.cohort:
        total.add(memoryview(consortium.update(terms, site).to_bytes()))

    aggregate, expected = total.close(), consortium.aggregate(terms)
    assert aggregate.proofs == expected.proofs
    assert np.array_equal(aggregate.residues, expected.residues)


@pytest.mark.parametrize("what", HOSTILE)
def test_what_does_not_belong_to_the_round_is_refused_by_its_own_error(what):
    data, error = HOSTILE[what]

    with pytest.raises(error) as refusal:
        RoundSum(TERMS).add(data)
    assert refusal.type is error


def test_refused_updates_leave_the_sum_as_it_is():
    total = RoundSum(TERMS)
    for site in COHORT:
        for data, error in HOSTILE.values():
            before = total.missing
            with pytest.raises(error):
                total.add(data)
            assert total.missing == before
        total.add(UPDATES[site])
        for earlier in COHORT[: COHORT.index(site) + 1]:
            with pytest.raises(DuplicateUpdateError):
                total.add(UPDATES[earlier])

    assert total.close().to_bytes() == clean_sum()


def test_a_second_update_of_a_site_is_refused_even_if_it_is_another():
    total = RoundSum(TERMS)
    total.add(UPDATES[1])
    another = CONSORTIUM.update(TERMS, 1, residues=CONSORTIUM.residues(TERMS, 0)).to_bytes()

    for data in (UPDATES[1], another):
        with pytest.raises(DuplicateUpdateError) as refusal:
            total.add(data)
        assert (refusal.value.expected, refusal.value.got) == (1, 2)
    assert total.missing == (0, 3)


@pytest.mark.parametrize("added", [(), (0,), (3,), (0, 3), (3, 1)])
def test_a_sum_cannot_be_closed_before_its_whole_cohort_is_in(added):
    total = RoundSum(TERMS)
    for site in added:
        total.add(UPDATES[site])

    with pytest.raises(CohortIncompleteError) as refusal:
        total.close()
    assert refusal.value.got == tuple(site for site in COHORT if site not in added) == total.missing


def test_a_sum_that_was_refused_closing_can_be_completed():
    total = RoundSum(TERMS)
    total.add(UPDATES[0])
    with pytest.raises(CohortIncompleteError):
        total.close()
    total.add(UPDATES[3])
    total.add(UPDATES[1])

    assert total.close().to_bytes() == golden("aggregate")


def test_closing_twice_gives_the_same_sum():
    total = RoundSum(TERMS)
    for data in UPDATES.values():
        total.add(data)

    first = total.close().to_bytes()
    with pytest.raises(DuplicateUpdateError):
        total.add(UPDATES[0])
    assert total.close().to_bytes() == first


@pytest.mark.parametrize("cohort", [(), (0,), (0, 1), (1, 0, 3), (0, 1, 1), (0, 1, 4)])
def test_a_sum_over_a_cohort_that_the_agreement_forbids_is_never_begun(cohort):
    with pytest.raises(CohortError):
        RoundSum(replace(TERMS, cohort=cohort))


def test_a_real_secret_key_in_place_of_an_update_stops_the_sum(tmp_path):
    key = seal_secret_key(tmp_path / "key")
    total = RoundSum(TERMS)
    total.add(UPDATES[0])

    for data in (key, key.ljust(len(UPDATES[1]), b"\0")[: len(UPDATES[1])]):
        with pytest.raises(SecretMaterialError):
            total.add(data)

    total.add(UPDATES[1])
    total.add(UPDATES[3])
    assert total.close().to_bytes() == golden("aggregate")


def test_a_real_tenseal_context_with_its_secret_key_is_refused():
    context = ts.context(ts.SCHEME_TYPE.CKKS, poly_modulus_degree=8192, coeff_mod_bit_sizes=[60, 40, 60])
    data = context.serialize(save_secret_key=True)
    total = RoundSum(TERMS)

    for sent in (data, data[: len(UPDATES[1])]):
        with pytest.raises(ProtocolError):
            total.add(sent)
    assert total.missing == COHORT
