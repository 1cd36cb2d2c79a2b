"""Ways in which a message goes wrong, by accident or on purpose.

Trust: tests only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

from hypothesis import strategies as st

LONGEST_GUESS = 4096


def flipped(data: bytes, bit: int) -> bytes:
    """Return the data with one bit inverted."""
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << (bit % 8)
    return bytes(changed)


def flips(data: bytes, places: Iterable[int]) -> Iterator[tuple[int, bytes]]:
    """Yield (byte, data with one of its bits inverted) for every bit of the bytes at these places."""
    for place in places:
        for bit in range(8):
            yield place, flipped(data, 8 * place + bit)


def resized(data: bytes, field_sizes: Sequence[int]) -> list[bytes]:
    """Return the data cut before and inside each field, cut by one byte, and one byte, one copy too long."""
    ends = list(accumulate(field_sizes))
    assert ends[-1] == len(data)
    cuts = {0, len(data) - 1, *ends[:-1], *(end - 1 for end in ends)}
    return [*(data[:cut] for cut in sorted(cuts)), data + b"\0", data + data]


@st.composite
def mutated(draw: st.DrawFn, data: bytes) -> bytes:
    """Draw bytes that are near a good message, or not like one at all."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, max(0, len(changed) - 1)))
        patch = draw(st.binary(max_size=12))
        match draw(st.sampled_from(["overwrite", "insert", "cut", "drop"])):
            case "overwrite":
                changed[place : place + len(patch)] = patch
            case "insert":
                changed[place:place] = patch
            case "cut":
                del changed[place:]
            case "drop":
                del changed[place : place + len(patch)]
    return bytes(changed)


def hostile_bytes(data: bytes) -> st.SearchStrategy[bytes]:
    """Return a strategy for what an attacker may send in place of a good message."""
    return mutated(data) | st.binary(max_size=LONGEST_GUESS) | st.binary(max_size=64).map(lambda tail: data[:8] + tail)
