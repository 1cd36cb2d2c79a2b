"""A site's part in opening a run: announce a fresh key, and share the epoch secret.

The provider carries every message and can drop them; it can neither read nor make one.

Trust: site only.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Mapping
from dataclasses import replace

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from clients.run.files import RunFiles
from clients.run.membership import Membership
from clients.secrets.keys import EpochKeys, EpochSecrets, PairKeys, agree_pairs
from clients.secrets.secret import SecretBytes
from protocol.agreement import FIRST_EPOCH
from protocol.errors import EpochMismatchError, SealError, SessionMismatchError, SiteMismatchError
from protocol.handshake import RunCard, SealedSecret, Session
from protocol.schedule import KEY_BYTES
from protocol.state import initial_state

MAX_RUNS = 64
"""Runs of one agreement that a vault keeps files of. It carries one: more are a provider's doing, not a hospital's."""


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
        """Return this site's run card; the same one however often it is asked for, also after the run was closed.

        Raises:
            SessionMismatchError: This site's people have ended the run here, or it was asked into too many.
            SecondUploadError: The agreement's run is another one, and has begun here.
        """
        if self._files.is_ended():
            raise SessionMismatchError("run", expected="one that goes on here", got=self._run.hex())
        # its first update would be refused anyway, after all that comes before it
        self._files.journal.check_run(initial_state(self._membership.agreement.digest))
        if self._files.session() is not None or self._files.has_ephemeral():
            return self._files.card()
        member = self._membership
        if self._files.other_runs(member.agreement.digest) >= MAX_RUNS:
            raise SessionMismatchError("runs announced in this vault", expected=f"fewer than {MAX_RUNS}", got=MAX_RUNS)
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
            EpochMismatchError: The first epoch is over, and its secret deleted.
            ProtocolError: The session is not acceptable.
        """
        session = self._check_session(session_bytes)
        if session.steward != self._membership.site:
            raise SiteMismatchError("steward", expected=session.steward, got=self._membership.site)
        if self._files.session() is None:
            secrets = EpochSecrets(epoch=FIRST_EPOCH, common=EpochKeys.draw(), pairs=self._agree(session))
        else:
            secrets = self._first_secrets()
        self._files.open(session_bytes, secrets)
        check = self._epoch_keys(secrets.common, session).check()
        pair_keys = self._pair_keys(session, secrets.pairs)
        return [
            pair_keys.seal(secrets.common, check, self._membership.identity, epoch=FIRST_EPOCH, to=site).to_bytes()
            for site in session.sites
            if site != session.steward
        ]

    def handle_open(self, session_bytes: bytes, sealed_bytes: bytes) -> None:
        """Open the epoch secret that the steward sealed to this site.

        Raises:
            SealError: It does not open, or gives this site another CKKS key than the steward has.
            EpochMismatchError: Its epoch is not the one to come, or the first one is over.
            ProtocolError: Session or sealed secret are not acceptable.
        """
        session = self._check_session(session_bytes)
        sealed = SealedSecret.from_bytes(sealed_bytes, self._membership.agreement, session)
        if sealed.recipient != self._membership.site:
            raise SiteMismatchError("recipient", expected=self._membership.site, got=sealed.recipient)
        if sealed.epoch != FIRST_EPOCH:
            raise EpochMismatchError("epoch", expected=FIRST_EPOCH, got=sealed.epoch)
        is_open = self._files.session() is not None
        pairs = self._first_secrets().pairs if is_open else self._agree(session)
        secret = self._pair_keys(session, pairs).open(sealed)
        if not hmac.compare_digest(self._epoch_keys(secret, session).check(), sealed.check):
            raise SealError("CKKS key", expected="the steward's", got="another: do all sites run one SEAL version?")
        if is_open and self._first_secrets().common != secret:
            raise SealError("epoch secret", expected="the one this site has", got="another")
        self._files.open(session_bytes, EpochSecrets(epoch=FIRST_EPOCH, common=secret, pairs=pairs))

    def _agree(self, session: Session) -> dict[int, SecretBytes]:
        member = self._membership
        return agree_pairs(
            agreement=member.agreement,
            session=session,
            site=member.site,
            identity=member.identity,
            ephemeral=self._files.ephemeral(),
            consortium_secret=member.consortium_secret,
        )

    def _pair_keys(self, session: Session, secrets: Mapping[int, SecretBytes]) -> PairKeys:
        member = self._membership
        return PairKeys(agreement=member.agreement, session=session, site=member.site, secrets=secrets)

    def _first_secrets(self) -> EpochSecrets:
        secrets = self._files.epoch()
        if secrets.epoch != FIRST_EPOCH:
            raise EpochMismatchError("epoch of the opening", expected=FIRST_EPOCH, got=secrets.epoch)
        return secrets

    def _check_session(self, session_bytes: bytes) -> Session:
        session = Session.from_bytes(session_bytes, self._membership.agreement, self._run)
        opened = self._files.session()
        is_announced = self._files.has_ephemeral() or (opened is not None and self._files.has_epoch())
        if not is_announced or self._files.card() != session.card_of(self._membership.site).to_bytes():
            raise SessionMismatchError("own card in the session", expected="the one that went out", got="another")
        if opened is not None and opened != session_bytes:
            raise SessionMismatchError("session", expected="the one this run was opened with", got="another")
        return session

    def _epoch_keys(self, secret: SecretBytes, session: Session) -> EpochKeys:
        return EpochKeys(secret, self._membership.agreement, session.digest)
