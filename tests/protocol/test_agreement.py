from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest
from consortium import Consortium, fixed_bytes, golden
from hostile import hostile_bytes
from hypothesis import given, settings

from protocol.agreement import MAX_AGREEMENT_BYTES, Agreement, SiteCard
from protocol.errors import CohortError, ConfigurationError, LengthError, MalformedError, ProtocolError, SignatureError
from protocol.packing import RoundKind
from protocol.parameters import CkksParameters
from protocol.terms import CohortTerms, ModelTerms

CONSORTIUM = Consortium()
AGREEMENT = CONSORTIUM.agreement
GOLDEN = golden("agreement")


def encoded(table):
    return json.dumps(table, sort_keys=True, separators=(",", ":")).encode()


def changed(*path, to):
    """Return the golden agreement, canonically encoded, with one value replaced."""
    table = json.loads(GOLDEN)
    place = table
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = to
    return encoded(table)


def without(*path):
    table = json.loads(GOLDEN)
    place = table
    for key in path[:-1]:
        place = place[key]
    del place[path[-1]]
    return encoded(table)


def cards(count):
    return tuple(
        SiteCard(name=f"site-{n:03}", signing_key=fixed_bytes("s", n).hex(), exchange_key=fixed_bytes("x", n).hex())
        for n in range(count)
    )


def test_the_encoding_is_fixed_for_ever():
    assert AGREEMENT.to_bytes() == GOLDEN
    assert AGREEMENT.digest.hex() == "63f6bf896e9ab0d1b11eecfb9eeb4921752b2eb05ad3dccc89c61cc8536e0a27"


def test_an_agreement_can_be_read_back():
    assert Agreement.from_bytes(GOLDEN) == AGREEMENT
    assert Agreement.from_bytes(GOLDEN).digest == AGREEMENT.digest


def test_the_encoding_is_that_of_sorted_keys_without_spaces():
    assert encoded(json.loads(GOLDEN)) == GOLDEN


@pytest.mark.parametrize(
    "other",
    [
        replace(AGREEMENT, code_digest="00" * 32),
        replace(AGREEMENT, roster=AGREEMENT.roster[:3]),
        replace(AGREEMENT, roster=(*AGREEMENT.roster[:3], replace(AGREEMENT.roster[3], exchange_key="00" * 32))),
        replace(AGREEMENT, terms=replace(AGREEMENT.terms, cohort=CohortTerms(smallest_cohort=4))),
        Consortium(clip=2.0).agreement,
        replace(AGREEMENT, secret_digest="ab" * 32),
        replace(AGREEMENT, start="ab" * 32),
    ],
)
def test_another_agreement_has_another_digest(other):
    assert other.digest != AGREEMENT.digest
    assert Agreement.from_bytes(other.to_bytes()) == other


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(changed("extra", to=1), id="unknown key"),
        pytest.param(changed("terms", "extra", to=1), id="unknown key in the terms"),
        pytest.param(changed("roster", 0, "secret", to="x"), id="unknown key in a card"),
        pytest.param(without("code_digest"), id="missing key"),
        pytest.param(without("terms", "model", "kind"), id="missing key that has a default"),
        pytest.param(changed("terms", "training", "rounds", to=2.0), id="float for an integer"),
        pytest.param(changed("terms", "training", "rounds", to="2"), id="text for an integer"),
        pytest.param(changed("terms", "training", "local_epochs", to=True), id="boolean for an integer"),
        pytest.param(changed("terms", "training", "clip", to=4), id="integer for a float"),
        pytest.param(changed("terms", "training", "clip", to=float("nan")), id="NaN"),
        pytest.param(changed("terms", "training", "clip", to=float("inf")), id="infinity"),
        pytest.param(changed("terms", "training", "rounds", to=10**400), id="an integer beyond every float"),
        pytest.param(changed("terms", "training", "clip", to=10**400), id="a float beyond every float"),
        pytest.param(changed("terms", "training", "rounds", to=None), id="null"),
        pytest.param(changed("terms", "training", "rounds", to=0), id="value out of range"),
        pytest.param(changed("terms", "model", "hidden", to=[4]), id="model that contradicts itself"),
        pytest.param(changed("terms", "cohort", "smallest_cohort", to=2), id="cohort of too few"),
        pytest.param(changed("terms", to=[]), id="list for a table"),
        pytest.param(changed("roster", to={}), id="table for a list"),
        pytest.param(changed("roster", to=json.loads(GOLDEN)["roster"][::-1]), id="roster out of order"),
        pytest.param(changed("roster", to=json.loads(GOLDEN)["roster"][:2]), id="roster below the smallest cohort"),
        pytest.param(changed("roster", 1, "name", to="hospital-1"), id="a name twice"),
        pytest.param(changed("roster", 1, "name", to="../hospital-1"), id="a name that is a path"),
        pytest.param(changed("roster", 0, "name", to="Hospital-1"), id="a name with capitals"),
        pytest.param(changed("roster", 1, "signing_key", to=AGREEMENT.roster[0].signing_key), id="a key twice"),
        pytest.param(
            changed("roster", 1, "exchange_key", to=AGREEMENT.roster[0].exchange_key), id="an exchange key twice"
        ),
        pytest.param(changed("roster", 1, "signing_key", to="zz" * 32), id="a key that is not hex"),
        pytest.param(changed("terms", "crypto", "epoch_rounds", to=-1), id="epochs of less than no rounds"),
        pytest.param(changed("roster", 1, "exchange_key", to="AB" * 32), id="a key in capitals"),
        pytest.param(changed("roster", 1, "exchange_key", to="ab" * 31), id="a key too short"),
        pytest.param(changed("code_digest", to="\x1b]0;x\x07"), id="a code that writes to the terminal"),
        pytest.param(without("secret_digest"), id="no commitment to a secret"),
        pytest.param(changed("secret_digest", to=""), id="an empty commitment"),
        pytest.param(changed("secret_digest", to="AB" * 32), id="a commitment in capitals"),
        pytest.param(changed("secret_digest", to="ab" * 33), id="a commitment too long"),
        pytest.param(changed("start", to=""), id="the public initial model by name"),
        pytest.param(changed("start", to=None), id="no start"),
        pytest.param(changed("start", to="AB" * 32), id="a start in capitals"),
        pytest.param(changed("start", to="ab" * 33), id="a start too long"),
        pytest.param(GOLDEN + b" ", id="trailing space"),
        pytest.param(GOLDEN + b"{}", id="trailing value"),
        pytest.param(b"\xef\xbb\xbf" + GOLDEN, id="byte order mark"),
        pytest.param(GOLDEN.replace(b'"roster":', b'"roster": '), id="space after a colon"),
        pytest.param(GOLDEN.replace(b'{"code_digest"', b'{"code_digest":"x","code_digest"'), id="a key twice over"),
        pytest.param(json.dumps(json.loads(GOLDEN), separators=(",", ":")).encode()[::-1], id="reversed"),
        pytest.param(GOLDEN.replace(b'"age"', b'"\\u0061ge"'), id="needless escape"),
        pytest.param(GOLDEN.replace(b'"age"', b'"\\ud800"'), id="half a surrogate pair"),
        pytest.param(GOLDEN.replace(b'"age"', b'"\xff"'), id="not UTF-8"),
        pytest.param(GOLDEN[:-1], id="cut"),
        pytest.param(b"", id="empty"),
        pytest.param(b"null", id="null alone"),
        pytest.param(b"[]", id="list alone"),
    ],
)
def test_anything_but_the_canonical_encoding_of_a_valid_agreement_is_refused(data):
    assert data != GOLDEN
    with pytest.raises(MalformedError):
        Agreement.from_bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"[" * MAX_AGREEMENT_BYTES, id="lists"),
        pytest.param(b'{"terms":' * (MAX_AGREEMENT_BYTES // 9), id="tables"),
        pytest.param(b"[" * 500_000 + b"]" * 500_000, id="closed lists"),
        pytest.param(GOLDEN.replace(b'"hidden":[]', b'"hidden":' + b"[" * 300_000 + b"]" * 300_000), id="in a field"),
        pytest.param(GOLDEN.replace(b'"rounds":2', b'"rounds":' + b"9" * 900_000), id="a number"),
        pytest.param(GOLDEN.replace(b'"hidden":[]', b'"hidden":[' + b"1," * 400_000 + b"1]"), id="many widths"),
        pytest.param(GOLDEN.replace(b'"roster":[', b'"roster":[' + b"{}," * 300_000), id="many cards"),
    ],
)
def test_huge_nested_or_repeated_json_is_refused_quickly(data):
    started = time.process_time()
    with pytest.raises(MalformedError):
        Agreement.from_bytes(data)

    assert time.process_time() - started < 3


def test_more_bytes_than_any_agreement_are_refused_unread():
    with pytest.raises(LengthError) as refusal:
        Agreement.from_bytes(b"[" * (MAX_AGREEMENT_BYTES + 1))

    assert refusal.value.got == MAX_AGREEMENT_BYTES + 1


@settings(max_examples=150)
@given(hostile_bytes(GOLDEN))
def test_hostile_bytes_raise_nothing_but_a_refusal(data):
    try:
        agreement = Agreement.from_bytes(data)
    except ProtocolError:
        return
    assert agreement.to_bytes() == data


@pytest.mark.parametrize(
    ("roster", "refusal"),
    [
        (AGREEMENT.roster[::-1], "not in order of name"),
        ((*AGREEMENT.roster, AGREEMENT.roster[3]), "names a site twice"),
        ((*AGREEMENT.roster, replace(AGREEMENT.roster[0], name="hospital-9")), "two sites of the roster share a key"),
        (AGREEMENT.roster[:2], r"the roster has 2 sites; the agreement allows 3\.\.128"),
        (cards(129), "the roster has 129 sites"),
    ],
)
def test_a_roster_that_cannot_be_is_refused(roster, refusal):
    with pytest.raises(ConfigurationError, match=refusal):
        replace(AGREEMENT, roster=roster)


def test_a_roster_of_128_sites_is_accepted():
    agreement = replace(AGREEMENT, roster=cards(128))

    assert Agreement.from_bytes(agreement.to_bytes()) == agreement
    assert agreement.parameters.sites == 128


def test_an_agreement_says_where_its_run_begins_only_if_that_is_not_the_public_initial_model():
    starting = replace(AGREEMENT, start="ab" * 32)

    assert json.loads(starting.to_bytes()).keys() - json.loads(GOLDEN).keys() == {"start"}
    assert Agreement.from_bytes(GOLDEN).start == ""
    with pytest.raises(ConfigurationError, match="start is not 64 lower-case hex digits"):
        replace(AGREEMENT, start="../" + "ab" * 31)


@pytest.mark.parametrize("commitment", ["", "ab" * 31, "AB" * 32, "zz" * 32])
def test_a_commitment_to_the_consortium_secret_that_is_no_digest_is_refused(commitment):
    with pytest.raises(ConfigurationError, match="secret_digest is not 64 lower-case hex digits"):
        replace(AGREEMENT, secret_digest=commitment)


@pytest.mark.parametrize("name", ["", "-", "a/b", "..", "a b", "a_b", "é", "A", "a" * 65, "a\n"])
def test_a_site_name_that_is_no_safe_file_name_is_refused(name):
    with pytest.raises(ConfigurationError, match="a site's name needs"):
        replace(AGREEMENT.roster[0], name=name)


@pytest.mark.parametrize("name", ["a", "7", "north-clinic-2", "a--b", "a" * 64])
def test_plain_site_names_are_accepted(name):
    assert replace(AGREEMENT.roster[0], name=name).name == name


def test_a_signature_of_the_card_is_accepted_and_every_other_refused():
    card, message = AGREEMENT.roster[1], b"message"
    card.verify(CONSORTIUM.sign(1, message), message)

    for signature, signed in [
        (CONSORTIUM.sign(0, message), message),
        (CONSORTIUM.sign(1, message), b"another"),
        (CONSORTIUM.sign(1, message)[:-1], message),
        (b"", message),
        (bytes(64), message),
    ]:
        with pytest.raises(SignatureError) as refusal:
            card.verify(signature, signed)
        assert refusal.value.expected == "one by hospital-2"


def test_a_signing_key_that_is_no_point_verifies_nothing():
    with pytest.raises(SignatureError):
        replace(AGREEMENT.roster[1], signing_key="ff" * 32).verify(CONSORTIUM.sign(1, b"message"), b"message")


def test_a_run_sums_statistics_then_trains_then_evaluates_once():
    assert [AGREEMENT.round_kind(number) for number in range(4)] == [
        RoundKind.STATISTICS,
        RoundKind.TRAIN,
        RoundKind.TRAIN,
        RoundKind.EVALUATE,
    ]
    assert AGREEMENT.last_round == 3


@pytest.mark.parametrize("number", [-1, 4, 2**32 - 1])
def test_a_round_that_the_run_does_not_have_is_refused(number):
    with pytest.raises(MalformedError) as refusal:
        AGREEMENT.round_kind(number)

    assert (refusal.value.expected, refusal.value.got) == ("0..3", number)


@pytest.mark.parametrize(
    ("epoch_rounds", "epochs"),
    [(0, [1, 1, 1, 1]), (1, [1, 2, 3, 4]), (2, [1, 1, 2, 2]), (3, [1, 1, 1, 2]), (4, [1, 1, 1, 1])],
)
def test_a_round_s_key_epoch_follows_from_its_number(epoch_rounds, epochs):
    agreement = Consortium(epoch_rounds=epoch_rounds).agreement

    assert [agreement.epoch_of(number) for number in range(4)] == epochs


@pytest.mark.parametrize("epoch_rounds", range(5))
def test_what_comes_after_the_last_round_belongs_to_its_epoch(epoch_rounds):
    agreement = Consortium(epoch_rounds=epoch_rounds).agreement

    assert agreement.epoch_of(4) == agreement.epoch_of(2**32 - 1) == agreement.epoch_of(3)


def test_a_round_before_the_first_has_no_epoch():
    with pytest.raises(MalformedError):
        AGREEMENT.epoch_of(-1)


def test_sites_are_found_by_name():
    assert [AGREEMENT.position(card.name) for card in AGREEMENT.roster] == [0, 1, 2, 3]
    with pytest.raises(ConfigurationError, match="'hospital-5' is not in the agreement's roster"):
        AGREEMENT.position("hospital-5")


def test_parameters_are_made_for_the_whole_roster_and_the_largest_round():
    terms = replace(AGREEMENT.terms, model=ModelTerms(kind="mlp", hidden=(5000,)))
    large = replace(AGREEMENT, terms=terms)

    assert AGREEMENT.parameters == CkksParameters(ring_degree=2048, modulus_bits=32, sites=4)
    assert large.parameters == CkksParameters(ring_degree=4096, modulus_bits=32, sites=4)
    assert large.plan(RoundKind.TRAIN).ciphertexts == 4


@pytest.mark.parametrize("cohort", [(0, 1, 2), (1, 2, 3), (0, 1, 2, 3), [0, 2, 3]])
def test_cohorts_of_enough_sites_of_the_roster_are_admissible(cohort):
    AGREEMENT.check_cohort(cohort)


@pytest.mark.parametrize(
    ("cohort", "members", "check", "got"),
    [
        ((), None, "cohort size", 0),
        ((0,), None, "cohort size", 1),
        ((0, 1), None, "cohort size", 2),
        ((0, 2, 1), None, "cohort order", (0, 2, 1)),
        ((0, 1, 1), None, "cohort order", (0, 1, 1)),
        ((0, 1, 1, 2), None, "cohort order", (0, 1, 1, 2)),
        ((0, 1, 4), None, "cohort", (4,)),
        ((0, 1, 2, 65535), None, "cohort", (65535,)),
        ((-1, 0, 1), None, "cohort", (-1,)),
        ((0, 1, 2), (0, 1, 3), "cohort", (2,)),
        ((0, 1, 2, 3), (0, 1, 3), "cohort", (2,)),
        ((0, 1), (0, 1), "cohort size", 2),
        ((0, 1, 2), (), "cohort", (0, 1, 2)),
    ],
)
def test_a_cohort_that_no_honest_provider_names_is_refused(cohort, members, check, got):
    with pytest.raises(CohortError) as refusal:
        AGREEMENT.check_cohort(cohort, members=members)

    assert (refusal.value.what, refusal.value.got) == (check, got)
