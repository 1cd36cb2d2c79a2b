"""Tags that travel in the clear let the provider add a combination of updates whose own tag is nothing.

Who: the provider alone. Want: an altered sum that sites decrypt (what for: see `test_reaction_attack.py`).
How: tags are linear. With one vector, t_2 c_1 - t_1 c_2 has the tag 0; with L vectors, a combination of L + 1 updates
has. The provider need not know the vectors. Answer: tags travel sealed under a key of the epoch, so that neither they
nor anything linear in them is known to it.
"""

from __future__ import annotations

import struct
from dataclasses import replace

import numpy as np
import pytest
from coalition import prepare_parts, refusal, stands_at

import clients.secrets.release
import clients.secrets.sealing
from clients.secrets.ckks import Decryptor
from protocol.envelope import Request
from protocol.errors import ResidualError
from protocol.update import EncryptedAggregate, SealedUpdate
from strategies.round_sum import RoundSum

COHORT = (0, 1, 2, 3)


class Unsealed:
    """An AEAD in name only: what it is given travels as it is."""

    def __init__(self, key):
        pass

    def encrypt(self, nonce, data, associated):
        return data + bytes(16)

    def decrypt(self, nonce, data, associated):
        return data[:-16]


@pytest.fixture
def in_the_clear(monkeypatch):
    """Sites whose tags are not sealed."""

    def unseal():
        monkeypatch.setattr(clients.secrets.sealing, "ChaCha20Poly1305", Unsealed)
        monkeypatch.setattr(clients.secrets.release, "ChaCha20Poly1305", Unsealed)

    return unseal


def without_a_tag(words, modulus: int) -> list[int]:
    """Return factors, not all 0, with which three tags of two words each add up to nothing."""
    (a, b, c), (d, e, f) = words
    factors = [(b * f - c * e) % modulus, (c * d - a * f) % modulus, (a * e - b * d) % modulus]
    for word in words:
        assert sum(factor * tag for factor, tag in zip(factors, word, strict=True)) % modulus == 0
    return factors


def altered_sum(federation) -> bytes:
    """Collect a round's updates, and add a combination of three of them that has, from what can be read, no tag."""
    terms = federation.terms(COHORT)
    modulus = federation.agreement.parameters.modulus
    total, updates = RoundSum(terms), []
    for site in COHORT:
        data = federation.upload(site, COHORT)
        total.add(data)
        updates.append(SealedUpdate.from_bytes(data, terms))
    tags = [struct.unpack("<2Q", update.proof.tag[:16]) for update in updates[:3]]
    addend = np.zeros_like(updates[0].residues, dtype=np.uint64)
    for factor, update in zip(without_a_tag(list(zip(*tags, strict=True)), modulus), updates[:3], strict=True):
        addend = (addend + update.residues.astype(np.uint64) * np.uint64(factor) % np.uint64(modulus)) % np.uint64(
            modulus
        )
    assert np.count_nonzero(addend) > addend.size / 2
    aggregate = EncryptedAggregate.from_bytes(total.close().to_bytes(), federation.agreement)
    residues = (aggregate.residues + addend) % np.uint64(modulus)
    return replace(aggregate, residues=residues.astype(np.uint32)).to_bytes()


def test_tags_in_the_clear_let_an_altered_sum_through_to_decryption(started, in_the_clear, monkeypatch):
    in_the_clear()
    altered = altered_sum(started)
    decryptions, decrypt = [], Decryptor.decrypt
    monkeypatch.setattr(
        Decryptor, "decrypt", lambda self, *given: (decryptions.append(given), decrypt(self, *given))[1]
    )

    # no tag stopped it: what is left is the check of the noise, which is the oracle that the provider wants
    with pytest.raises(ResidualError):
        started.prepare(1, 2, [altered])
    assert len(decryptions) == 1


def test_sealed_tags_cannot_be_combined(started, grid_of):
    altered, before = altered_sum(started), stands_at(started, 1)

    got = refusal(grid_of(started), started, 1, Request.PREPARE, **prepare_parts(2, [altered]))

    assert got == "TagError"
    assert stands_at(started, 1) == before
