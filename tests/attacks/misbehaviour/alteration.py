"""Ways to alter what a site is sent: blindly, byte by byte, and with knowledge of what the bytes mean.

Trust: tests only.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from protocol.agreement import Agreement
from protocol.envelope import pack_list, unpack_list
from protocol.errors import ProtocolError
from protocol.update import EncryptedAggregate

Archive = Mapping[str, Sequence[bytes]]
"""Part name -> all values that the provider has seen of it: of other sites, rounds, runs and agreements."""

_MAX_ITEMS = 64


def altered(parts: Mapping[str, bytes], agreement: Agreement, archive: Archive, rng: random.Random) -> dict[str, bytes]:
    """Return a request's parts with one of them altered; never as they were."""
    name = rng.choice([name for name in parts if name != "run"] or ["run"])
    for _ in range(_MAX_ITEMS):
        if name == "history" and rng.random() < 0.8:
            changed = _altered_list(parts[name], agreement, archive, rng)
        elif archive.get(name) and rng.random() < 0.4:
            changed = rng.choice(archive[name])
        else:
            changed = _harmed(parts[name], rng)
        if changed != parts[name]:
            return {**parts, name: changed}
    return {**parts, name: parts[name] + b"\0"}


def _harmed(data: bytes, rng: random.Random) -> bytes:
    """Return the bytes flipped, cut, extended, or in part overwritten."""
    place = rng.randrange(len(data) + 1)
    match rng.randrange(5):
        case 0 | 1 if data:
            changed = bytearray(data)
            changed[place % len(data)] ^= 1 << rng.randrange(8)
            return bytes(changed)
        case 2:
            return data[:place]
        case 3:
            return data[:place] + rng.randbytes(rng.randrange(1, 9)) + data[place:]
        case _:
            return (data[:place] + rng.randbytes(8))[: len(data)] + data[place + 8 :]


def _altered_list(data: bytes, agreement: Agreement, archive: Archive, rng: random.Random) -> bytes:
    items = unpack_list(data, limit=_MAX_ITEMS)
    if not items or rng.random() < 0.1:
        strangers = archive.get("aggregate", ())
        return pack_list([*items, *([rng.choice(strangers)] if strangers else [])])
    place = rng.randrange(len(items))
    match rng.randrange(8):
        case 0:
            items[place] = _harmed(items[place], rng)
        case 1:
            rng.shuffle(items)
        case 2:
            del items[place]
        case 3:
            items[place] = rng.choice(archive["aggregate"])
        case _:
            items[place] = altered_aggregate(items[place], agreement, archive, rng)
    return pack_list(items)


def altered_aggregate(data: bytes, agreement: Agreement, archive: Archive, rng: random.Random) -> bytes:
    """Return a well-formed aggregate that is not the sum its proofs stand for."""
    try:
        aggregate = EncryptedAggregate.from_bytes(data, agreement)
    except ProtocolError:
        return _harmed(data, rng)
    modulus, proofs = agreement.parameters.modulus, list(aggregate.proofs)
    residues = aggregate.residues.astype(np.uint64)
    first, second = rng.randrange(len(proofs)), rng.randrange(len(proofs))
    match rng.randrange(9):
        case 0:  # one coefficient's evaluation moves
            column = rng.randrange(residues.shape[1])
            residues[0, column] = (residues[0, column] + rng.randrange(1, modulus)) % modulus
        case 1:  # a shift of the constant coefficient by one grid step, which no residual check can see
            residues = (residues + np.uint64(int(agreement.parameters.scale))) % modulus
        case 2:  # a multiple of the sum
            residues = residues * np.uint64(rng.randrange(2, 9)) % modulus
        case 3:  # another sum under the same proofs
            other = _other_residues(archive, agreement, rng)
            residues = residues if other is None or other.shape != residues.shape else other
        case 4:
            seeds = proofs[second].seeds
            flipped = bytes([seeds[0] ^ 1]) + seeds[1:]
            proofs[first] = replace(proofs[first], seeds=flipped if first == second else seeds)
        case 5:
            proofs[first] = replace(proofs[first], tag=proofs[second].tag, signature=proofs[second].signature)
        case 6:
            del proofs[first]
        case 7:
            proofs[first] = proofs[second]
        case _:
            header = proofs[first].header
            changed = rng.choice([{"round": header.round + 1}, {"session": rng.randbytes(32)}, {"epoch": 2}])
            proofs[first] = replace(proofs[first], header=replace(header, **changed))
    if not proofs:
        return data[:-1]
    return replace(aggregate, residues=residues.astype(aggregate.residues.dtype), proofs=tuple(proofs)).to_bytes()


def renumbered(data: bytes, round_number: int, agreement: Agreement) -> bytes:
    """Return an aggregate that says that it belongs to another round."""
    return replace(EncryptedAggregate.from_bytes(data, agreement), round=round_number).to_bytes()


def _other_residues(archive: Archive, agreement: Agreement, rng: random.Random) -> np.ndarray | None:
    try:
        return EncryptedAggregate.from_bytes(rng.choice(archive["aggregate"]), agreement).residues.astype(np.uint64)
    except (ProtocolError, IndexError, KeyError):
        return None
