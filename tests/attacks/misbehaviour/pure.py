"""Do once what ten thousand schedules would do over and over: pure functions of the same bytes.

A schedule starts from vaults that others started from too, so sites derive the same keys and verify the same signatures
again and again. Each function here is replaced by itself with a memory: the first call with given bytes is the
product's, later ones return what it returned. Refusals are not remembered, they are worked out each time. And nothing
waits for a disk, which these tests never switch off.

Trust: tests only.
"""

from __future__ import annotations

import os
from functools import lru_cache

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

import clients.run.opening
from clients.secrets.ckks import SecretKey
from clients.secrets.identity import Identity
from clients.secrets.secret import SecretBytes
from protocol.agreement import Agreement, SiteCard
from protocol.handshake import Session
from protocol.parameters import CkksParameters

_LIMIT = 4096


def remember(patch: pytest.MonkeyPatch) -> None:
    """Give memories to the derivation of CKKS and pair keys and to the verification of signatures; no fsync."""
    patch.setattr(os, "fsync", lambda descriptor: None)
    patch.setattr(SiteCard, "verify", _remembering_verify())
    patch.setattr(SecretKey, "from_seed", _remembering_from_seed())
    patch.setattr(clients.run.opening, "agree_pairs", _remembering_agree())
    patch.setattr(Session, "from_bytes", _remembering_session())


def _remembering_verify():
    verify = SiteCard.verify

    @lru_cache(maxsize=_LIMIT)
    def once(card: SiteCard, signature: bytes, message: bytes) -> None:
        verify(card, signature, message)

    return lambda card, signature, message: once(card, bytes(signature), bytes(message))


def _remembering_from_seed():
    from_seed = SecretKey.from_seed

    @lru_cache(maxsize=_LIMIT)
    def once(seed: bytes, parameters: CkksParameters) -> SecretKey:
        return from_seed(seed, parameters)

    return once


def _remembering_session():
    from_bytes = Session.from_bytes
    known: dict[tuple[bytes, ...], Session] = {}

    def once(data: bytes, agreement: Agreement, run: bytes) -> Session:
        place = (data, agreement.digest, run)
        if place not in known:
            known[place] = from_bytes(data, agreement, run)
        return known[place]

    return once


def _remembering_agree():
    agree_pairs = clients.run.opening.agree_pairs
    known: dict[tuple[bytes, ...], dict[int, SecretBytes]] = {}

    def once(*, session: Session, identity: Identity, ephemeral: X25519PrivateKey, consortium_secret, **place):
        secrets = (identity.to_secret().reveal(), ephemeral.private_bytes_raw(), consortium_secret.reveal())
        key = (session.to_bytes(), *secrets)
        if key not in known:
            known[key] = agree_pairs(
                session=session, identity=identity, ephemeral=ephemeral, consortium_secret=consortium_secret, **place
            )
        return known[key]

    return once
