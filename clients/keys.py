"""A run's keys at a site: pair keys with each peer, and all that follows from the epoch secret.

Trust: site only. The derivations and their labels follow design section "Agreement, keys, epochs".
"""

from __future__ import annotations

import os
from dataclasses import replace

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from clients.ckks import KEY_SEED_BYTES, SecretKey
from clients.identity import Identity
from clients.secret import SecretBytes
from protocol.agreement import Agreement
from protocol.errors import SealError
from protocol.handshake import RunCard, SealedSecret, Session
from protocol.rounds import RoundTerms
from protocol.schedule import KEY_BYTES, authenticate, expand, extract
from protocol.state import state_mac

ONE_TIME_NONCE = bytes(12)
"""The AEAD's nonce may be fixed, because each key encrypts one message."""


class PairKeys:
    """Keys that this site shares with each other site of the run.

    All four products of static and ephemeral keys go in, so neither an old nor a run key alone gives a pair key away,
    and so does the consortium secret, which no one outside has.

    Args:
        agreement: The agreement.
        session: The run's cards.
        site: This site's roster position.
        identity: This site's identity.
        ephemeral: This site's key of the run.
        consortium_secret: P.
    """

    def __init__(
        self,
        *,
        agreement: Agreement,
        session: Session,
        site: int,
        identity: Identity,
        ephemeral: X25519PrivateKey,
        consortium_secret: SecretBytes,
    ) -> None:
        self._agreement = agreement
        self._session = session
        self._site = site
        self._keys = {
            card.site: self._agree(card, identity, ephemeral, consortium_secret)
            for card in session.cards
            if card.site != site
        }

    def _agree(
        self, card: RunCard, identity: Identity, ephemeral: X25519PrivateKey, consortium_secret: SecretBytes
    ) -> SecretBytes:
        peer_static = X25519PublicKey.from_public_bytes(bytes.fromhex(self._agreement.roster[card.site].exchange_key))
        peer_ephemeral = X25519PublicKey.from_public_bytes(card.exchange_key)
        try:
            own_static = [identity.exchange_key.exchange(key) for key in (peer_ephemeral, peer_static)]
            own_ephemeral = [ephemeral.exchange(key) for key in (peer_ephemeral, peer_static)]
        except ValueError:
            raise SealError("exchange key", expected="a point of large order", got="a small one") from None
        (static_ephemeral, static_static), (both_ephemeral, ephemeral_static) = own_static, own_ephemeral
        # roles by roster order: the products of mixed keys swap places between the two ends
        mixed = (static_ephemeral, ephemeral_static) if self._site < card.site else (ephemeral_static, static_ephemeral)
        return SecretBytes(extract(consortium_secret.reveal(), both_ephemeral, *mixed, static_static))

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
            expand(self._keys[peer].reveal(), "mask", *terms.context, state): self._site < peer
            for peer in terms.cohort
            if peer != self._site
        }

    def _sealing_key(self, epoch: int, sender: int, recipient: int) -> bytes:
        peer = recipient if sender == self._site else sender
        return expand(
            self._keys[peer].reveal(),
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
