"""The messages that open a run: signed run cards, the session that they make, and the sealed epoch secret.

Trust: both sides parse them; only sites can open what is sealed.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from protocol.agreement import Agreement
from protocol.errors import (
    AgreementMismatchError,
    LengthError,
    MalformedError,
    SessionMismatchError,
    SiteMismatchError,
)
from protocol.schedule import digest, frame

RUN_BYTES: Final = 16
_CARD = struct.Struct("<4sHxx16s32s32s32s64s")
_CARD_MAGIC: Final = b"CWK1"
_SECRET = struct.Struct("<4sHHI32s32s48s32s64s")
_SECRET_MAGIC: Final = b"CWS1"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCard:
    """A site's key for one run, signed with its identity.

    Attributes:
        site: Roster position.
        run: The run's id, 16 bytes.
        agreement: A.
        exchange_key: Ephemeral X25519 public key.
        nonce: 32 random bytes.
        signature: Over all of it.
    """

    site: int
    run: bytes
    agreement: bytes
    exchange_key: bytes
    nonce: bytes
    signature: bytes

    def signed_bytes(self) -> bytes:
        """Return what the site signs."""
        return frame("run-card", self.agreement, self.run, self.site, self.exchange_key, self.nonce)

    def to_bytes(self) -> bytes:
        """Encode in CARD_BYTES bytes."""
        return _CARD.pack(
            _CARD_MAGIC, self.site, self.run, self.agreement, self.exchange_key, self.nonce, self.signature
        )

    @classmethod
    def from_bytes(cls, data: bytes, agreement: Agreement, run: bytes) -> RunCard:
        """Parse a card and check it against agreement, run and the pinned signing key.

        Raises:
            ProtocolError: The subclass of the first check that failed.
        """
        _check_length("run card bytes", _CARD.size, data)
        magic, site, card_run, card_agreement, exchange_key, nonce, signature = _CARD.unpack(data)
        _check_magic("run card", _CARD_MAGIC, magic)
        if card_agreement != agreement.digest:
            raise AgreementMismatchError("agreement", expected=agreement.digest.hex(), got=card_agreement.hex())
        if card_run != run:
            raise SessionMismatchError("run", expected=run.hex(), got=card_run.hex())
        _check_site(site, agreement)
        card = cls(
            site=site,
            run=card_run,
            agreement=card_agreement,
            exchange_key=exchange_key,
            nonce=nonce,
            signature=signature,
        )
        if card.to_bytes() != data:
            raise MalformedError("run card", expected="zeros between its fields", got="other bytes")
        agreement.roster[site].verify(signature, card.signed_bytes())
        return card


CARD_BYTES: Final = _CARD.size


def agreement_named_in(card: bytes) -> bytes | None:
    """Return the digest of the agreement that a run card names, unchecked; None if these are not a card's bytes."""
    return _CARD.unpack(card)[3] if len(card) == CARD_BYTES else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """The run cards of all sites that take part in a run.

    Attributes:
        cards: By ascending roster position.
    """

    cards: tuple[RunCard, ...]

    @property
    def digest(self) -> bytes:
        """X: binds every key of the run to every site's fresh key and nonce."""
        return digest("session", *(card.to_bytes() for card in self.cards))

    @property
    def sites(self) -> tuple[int, ...]:
        """Roster positions of the sites in the run."""
        return tuple(card.site for card in self.cards)

    def others(self, site: int) -> tuple[int, ...]:
        """Return the roster positions of all sites of the run but one, ascending."""
        return tuple(other for other in self.sites if other != site)

    @property
    def steward(self) -> int:
        """The site that draws the epoch secret: the first of the roster in the run."""
        return self.cards[0].site

    def card_of(self, site: int) -> RunCard:
        """Return a site's card.

        Raises:
            SiteMismatchError: The site is not in the run.
        """
        for card in self.cards:
            if card.site == site:
                return card
        raise SiteMismatchError("site in the run", expected=self.sites, got=site)

    def to_bytes(self) -> bytes:
        """Encode as the cards in order."""
        return b"".join(card.to_bytes() for card in self.cards)

    @classmethod
    def from_bytes(cls, data: bytes, agreement: Agreement, run: bytes) -> Session:
        """Parse and check all cards.

        Raises:
            CohortError: Fewer sites than the smallest cohort, or not in order.
            ProtocolError: The subclass of the first check of a card that failed.
        """
        if len(data) % CARD_BYTES or len(data) > CARD_BYTES * len(agreement.roster):
            raise LengthError(
                "session bytes", expected=f"at most {len(agreement.roster)} times {CARD_BYTES}", got=len(data)
            )
        cards = [
            RunCard.from_bytes(data[start : start + CARD_BYTES], agreement, run)
            for start in range(0, len(data), CARD_BYTES)
        ]
        return cls.of(cards, agreement)

    @classmethod
    def of(cls, cards: Sequence[RunCard], agreement: Agreement) -> Session:
        """Make a session of checked cards.

        Raises:
            CohortError: Fewer sites than the smallest cohort, or not in order.
            MalformedError: Two cards hold the same key.
        """
        agreement.check_cohort([card.site for card in cards])
        if len({card.exchange_key for card in cards}) != len(cards):  # two pairs would share their masks' keys
            raise MalformedError("exchange keys of the session", expected="one for each site", got="two that are equal")
        return cls(cards=tuple(cards))


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedSecret:
    """The epoch secret, sealed by the steward to one site under their pair key, and signed.

    Attributes:
        sender: The steward's roster position.
        recipient: The site that can open it.
        epoch: Key epoch, from 1.
        agreement: A.
        session: X.
        sealed: 32 bytes under ChaCha20-Poly1305.
        check: What every site that derives the same CKKS key computes.
        signature: The steward's, over all of it.
    """

    sender: int
    recipient: int
    epoch: int
    agreement: bytes
    session: bytes
    sealed: bytes
    check: bytes
    signature: bytes

    def signed_bytes(self) -> bytes:
        """Return what the steward signs."""
        return frame(
            "sealed-secret",
            self.agreement,
            self.session,
            self.epoch,
            self.sender,
            self.recipient,
            self.sealed,
            self.check,
        )

    def to_bytes(self) -> bytes:
        """Encode in bytes of fixed length."""
        return _SECRET.pack(
            _SECRET_MAGIC,
            self.sender,
            self.recipient,
            self.epoch,
            self.agreement,
            self.session,
            self.sealed,
            self.check,
            self.signature,
        )

    @classmethod
    def from_bytes(cls, data: bytes, agreement: Agreement, session: Session) -> SealedSecret:
        """Parse a sealed secret and check that the session's steward signed it.

        Raises:
            ProtocolError: The subclass of the first check that failed.
        """
        _check_length("sealed secret bytes", _SECRET.size, data)
        magic, sender, recipient, epoch, secret_agreement, secret_session, sealed, check, signature = _SECRET.unpack(
            data
        )
        _check_magic("sealed secret", _SECRET_MAGIC, magic)
        if secret_agreement != agreement.digest:
            raise AgreementMismatchError("agreement", expected=agreement.digest.hex(), got=secret_agreement.hex())
        if secret_session != session.digest:
            raise SessionMismatchError("session", expected=session.digest.hex(), got=secret_session.hex())
        if sender != session.steward:
            raise SiteMismatchError("sealed secret's sender", expected=session.steward, got=sender)
        if recipient not in session.sites:
            raise SiteMismatchError("sealed secret's recipient", expected=session.sites, got=recipient)
        secret = cls(
            sender=sender,
            recipient=recipient,
            epoch=epoch,
            agreement=secret_agreement,
            session=secret_session,
            sealed=sealed,
            check=check,
            signature=signature,
        )
        agreement.roster[sender].verify(signature, secret.signed_bytes())
        return secret


def _check_length(what: str, expected: int, data: bytes) -> None:
    if len(data) != expected:
        raise LengthError(what, expected=expected, got=len(data))


def _check_magic(what: str, expected: bytes, got: bytes) -> None:
    if got != expected:
        raise MalformedError(what, expected=expected.decode(), got=got.hex())


def _check_site(site: int, agreement: Agreement) -> None:
    if site >= len(agreement.roster):
        raise SiteMismatchError("roster position", expected=f"below {len(agreement.roster)}", got=site)
