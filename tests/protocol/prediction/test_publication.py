from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prediction_service import Client, publication_of

from protocol.errors import LengthError, MalformedError, ProtocolError
from protocol.prediction.description import MAX_DESCRIPTION_BYTES
from protocol.prediction.publication import MOST_ALLOWED, Publication

PUBLICATION = publication_of(Client(), allowed=("device", "va"))
DATA = PUBLICATION.to_bytes()


def test_a_publication_is_read_back():
    assert Publication.from_bytes(DATA) == PUBLICATION


@pytest.mark.parametrize("length", [0, 3, 4, 100, len(DATA) - len(PUBLICATION.weights) - 1])
def test_a_head_that_is_cut_off_is_refused(length):
    with pytest.raises(LengthError):
        Publication.from_bytes(DATA[:length])


def test_a_head_of_another_encoding_is_refused():
    head = DATA[4 : -len(PUBLICATION.weights)]
    for other in (head.replace(b'{"allowed"', b'{ "allowed"'), head.replace(b'{"allowed"', b'{"a":1,"allowed"'), b"[]"):
        with pytest.raises(MalformedError):
            Publication.from_bytes(len(other).to_bytes(4, "little") + other)


def test_too_many_allowed_are_refused():
    many = publication_of(Client(), allowed=("x",) * (MOST_ALLOWED + 1)).to_bytes()
    with pytest.raises(LengthError):
        Publication.from_bytes(many)


def test_a_description_that_could_not_be_read_back_is_refused():
    described = PUBLICATION.description
    room = MAX_DESCRIPTION_BYTES - len(described.to_bytes()) + len(described.data.name)

    def with_name(length):
        data = replace(described.data, name="x" * length)
        return replace(PUBLICATION, description=replace(described, data=data))

    assert Publication.from_bytes(with_name(room).to_bytes()) == with_name(room)
    with pytest.raises(LengthError, match="description"):
        Publication.from_bytes(with_name(room + 1).to_bytes())


@given(st.binary(max_size=300))
def test_other_bytes_raise_nothing_but_protocol_errors(data):
    with pytest.raises(ProtocolError):
        Publication.from_bytes(data)


def test_its_repr_holds_no_weights():
    assert repr(PUBLICATION) == "Publication(own, 7 bytes)"
