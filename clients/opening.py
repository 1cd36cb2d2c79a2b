"""A site's part in opening a run: announce a fresh key, and share the epoch secret.

The provider carries every message and can drop them; it can neither read nor make one.

Trust: site only.
"""

from __future__ import annotations

import hmac
import os
from dataclasses import replace

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from clients.keys import EpochKeys, PairKeys
from clients.membership import Membership
from clients.run_files import RunFiles
from clients.secret import SecretBytes
from protocol.errors import EpochMismatchError, SealError, SessionMismatchError, SiteMismatchError
from protocol.handshake import FIRST_EPOCH, RunCard, SealedSecret, Session
from protocol.schedule import KEY_BYTES

MAX_RUNS = 64
"""Runs that a vault keeps files of. An agreement carries one run, so more are a provider's doing, not a hospital's."""


class Opening:
    """Handles the messages that open one run.

    Args:
        membership: The site.
        run: The run's id.
    """

    def __init__(self, membership: Membership, run: bytes) -> None:
        self._membership = membership
        self._run = run
        self._files = RunFiles(membership.vault, run)

    def handle_announce(self) -> bytes:
        """Return this site's run card; the same one however often it is asked for.

        Raises:
            SessionMismatchError: This site has closed the run, or was asked into too many.
        """
        if self._files.closed() is not None:
            raise SessionMismatchError("run", expected="one that is not closed", got=self._run.hex())
        if self._files.has_ephemeral():
            return self._files.card()
        if self._files.other_runs() >= MAX_RUNS:
            raise SessionMismatchError("runs announced in this vault", expected=f"fewer than {MAX_RUNS}", got=MAX_RUNS)
        member = self._membership
        ephemeral = X25519PrivateKey.generate()
        unsigned = RunCard(
            site=member.site,
            run=self._run,
            agreement=member.agreement.digest,
            exchange_key=ephemeral.public_key().public_bytes_raw(),
            nonce=os.urandom(KEY_BYTES),
            signature=b"",
        )
        card = replace(unsigned, signature=member.identity.sign(unsigned.signed_bytes())).to_bytes()
        self._files.announce(ephemeral, card)
        return card

    def handle_entrust(self, session_bytes: bytes) -> list[bytes]:
        """As the steward, draw the epoch secret and seal it to every other site of the session.

        Returns:
            A sealed secret per other site, by ascending roster position.

        Raises:
            SiteMismatchError: This site is not the session's steward.
            ProtocolError: The session is not acceptable.
        """
        session = self._check_session(session_bytes)
        if session.steward != self._membership.site:
            raise SiteMismatchError("steward", expected=session.steward, got=self._membership.site)
        pair_keys = self.pair_keys(session)  # first: a card whose key is no key must leave nothing behind
        if self._files.session() is None:
            self._files.open(session_bytes, EpochKeys.draw(), FIRST_EPOCH)
        epoch, secret = self._files.epoch()
        check = self._epoch_keys(secret, session).check()
        return [
            pair_keys.seal(secret, check, self._membership.identity, epoch=epoch, to=site).to_bytes()
            for site in session.sites
            if site != session.steward
        ]

    def handle_open(self, session_bytes: bytes, sealed_bytes: bytes) -> None:
        """Open the epoch secret that the steward sealed to this site.

        Raises:
            SealError: It does not open, or gives this site another CKKS key than the steward has.
            EpochMismatchError: Its epoch is not the one to come.
            ProtocolError: Session or sealed secret are not acceptable.
        """
        session = self._check_session(session_bytes)
        sealed = SealedSecret.from_bytes(sealed_bytes, self._membership.agreement, session)
        if sealed.recipient != self._membership.site:
            raise SiteMismatchError("recipient", expected=self._membership.site, got=sealed.recipient)
        if sealed.epoch != FIRST_EPOCH:
            raise EpochMismatchError("epoch", expected=FIRST_EPOCH, got=sealed.epoch)
        secret = self.pair_keys(session).open(sealed)
        if not hmac.compare_digest(self._epoch_keys(secret, session).check(), sealed.check):
            raise SealError("CKKS key", expected="the steward's", got="another: do all sites run one SEAL version?")
        if self._files.session() is None:
            self._files.open(session_bytes, secret, sealed.epoch)
        elif self._files.epoch() != (sealed.epoch, secret):
            raise SealError("epoch secret", expected="the one this site has", got="another")

    def pair_keys(self, session: Session) -> PairKeys:
        """Return the keys shared with each other site of the session."""
        member = self._membership
        return PairKeys(
            agreement=member.agreement,
            session=session,
            site=member.site,
            identity=member.identity,
            ephemeral=self._files.ephemeral(),
            consortium_secret=member.consortium_secret,
        )

    def _check_session(self, session_bytes: bytes) -> Session:
        session = Session.from_bytes(session_bytes, self._membership.agreement, self._run)
        if not self._files.has_ephemeral() or self._files.card() != session.card_of(self._membership.site).to_bytes():
            raise SessionMismatchError("own card in the session", expected="the one that went out", got="another")
        opened = self._files.session()
        if opened is not None and opened != session_bytes:
            raise SessionMismatchError("session", expected="the one this run was opened with", got="another")
        return session

    def _epoch_keys(self, secret: SecretBytes, session: Session) -> EpochKeys:
        return EpochKeys(secret, self._membership.agreement, session.digest)
