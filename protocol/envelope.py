"""Carry named byte strings in a Flower message, and take them out again with every length checked.

A long byte string travels in pieces, each a record of its own: Flower moves and unpacks record by record, so nobody has
to hold such a string more than once.

Trust: both sides use it on content from outside. An envelope holds bytes and a request's name, nothing that Flower or
anyone else would unpickle.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Final

import numpy as np
from flwr.app import ConfigRecord, RecordDict

from protocol.errors import PUBLIC_REFUSAL, LengthError, MalformedError, PeerRefusedError

ROUND_NUMBER: Final = struct.Struct("<I")
"""How a message carries the number of a round."""

PIECE_BYTES: Final = 1 << 20
"""Length of all pieces of a byte string but the last, which is shorter or as long."""

MAX_PIECES: Final = 8192
"""Most pieces of one byte string."""

_BYTES: Final = "bytes"
_PIECE: Final = re.compile(r"(.*)\.(0|[1-9][0-9]{0,3})", re.DOTALL)
_STATUS: Final = "status"
_DONE: Final = "done"


class Request(StrEnum):
    """What the provider asks of a site; also the Flower message type, after `query.` or `train.`."""

    ANNOUNCE = "query.announce"
    ENTRUST = "query.entrust"
    OPEN = "query.open"
    CATCH_UP = "query.catch_up"
    PREPARE = "train.prepare"
    UPLOAD = "train.upload"
    VOID = "query.void"
    CLOSE = "query.close"


REQUEST_PARTS: Final[Mapping[Request, tuple[str, ...]]] = {
    Request.ANNOUNCE: ("run",),
    Request.ENTRUST: ("run", "session"),
    Request.OPEN: ("run", "session", "secret"),
    Request.CATCH_UP: ("run", "history"),
    Request.PREPARE: ("run", "round", "history"),
    Request.UPLOAD: ("run", "call"),
    Request.VOID: ("run", "round"),
    Request.CLOSE: ("run", "history"),
}
"""What each request carries; `history` is a list of void notes and sums, in the order in which they apply."""

ANSWER_PARTS: Final[Mapping[Request, tuple[str, ...]]] = {
    Request.ANNOUNCE: ("card", "agreement", "round"),
    Request.ENTRUST: ("secrets",),
    Request.OPEN: (),
    Request.CATCH_UP: ("round",),
    Request.PREPARE: ("note",),
    Request.UPLOAD: ("update",),
    Request.VOID: ("note",),
    Request.CLOSE: ("note",),
}
"""What a site's answer to each request carries; `round` is the one whose sum the site needs next."""


def pack_envelope(parts: Mapping[str, bytes]) -> RecordDict:
    """Make a message's content of named byte strings."""
    content = RecordDict({_STATUS: ConfigRecord({_STATUS: _DONE})})
    for name, data in parts.items():
        for index, start in enumerate(range(0, max(len(data), 1), PIECE_BYTES)):
            piece = bytes(data[start : start + PIECE_BYTES])
            content[f"{name}.{index}"] = ConfigRecord({_BYTES: piece})
    return content


def pack_refusal() -> RecordDict:
    """Make the one reply that a refused peer gets, whatever the reason."""
    return RecordDict({_STATUS: ConfigRecord({_STATUS: PUBLIC_REFUSAL})})


def is_refusal(content: RecordDict) -> bool:
    """Return whether a reply is the refusal."""
    status = content.config_records.get(_STATUS)
    return status is not None and status.get(_STATUS) == PUBLIC_REFUSAL


def unpack_envelope(content: RecordDict, names: Sequence[str]) -> dict[str, bytes]:
    """Take out exactly the named byte strings; the pieces of long ones leave the content while they are joined.

    Raises:
        PeerRefusedError: The content is a refusal.
        MalformedError: It holds anything else than the named parts.
    """
    if is_refusal(content):
        raise PeerRefusedError("the peer refused; its own log says why")
    counts = _count_pieces(content)
    if sorted(counts) != sorted(names):
        raise MalformedError("message parts", expected=tuple(sorted(names)), got=tuple(sorted(counts)))
    return {name: _take(content, name, counts[name]) for name in names}


def _count_pieces(content: RecordDict) -> dict[str, int]:
    """Return how many pieces each part comes in, which says nothing yet about which ones."""
    counts: dict[str, int] = {}
    for key in content:
        if key == _STATUS:
            continue
        piece = _PIECE.fullmatch(key)
        if piece is None:
            raise MalformedError("message record", expected="a part's", got=key)
        counts[piece[1]] = counts.get(piece[1], 0) + 1
    return counts


def _take(content: RecordDict, name: str, count: int) -> bytes:
    if count > MAX_PIECES:
        raise MalformedError(f"pieces of {name}", expected=f"at most {MAX_PIECES}", got=count)
    keys = [f"{name}.{index}" for index in range(count)]
    pieces = [_piece(content, key) for key in keys]
    if any(len(piece) != PIECE_BYTES for piece in pieces[:-1]) or not (
        count == 1 or 0 < len(pieces[-1]) <= PIECE_BYTES
    ):
        raise MalformedError(f"pieces of {name}", expected=f"{PIECE_BYTES} bytes each", got="others")
    if count == 1:
        return pieces[0]
    joined = io.BytesIO()
    pieces.reverse()
    for key in keys:  # each is let go before the next one is copied
        content.config_records[key].clear()  # a record is in a cycle with itself, and goes late
        del content[key]
        joined.write(pieces.pop())
    return joined.getvalue()


def _piece(content: RecordDict, key: str) -> bytes:
    record = content.config_records.get(key)
    data = None if record is None or list(record) != [_BYTES] else record[_BYTES]
    if not isinstance(data, bytes):
        raise MalformedError(f"record {key}", expected="bytes", got="others" if key in content else "none")
    return data


def unpack_round(data: bytes) -> int:
    """Return the number of a round.

    Raises:
        LengthError: These are not its bytes.
    """
    if len(data) != ROUND_NUMBER.size:
        raise LengthError("round number bytes", expected=ROUND_NUMBER.size, got=len(data))
    (number,) = ROUND_NUMBER.unpack(data)
    return int(number)


def pack_list(items: Sequence[bytes]) -> bytes:
    """Join byte strings behind a table of their lengths."""
    lengths = np.array([len(items), *map(len, items)], dtype="<u8")
    return lengths.tobytes() + b"".join(items)


def unpack_list(data: bytes, *, limit: int) -> list[bytes]:
    """Invert `pack_list`.

    Args:
        data: Bytes from outside.
        limit: Most items accepted.

    Raises:
        MalformedError: The table does not fit the data, or has too many items.
    """
    word = 8
    count = int.from_bytes(data[:word], "little") if len(data) >= word else -1
    start = word * (1 + count)
    if not 0 <= count <= limit or len(data) < start:
        raise MalformedError("list of parts", expected=f"at most {limit} items", got=count)
    lengths = [int(length) for length in np.frombuffer(data[word:start], dtype="<u8")]
    if sum(lengths) != len(data) - start:
        raise MalformedError("list of parts", expected=f"{sum(lengths)} bytes", got=len(data) - start)
    items = []
    for length in lengths:
        items.append(data[start : start + length])
        start += length
    return items
