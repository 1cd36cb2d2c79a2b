"""Derive every key of a run from what its sites share: labelled, and bound to what the key is for.

In what follows A is the agreement's digest, X the session's, E an epoch's secret, PRK a pair's key.

Trust: pure functions over bytes. Sites call them with secrets; nothing is kept here.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

KEY_BYTES: Final = 32
DIGEST_BYTES: Final = 32


def frame(label: str, *fields: bytes | int) -> bytes:
    """Encode a label and fields so that no two different lists of byte strings give the same bytes.

    Args:
        label: What the bytes are for; without NUL.
        fields: Bytes, or integers of 0..2^64-1, which stand for their 8 little-endian bytes.
    """
    parts = [b"cipherward/1/", label.encode(), b"\0"]
    for field in fields:
        raw = struct.pack("<Q", field) if isinstance(field, int) else field
        parts += [struct.pack("<Q", len(raw)), raw]
    return b"".join(parts)


def digest(label: str, *fields: bytes | int) -> bytes:
    """Return the SHA-256 of framed fields."""
    return hashlib.sha256(frame(label, *fields)).digest()


def authenticate(key: bytes, label: str, *fields: bytes | int) -> bytes:
    """Return the HMAC-SHA-256 of framed fields."""
    return hmac.digest(key, frame(label, *fields), "sha256")


def extract(salt: bytes, *secrets: bytes) -> bytes:
    """Return HKDF-Extract over concatenated secrets of fixed length."""
    return HKDF.extract(hashes.SHA256(), salt, b"".join(secrets))


def expand(key: bytes, label: str, *fields: bytes | int, length: int = KEY_BYTES) -> bytes:
    """Return HKDF-Expand of a uniform key for one labelled purpose.

    Args:
        key: 32 uniform bytes.
        label: What the derived key is for.
        fields: What it is bound to.
        length: Bytes to derive.
    """
    return HKDFExpand(hashes.SHA256(), length, frame(label, *fields)).derive(key)
