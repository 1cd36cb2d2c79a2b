"""A starting model, sealed by one site of an agreement to another: for a hospital that joins, from one that was there.

It is a file that people send; only the other site can open it, and only as that agreement's starting model.

Trust: site only. What is sealed is safe to hand to anyone.
"""

from __future__ import annotations

import hmac
import struct
from dataclasses import dataclass, replace
from typing import Final, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from clients.learning.starting_model import StartingModel, starting_model_bytes
from clients.run.membership import Membership
from clients.secrets.keys import ONE_TIME_NONCE
from clients.secrets.secret import SecretBytes
from protocol.agreement import Agreement, SiteCard
from protocol.errors import (
    AgreementMismatchError,
    ConfigurationError,
    LengthError,
    MalformedError,
    SealError,
    SiteMismatchError,
)
from protocol.schedule import expand, extract, frame

_HEAD: Final = struct.Struct("<4sHH32s32s")
_MAGIC: Final = b"CWB1"
_SEAL_BYTES: Final = 16
_SIGNATURE_BYTES: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedModel:
    """What travels.

    Attributes:
        sender: Roster position of the site that sealed it.
        recipient: Roster position of the site that can open it.
        agreement: A.
        exchange_key: The sender's X25519 public key for this one message.
        sealed: The starting model under ChaCha20-Poly1305.
        signature: The sender's, over all of it.
    """

    sender: int
    recipient: int
    agreement: bytes
    exchange_key: bytes
    sealed: bytes
    signature: bytes

    def signed_bytes(self) -> bytes:
        """Return what the sender signs."""
        return frame("sealed-model", self.agreement, self.sender, self.recipient, self.exchange_key, self.sealed)

    def to_bytes(self) -> bytes:
        """Encode: head, sealed model, signature."""
        head = _HEAD.pack(_MAGIC, self.sender, self.recipient, self.agreement, self.exchange_key)
        return head + self.sealed + self.signature

    @classmethod
    def from_bytes(cls, data: bytes, agreement: Agreement) -> Self:
        """Parse a sealed model and check that a site of the agreement signed it for another one.

        Raises:
            ConfigurationError: The agreement's model cannot be started from another.
            ProtocolError: The subclass of the first check that failed.
        """
        sealed_bytes = starting_model_bytes(agreement.terms) + _SEAL_BYTES
        expected = _HEAD.size + sealed_bytes + _SIGNATURE_BYTES
        if len(data) != expected:
            raise LengthError("sealed model bytes", expected=expected, got=len(data))
        magic, sender, recipient, model_agreement, exchange_key = _HEAD.unpack_from(data)
        if magic != _MAGIC:
            raise MalformedError("sealed model", expected=_MAGIC.decode(), got=magic.hex())
        if model_agreement != agreement.digest:
            raise AgreementMismatchError("agreement", expected=agreement.digest.hex(), got=model_agreement.hex())
        if sender >= len(agreement.roster) or recipient >= len(agreement.roster) or sender == recipient:
            raise SiteMismatchError(
                "sender and recipient", expected=f"two below {len(agreement.roster)}", got=(sender, recipient)
            )
        model = cls(
            sender=sender,
            recipient=recipient,
            agreement=model_agreement,
            exchange_key=exchange_key,
            sealed=data[_HEAD.size : -_SIGNATURE_BYTES],
            signature=data[-_SIGNATURE_BYTES:],
        )
        agreement.roster[sender].verify(model.signature, model.signed_bytes())
        return model


def seal_starting_model(membership: Membership, recipient: SiteCard, model: StartingModel) -> bytes:
    """Seal the agreed starting model to another site, and sign it.

    Args:
        membership: The sender, under the agreement that names the model.
        recipient: The other site's card in that agreement.
        model: The starting model.

    Raises:
        ConfigurationError: The recipient is this site or not in the roster, or the model is not the agreed one.
    """
    agreement = membership.agreement
    to = agreement.position(recipient.name)
    if agreement.roster[to] != recipient or to == membership.site:
        raise ConfigurationError(f"{recipient.name} is not another site of the agreement's roster")
    if not hmac.compare_digest(model.digest(membership.consortium_secret), agreement.start):
        raise ConfigurationError("this is not the model that the agreement starts from")
    ephemeral = X25519PrivateKey.generate()
    unsigned = SealedModel(
        sender=membership.site,
        recipient=to,
        agreement=agreement.digest,
        exchange_key=ephemeral.public_key().public_bytes_raw(),
        sealed=b"",
        signature=b"",
    )
    peer = bytes.fromhex(recipient.exchange_key)
    key = _key(membership, unsigned, (ephemeral, peer), (membership.identity.exchange_key, peer))
    encrypted = ChaCha20Poly1305(key).encrypt(ONE_TIME_NONCE, model.to_bytes(), None)
    sealed = replace(unsigned, sealed=encrypted)
    return replace(sealed, signature=membership.identity.sign(sealed.signed_bytes())).to_bytes()


def open_starting_model(membership: Membership, data: bytes) -> StartingModel:
    """Open a starting model that another site of the agreement sealed to this one.

    Args:
        membership: The recipient, under the agreement that names the model.
        data: What `seal_starting_model` made.

    Raises:
        ConfigurationError: The agreement names no starting model.
        SiteMismatchError: It was sealed to another site.
        SealError: It does not open.
        MalformedError: It is not the model that the agreement names.
        ProtocolError: Another check failed, see `SealedModel.from_bytes`.
    """
    agreement = membership.agreement
    if not agreement.start:
        raise ConfigurationError("the agreement starts from the public initial model: there is nothing to take")
    sealed = SealedModel.from_bytes(data, agreement)
    if sealed.recipient != membership.site:
        raise SiteMismatchError("recipient", expected=membership.site, got=sealed.recipient)
    own, static = membership.identity.exchange_key, bytes.fromhex(agreement.roster[sealed.sender].exchange_key)
    try:
        key = _key(membership, sealed, (own, sealed.exchange_key), (own, static))
        opened = ChaCha20Poly1305(key).decrypt(ONE_TIME_NONCE, sealed.sealed, None)
    except InvalidTag:
        raise SealError("sealed model", expected="one under this agreement's keys", got="another") from None
    model = StartingModel.from_bytes(opened, agreement.terms)
    if not hmac.compare_digest(model.digest(membership.consortium_secret), agreement.start):
        raise MalformedError("starting model", expected="the one that the agreement names", got="another")
    return model


def _key(membership: Membership, model: SealedModel, *pairs: tuple[X25519PrivateKey, bytes]) -> bytes:
    """Return the one-time key that two sites agree on, from products of a fresh and a static key with a static one."""
    try:
        products = [private.exchange(X25519PublicKey.from_public_bytes(public)) for private, public in pairs]
    except ValueError:
        raise SealError("exchange key", expected="a point of large order", got="a small one") from None
    secret = SecretBytes(extract(membership.consortium_secret.reveal(), *products))
    return expand(secret.reveal(), "sealed-model", model.agreement, model.sender, model.recipient, model.exchange_key)
