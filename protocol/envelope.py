"""Carry named byte strings in a Flower message, and take them out again with every length checked.

Trust: both sides use it on content from outside. An envelope holds bytes and a request's name, nothing that Flower or
anyone else would unpickle.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Final

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from protocol.errors import PUBLIC_REFUSAL, MalformedError, PeerRefusedError

ROUND_NUMBER: Final = struct.Struct("<I")
"""How a request carries the number of a round."""

_STYPE: Final = "cipherward.bytes/1"
_PARTS: Final = "parts"
_STATUS: Final = "status"
_DONE: Final = "done"


class Request(StrEnum):
    """What the provider asks of a site; also the Flower message type, after `query.` or `train.`."""

    ANNOUNCE = "query.announce"
    ENTRUST = "query.entrust"
    OPEN = "query.open"
    PREPARE = "train.prepare"
    UPLOAD = "train.upload"
    CLOSE = "query.close"


def pack_envelope(parts: Mapping[str, bytes]) -> RecordDict:
    """Make a message's content of named byte strings."""
    arrays = {name: Array("uint8", (len(data),), _STYPE, bytes(data)) for name, data in parts.items()}
    return RecordDict({_PARTS: ArrayRecord(arrays), _STATUS: ConfigRecord({_STATUS: _DONE})})


def pack_refusal() -> RecordDict:
    """Make the one reply that a refused peer gets, whatever the reason."""
    return RecordDict({_STATUS: ConfigRecord({_STATUS: PUBLIC_REFUSAL})})


def unpack_envelope(content: RecordDict, names: Sequence[str]) -> dict[str, bytes]:
    """Take out exactly the named byte strings.

    Raises:
        PeerRefusedError: The content is a refusal.
        MalformedError: It holds anything else than the named parts.
    """
    status = content.config_records.get(_STATUS)
    if status is not None and status.get(_STATUS) == PUBLIC_REFUSAL:
        raise PeerRefusedError("the peer refused; its own log says why")
    strangers = sorted(set(content) - {_PARTS, _STATUS})
    if strangers:
        raise MalformedError("message records", expected=(_PARTS, _STATUS), got=tuple(strangers))
    parts = content.array_records.get(_PARTS)
    got = () if parts is None else tuple(sorted(parts))
    if parts is None or got != tuple(sorted(names)):
        raise MalformedError("message parts", expected=tuple(sorted(names)), got=got)
    return {name: _bytes_of(name, parts[name]) for name in names}


def _bytes_of(name: str, array: Array) -> bytes:
    if (array.dtype, array.stype, tuple(array.shape)) != ("uint8", _STYPE, (len(array.data),)):
        raise MalformedError(f"part {name}", expected=f"uint8 of {_STYPE}", got=f"{array.dtype} of {array.stype}")
    return array.data


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
