from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hostile import hostile_bytes, resized
from hypothesis import given
from hypothesis import strategies as st

from protocol.envelope import Request, pack_envelope, pack_list, pack_refusal, unpack_envelope, unpack_list
from protocol.errors import PUBLIC_REFUSAL, MalformedError, PeerRefusedError, ProtocolError

STYPE = "cipherward.bytes/1"
PARTS = {"card": b"abc", "agreement": b""}
LIST = pack_list([b"one", b"", b"three"])


def envelope(**arrays):
    return RecordDict({"parts": ArrayRecord(arrays)})


def part(data=b"abc", dtype="uint8", shape=None, stype=STYPE):
    return Array(dtype, (len(data),) if shape is None else shape, stype, data)


def test_the_requests_are_the_message_types_of_the_wire():
    assert [str(request) for request in Request] == [
        "query.announce",
        "query.entrust",
        "query.open",
        "train.prepare",
        "train.upload",
        "query.close",
    ]


@given(st.dictionaries(st.text(max_size=8), st.binary(max_size=40), max_size=4))
def test_unpack_inverts_pack(parts):
    assert unpack_envelope(pack_envelope(parts), list(parts)) == parts


def test_views_of_bytes_are_packed_as_bytes():
    packed = pack_envelope({"update": memoryview(b"abc")})

    assert unpack_envelope(packed, ["update"]) == {"update": b"abc"}


def test_an_envelope_holds_bytes_and_nothing_that_anyone_would_unpickle():
    array = pack_envelope(PARTS).array_records["parts"]["card"]

    assert (array.dtype, tuple(array.shape), array.stype, array.data) == ("uint8", (3,), STYPE, b"abc")


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
        pytest.param(RecordDict({"other": ArrayRecord({"card": part()})}), id="other record"),
        pytest.param(RecordDict({"parts": ConfigRecord({"card": b"abc"})}), id="config in place of arrays"),
        pytest.param(RecordDict({"parts": MetricRecord({"card": 1.0})}), id="metrics in place of arrays"),
        pytest.param(
            RecordDict({"parts": ArrayRecord({"card": part()}), "more": ArrayRecord()}), id="one array record more"
        ),
        pytest.param(
            RecordDict({"parts": ArrayRecord({"card": part()}), "more": MetricRecord({"loss": 0.5})}), id="metrics too"
        ),
        pytest.param(
            RecordDict({"parts": ArrayRecord({"card": part()}), "more": ConfigRecord({"name": "x"})}), id="a config too"
        ),
        pytest.param(envelope(card=part(dtype="uint16")), id="other type"),
        pytest.param(envelope(card=part(dtype="object")), id="objects"),
        pytest.param(envelope(card=part(stype="numpy.ndarray")), id="an array that NumPy saved"),
        pytest.param(envelope(card=part(shape=(2,))), id="shape too small"),
        pytest.param(envelope(card=part(shape=(4,))), id="shape too large"),
        pytest.param(envelope(card=part(shape=(1 << 62,))), id="shape beyond memory"),
        pytest.param(envelope(card=part(shape=(-1,))), id="negative shape"),
        pytest.param(envelope(card=part(shape=(3, 1))), id="two dimensions"),
        pytest.param(envelope(card=part(shape=())), id="no dimension"),
        pytest.param(envelope(card=Array(np.zeros(3, np.uint8))), id="an array that Flower made"),
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
    content["parts"] = ArrayRecord({"card": part()})

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
