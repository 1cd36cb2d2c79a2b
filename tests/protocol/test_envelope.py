from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hostile import hostile_bytes, resized
from hypothesis import given
from hypothesis import strategies as st

from protocol.envelope import (
    ANSWER_PARTS,
    MAX_PIECES,
    PIECE_BYTES,
    REQUEST_PARTS,
    ROUND_NUMBER,
    Request,
    pack_envelope,
    pack_list,
    pack_refusal,
    unpack_envelope,
    unpack_list,
    unpack_round,
)
from protocol.errors import PUBLIC_REFUSAL, LengthError, MalformedError, PeerRefusedError, ProtocolError

PARTS = {"card": b"abc", "agreement": b""}
LIST = pack_list([b"one", b"", b"three"])


def envelope(**records):
    return RecordDict({name.replace("_", "."): record for name, record in records.items()})


def piece(data=b"abc"):
    return ConfigRecord({"bytes": data})


def test_the_requests_are_the_message_types_of_the_wire():
    assert [str(request) for request in Request] == [
        "query.announce",
        "query.entrust",
        "query.open",
        "query.catch_up",
        "train.prepare",
        "train.upload",
        "query.void",
        "query.close",
    ]


def test_every_request_and_every_answer_says_what_it_carries():
    assert set(REQUEST_PARTS) == set(ANSWER_PARTS) == set(Request)
    assert all("run" in parts for parts in REQUEST_PARTS.values())


@given(st.integers(0, 2**32 - 1))
def test_a_round_s_number_is_read_back(number):
    assert unpack_round(ROUND_NUMBER.pack(number)) == number


@pytest.mark.parametrize("data", [b"", b"\x01", bytes(3), bytes(5), bytes(8)], ids=len)
def test_a_round_s_number_of_another_length_is_refused(data):
    with pytest.raises(LengthError) as refusal:
        unpack_round(data)

    assert (refusal.value.expected, refusal.value.got) == (4, len(data))


@given(st.dictionaries(st.text(max_size=8), st.binary(max_size=40), max_size=4))
def test_unpack_inverts_pack(parts):
    assert unpack_envelope(pack_envelope(parts), list(parts)) == parts


def test_views_of_bytes_are_packed_as_bytes():
    packed = pack_envelope({"update": memoryview(b"abc")})

    assert unpack_envelope(packed, ["update"]) == {"update": b"abc"}


def test_an_envelope_holds_bytes_and_nothing_that_anyone_would_unpickle():
    content = pack_envelope(PARTS)

    assert {name: dict(record) for name, record in content.items()} == {
        "status": {"status": "done"},
        "card.0": {"bytes": b"abc"},
        "agreement.0": {"bytes": b""},
    }


@pytest.mark.parametrize(
    "length", [PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES, 3 * PIECE_BYTES + 5]
)
def test_a_long_part_travels_in_pieces(length):
    data = np.random.default_rng(length).bytes(length)
    content = pack_envelope({"update": data, "card": b"abc"})

    assert len(content) == 2 + -(-length // PIECE_BYTES)
    assert all(len(record["bytes"]) <= PIECE_BYTES for name, record in content.items() if name != "status")
    assert unpack_envelope(content, ["update", "card"]) == {"update": data, "card": b"abc"}


def test_joining_the_pieces_takes_the_memory_of_one():
    content = pack_envelope({"update": bytes(20 * PIECE_BYTES)})
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    unpack_envelope(content, ["update"])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    # the pieces were there before, and go while the whole grows, which BytesIO makes an eighth larger at times
    assert peak - before < 24 * PIECE_BYTES
    assert set(content) == {"status"}


LONG = PIECE_BYTES * b"x"


@pytest.mark.parametrize(
    "pieces",
    [
        {"card_0": piece(LONG)} | {"card_2": piece()},
        {"card_1": piece()},
        {"card_0": piece(LONG[1:]), "card_1": piece()},
        {"card_0": piece(LONG + b"x"), "card_1": piece()},
        {"card_0": piece(LONG), "card_1": piece(b"")},
        {"card_0": piece(LONG), "card_1": piece(LONG + b"x")},
        {"card_0": piece(LONG), "card_01": piece()},
        {"card_0": piece(LONG), "card_-1": piece()},
        {"card_0": piece(LONG), "card_10000": piece()},
        {"card": piece()},
        {"card_x": piece()},
        {f"card_{index}": piece(b"") for index in range(MAX_PIECES + 1)},
    ],
    ids=[
        "one is missing", "the first is missing", "short", "long", "an empty end", "a long end", "another zero",
        "minus", "beyond all numbers", "no number", "a word", "too many",
    ],
)  # fmt: skip
def test_pieces_in_another_way_are_refused_and_stay(pieces):
    content = envelope(**pieces)

    with pytest.raises(MalformedError):
        unpack_envelope(content, ["card"])
    assert len(content) == len(pieces)


@pytest.mark.parametrize(
    ("names", "got"),
    [
        ([], ("agreement", "card")),
        (["card"], ("agreement", "card")),
        (["card", "secret"], ("agreement", "card")),
        (["card", "agreement", "secret"], ("agreement", "card")),
    ],
)
def test_other_parts_than_the_named_are_refused(names, got):
    with pytest.raises(MalformedError) as refusal:
        unpack_envelope(pack_envelope(PARTS), names)

    assert (refusal.value.expected, refusal.value.got) == (tuple(sorted(names)), got)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(RecordDict(), id="nothing"),
        pytest.param(envelope(other_0=piece()), id="another part"),
        pytest.param(envelope(card_0=MetricRecord({"bytes": 1.0})), id="metrics"),
        pytest.param(envelope(card_0=ArrayRecord({"bytes": Array("uint8", (3,), "any", b"abc")})), id="arrays"),
        pytest.param(envelope(card_0=ArrayRecord({"bytes": Array(np.zeros(3, np.uint8))})), id="an array of NumPy's"),
        pytest.param(envelope(card_0=piece("abc")), id="text"),
        pytest.param(envelope(card_0=piece([b"abc"])), id="a list of bytes"),
        pytest.param(envelope(card_0=piece(1)), id="a number"),
        pytest.param(envelope(card_0=ConfigRecord()), id="an empty record"),
        pytest.param(envelope(card_0=ConfigRecord({"data": b"abc"})), id="another name inside"),
        pytest.param(envelope(card_0=ConfigRecord({"bytes": b"abc", "more": 1})), id="more inside"),
        pytest.param(envelope(card_0=piece(), more=ArrayRecord()), id="one array record more"),
        pytest.param(envelope(card_0=piece(), more=MetricRecord({"loss": 0.5})), id="metrics too"),
        pytest.param(envelope(card_0=piece(), more=ConfigRecord({"name": "x"})), id="a config too"),
    ],
)
def test_anything_but_an_envelope_is_refused(content):
    with pytest.raises(MalformedError):
        unpack_envelope(content, ["card"])


def test_an_envelope_without_parts_can_be_sent():
    assert unpack_envelope(pack_envelope({}), []) == {}


def test_a_refusal_says_the_public_constant_and_nothing_else():
    content = pack_refusal()

    assert {name: dict(record) for name, record in content.items()} == {"status": {"status": PUBLIC_REFUSAL}}


@pytest.mark.parametrize("names", [[], ["card"]])
def test_a_refusal_is_told_apart_from_a_malformed_reply(names):
    with pytest.raises(PeerRefusedError):
        unpack_envelope(pack_refusal(), names)


def test_a_refusal_with_parts_is_still_a_refusal():
    content = pack_refusal()
    content["card.0"] = piece()

    with pytest.raises(PeerRefusedError):
        unpack_envelope(content, ["card"])


@given(st.lists(st.binary(max_size=20), max_size=6))
def test_lists_can_be_read_back(items):
    assert unpack_list(pack_list(items), limit=6) == items


def test_a_list_is_fixed_for_ever():
    assert LIST.hex() == "0300000000000000" + "0300000000000000" + "00" * 8 + "0500000000000000" + b"onethree".hex()


@pytest.mark.parametrize("data", resized(LIST, [8, 8, 8, 8, 3, 5]), ids=len)
def test_a_list_of_another_length_is_refused(data):
    with pytest.raises(MalformedError):
        unpack_list(data, limit=10)


def test_a_list_longer_than_the_limit_is_refused():
    assert len(unpack_list(LIST, limit=3)) == 3
    with pytest.raises(MalformedError) as refusal:
        unpack_list(LIST, limit=2)
    assert (refusal.value.expected, refusal.value.got) == ("at most 2 items", 3)


@pytest.mark.parametrize(
    "lengths",
    [[3, 0, 4], [3, 0, 6], [2**64 - 1, 0, 9], [2**63, 2**63, 8], [2**64 - 1, 2**64 - 1, 10], [2**64 - 3, 6, 5]],
)
def test_lengths_that_do_not_add_up_are_refused_also_where_64_bits_would_wrap(lengths):
    data = LIST[:8] + b"".join(length.to_bytes(8, "little") for length in lengths) + LIST[32:]

    with pytest.raises(MalformedError):
        unpack_list(data, limit=10)


@pytest.mark.parametrize("count", [4, 5, 2**32, 2**61, 2**63, 2**64 - 1])
def test_a_claimed_count_costs_no_memory(count):
    data = count.to_bytes(8, "little") + LIST[8:]
    tracemalloc.start()
    with pytest.raises(MalformedError):
        unpack_list(data, limit=2**64)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 1 << 16


@given(hostile_bytes(LIST), st.integers(0, 5))
def test_hostile_lists_raise_nothing_but_a_refusal(data, limit):
    try:
        items = unpack_list(data, limit=limit)
    except ProtocolError:
        return
    assert len(items) <= limit
    assert pack_list(items) == data
