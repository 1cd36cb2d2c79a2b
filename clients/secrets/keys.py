"""A run's keys at a site: what it shares with each peer, and all that follows from the epoch secret.

Both are ratchets: the secrets of an epoch are a one-way function of those before, which are then deleted. So no site
must be asked when an epoch begins, and whoever takes a vault reads nothing of the epochs before. (What comes after, he
does: a run's later keys follow from its earlier ones.)

Trust: site only. The derivations and their labels follow design section "Agreement, keys, epochs".
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from clients.secrets.ckks import KEY_SEED_BYTES, SecretKey
from clients.secrets.identity import Identity
from clients.secrets.secret import SecretBytes
from protocol.agreement import Agreement
from protocol.errors import ConfigurationError, SealError
from protocol.handshake import RunCard, SealedSecret, Session
from protocol.rounds import RoundTerms
from protocol.schedule import KEY_BYTES, authenticate, expand, extract
from protocol.state import state_mac

_EPOCH: Final = struct.Struct("<I32s")
_PAIR: Final = struct.Struct("<H32s")
ONE_TIME_NONCE = bytes(12)
"""The AEAD's nonce may be fixed, because each key encrypts one message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochSecrets:
    """What a site keeps of an epoch; everything else is derived from it.

    Attributes:
        epoch: Its number, from 1.
        common: E, which all sites of the run share.
        pairs: Roster position -> the secret shared with that site alone.
    """

    epoch: int
    common: SecretBytes
    pairs: Mapping[int, SecretBytes]

    def next(self) -> Self:
        """Return the secrets of the next epoch, from which these cannot be computed."""
        return type(self)(
            epoch=self.epoch + 1,
            common=_next_secret(self.common),
            pairs={site: _next_secret(secret) for site, secret in self.pairs.items()},
        )

    def to_secret(self) -> SecretBytes:
        """Encode for the vault: the epoch's number and E, then position and secret of each peer."""
        pairs = b"".join(_PAIR.pack(site, secret.reveal()) for site, secret in sorted(self.pairs.items()))
        return SecretBytes(_EPOCH.pack(self.epoch, self.common.reveal()) + pairs)

    @classmethod
    def from_secret(cls, secret: SecretBytes) -> Self:
        """Decode what the vault keeps.

        Raises:
            ConfigurationError: The file is damaged.
        """
        raw = secret.reveal()
        if len(raw) < _EPOCH.size or (len(raw) - _EPOCH.size) % _PAIR.size:
            raise ConfigurationError("the vault's epoch secrets are damaged")
        epoch, common = _EPOCH.unpack(raw[: _EPOCH.size])
        pairs = {site: SecretBytes(pair) for site, pair in _PAIR.iter_unpack(raw[_EPOCH.size :])}
        return cls(epoch=epoch, common=SecretBytes(common), pairs=pairs)


def agree_pairs(
    *,
    agreement: Agreement,
    session: Session,
    site: int,
    identity: Identity,
    ephemeral: X25519PrivateKey,
    consortium_secret: SecretBytes,
) -> dict[int, SecretBytes]:
    """Agree on a secret with each other site of a run, for its first epoch.

    All four products of static and ephemeral keys go in, so neither an old nor a run key alone gives a pair's secret
    away, and so does the consortium secret, which no one outside has.

    Args:
        agreement: The agreement.
        session: The run's cards.
        site: This site's roster position.
        identity: This site's identity.
        ephemeral: This site's key of the run.
        consortium_secret: P.

    Returns:
        Roster position -> 32 secret bytes, for all sites but this one.

    Raises:
        SealError: A card's key is of small order.
    """

    def agree(card: RunCard) -> SecretBytes:
        peer_static = X25519PublicKey.from_public_bytes(bytes.fromhex(agreement.roster[card.site].exchange_key))
        peer_ephemeral = X25519PublicKey.from_public_bytes(card.exchange_key)
        try:
            own_static = [identity.exchange_key.exchange(key) for key in (peer_ephemeral, peer_static)]
            own_ephemeral = [ephemeral.exchange(key) for key in (peer_ephemeral, peer_static)]
        except ValueError:
            raise SealError("exchange key", expected="a point of large order", got="a small one") from None
        (static_ephemeral, static_static), (both_ephemeral, ephemeral_static) = own_static, own_ephemeral
        # roles by roster order: the products of mixed keys swap places between the two ends
        mixed = (static_ephemeral, ephemeral_static) if site < card.site else (ephemeral_static, static_ephemeral)
        return SecretBytes(extract(consortium_secret.reveal(), both_ephemeral, *mixed, static_static))

    return {card.site: agree(card) for card in session.cards if card.site != site}


def _next_secret(secret: SecretBytes) -> SecretBytes:
    return SecretBytes(expand(secret.reveal(), "next-epoch"))


class PairKeys:
    """Keys that this site shares with each other site of the run, in one epoch.

    Args:
        agreement: The agreement.
        session: The run's cards.
        site: This site's roster position.
        secrets: Roster position -> the secret shared with that site.
    """

    def __init__(
        self, *, agreement: Agreement, session: Session, site: int, secrets: Mapping[int, SecretBytes]
    ) -> None:
        self._agreement = agreement
        self._session = session
        self._site = site
        self._secrets = secrets

    def seal(self, secret: SecretBytes, check: bytes, identity: Identity, *, epoch: int, to: int) -> SealedSecret:
        """Seal the epoch secret to a peer, and sign it."""
        key = self._sealing_key(epoch, self._site, to)
        sealed = ChaCha20Poly1305(key).encrypt(ONE_TIME_NONCE, secret.reveal(), None)
        unsigned = SealedSecret(
            sender=self._site,
            recipient=to,
            epoch=epoch,
            agreement=self._agreement.digest,
            session=self._session.digest,
            sealed=sealed,
            check=check,
            signature=b"",
        )
        return replace(unsigned, signature=identity.sign(unsigned.signed_bytes()))

    def open(self, secret: SealedSecret) -> SecretBytes:
        """Open an epoch secret that the steward sealed to this site.

        Raises:
            SealError: It was sealed under other keys, or altered.
        """
        key = self._sealing_key(secret.epoch, secret.sender, secret.recipient)
        try:
            return SecretBytes(ChaCha20Poly1305(key).decrypt(ONE_TIME_NONCE, secret.sealed, None))
        except InvalidTag:
            raise SealError("sealed secret", expected="one under this run's pair key", got="another") from None

    def mask_keys(self, terms: RoundTerms, state: bytes) -> dict[bytes, bool]:
        """Return the one-time mask key with each peer of the cohort -> whether this site adds or subtracts."""
        return {
            expand(self._secrets[peer].reveal(), "mask", *terms.context, state): self._site < peer
            for peer in terms.cohort
            if peer != self._site
        }

    def _sealing_key(self, epoch: int, sender: int, recipient: int) -> bytes:
        peer = recipient if sender == self._site else sender
        return expand(
            self._secrets[peer].reveal(),
            "seal",
            self._agreement.digest,
            self._session.digest,
            epoch,
            sender,
            recipient,
        )

    def __repr__(self) -> str:
        return "PairKeys(<redacted>)"


class EpochKeys:
    """Everything that the sites of a run derive from the epoch secret E.

    Args:
        secret: E, 32 bytes.
        agreement: The agreement.
        session: X.
    """

    def __init__(self, secret: SecretBytes, agreement: Agreement, session: bytes) -> None:
        self._secret = secret
        self._agreement = agreement
        self._session = session
        seed = expand(secret.reveal(), "ckks", length=KEY_SEED_BYTES)
        self.ckks = SecretKey.from_seed(seed, agreement.parameters)

    @staticmethod
    def draw() -> SecretBytes:
        """Draw an epoch secret; the steward's part."""
        return SecretBytes(os.urandom(KEY_BYTES))

    def check(self) -> bytes:
        """Return what tells sites whether they derived the same CKKS key, and tells others nothing."""
        return authenticate(self._secret.reveal(), "check", self._agreement.digest, self._session, self.ckks.digest())

    def state_mac(self, state: bytes) -> bytes:
        """Return what the provider may see of a state."""
        return state_mac(expand(self._secret.reveal(), "group"), state)

    def tag_vectors_key(self, terms: RoundTerms, state: bytes) -> bytes:
        """Return the one-time key of a sum's secret tag vectors."""
        return expand(self._secret.reveal(), "tag-r", *terms.context, state)

    def tag_seal_key(self, terms: RoundTerms, state: bytes, site: int) -> bytes:
        """Return the one-time key under which a site seals its tag."""
        return expand(self._secret.reveal(), "tag-k", *terms.context, state, site)

    def __repr__(self) -> str:
        return "EpochKeys(<redacted>)"
