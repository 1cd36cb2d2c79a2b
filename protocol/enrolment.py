"""The card that a hospital sends when it enrols: its public keys, and the key by which its node is admitted.

The coordinator takes the `SiteCard` of it into the agreement's roster; the provider admits the node key.

Trust: public. The signature shows that one hospital made all of the card; that it is the hospital it says, people
find out by comparing fingerprints on a way that the card did not come.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key
from pydantic import TypeAdapter, ValidationError

from protocol.agreement import SiteCard
from protocol.errors import ConfigurationError, LengthError, MalformedError
from protocol.schedule import digest, frame

MAX_ENROLMENT_BYTES: Final = 4 << 10
_NODE_KEY: Final = re.compile(r"ecdsa-sha2-nistp384 [A-Za-z0-9+/]+={0,2}")
_SIGNATURE: Final = re.compile(r"[0-9a-f]{128}")
_FINGERPRINT_BYTES: Final = 16
_GROUP_DIGITS: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolmentCard:
    """What a hospital makes public of itself before there is an agreement.

    Attributes:
        card: Name and keys for the roster.
        node_key: ECDSA P-384 public key of the hospital's Flower node, as OpenSSH writes it, without comment.
        signature: By the card's signing key over `signed_bytes`, hex.
    """

    card: SiteCard
    node_key: str
    signature: str

    def __post_init__(self) -> None:
        if not _is_node_key(self.node_key):
            raise ConfigurationError(f"site {self.card.name}: the node key is no ECDSA P-384 key as OpenSSH writes it")
        if not _SIGNATURE.fullmatch(self.signature):
            raise ConfigurationError(f"site {self.card.name}: the signature is not 128 lower-case hex digits")

    @property
    def fingerprint(self) -> str:
        """What people compare: that of the roster's card, whose key vouches for the node key."""
        return fingerprint(self.card)

    def to_bytes(self) -> bytes:
        """Encode as canonical JSON."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> EnrolmentCard:
        """Parse a card and check that the hospital signed it.

        Raises:
            LengthError: It is larger than any card.
            MalformedError: It is not the canonical encoding of a card.
            SignatureError: The card's own key did not sign it.
        """
        if len(data) > MAX_ENROLMENT_BYTES:
            raise LengthError("enrolment card bytes", expected=f"at most {MAX_ENROLMENT_BYTES}", got=len(data))
        try:
            enrolment = _PARSER.validate_json(data)
        except (ValidationError, ConfigurationError) as error:
            raise MalformedError(f"enrolment card ({type(error).__name__})") from None
        if enrolment.to_bytes() != data:
            raise MalformedError(
                "enrolment card", expected="canonical JSON without unknown keys", got="another encoding"
            )
        enrolment.card.verify(bytes.fromhex(enrolment.signature), signed_bytes(enrolment.card, enrolment.node_key))
        return enrolment


_PARSER = TypeAdapter(EnrolmentCard)


def fingerprint(card: SiteCard) -> str:
    """Return eight groups of four hex digits that stand for a site's name and keys.

    The same when a hospital enrols and in the roster of every agreement.
    """
    return in_groups(digest("site-card", *_fields(card))[:_FINGERPRINT_BYTES].hex())


def in_groups(digits: str) -> str:
    """Return hex digits in groups of four, as people read them to each other on the telephone."""
    return " ".join(digits[start : start + _GROUP_DIGITS] for start in range(0, len(digits), _GROUP_DIGITS))


def signed_bytes(card: SiteCard, node_key: str) -> bytes:
    """Return what a hospital signs when it enrols."""
    return frame("enrolment", *_fields(card), node_key.encode())


def _fields(card: SiteCard) -> tuple[bytes, bytes, bytes]:
    return card.name.encode(), bytes.fromhex(card.signing_key), bytes.fromhex(card.exchange_key)


def _is_node_key(line: str) -> bool:
    """Return whether a line is the one encoding of a P-384 public key."""
    if not _NODE_KEY.fullmatch(line):
        return False
    try:
        key = load_ssh_public_key(line.encode())
    except (ValueError, NotImplementedError, UnsupportedAlgorithm):
        return False
    # written back with its own type, so a key of another curve gives another line
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) == line.encode()
