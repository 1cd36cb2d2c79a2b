"""The keys of an opened run, in the epoch that this site stands in.

Trust: site only.
"""

from __future__ import annotations

from typing import Self

from clients.run.files import RunFiles
from clients.run.membership import Membership
from clients.secrets.keys import EpochKeys, EpochSecrets, PairKeys
from protocol.errors import EpochMismatchError, SessionMismatchError
from protocol.handshake import Session


class RunKeys:
    """What a site seals and releases with.

    Args:
        membership: The site.
        session: The run's cards.
        secrets: The epoch's secrets.

    Attributes:
        session: The run's cards.
        epoch: Number of the epoch.
        common: What all sites of the run share.
        pairs: What this site shares with each other one.
    """

    def __init__(self, membership: Membership, session: Session, secrets: EpochSecrets) -> None:
        self.session = session
        self.epoch = secrets.epoch
        self.common = EpochKeys(secrets.common, membership.agreement, session.digest)
        self.pairs = PairKeys(
            agreement=membership.agreement, session=session, site=membership.site, secrets=secrets.pairs
        )

    @classmethod
    def load(cls, membership: Membership, run: bytes) -> Self:
        """Load the keys of the epoch that the site stands in; those of the epochs before, and its run key, are deleted.

        Raises:
            SessionMismatchError: The run is not open here, or was closed or forgotten.
            EpochMismatchError: The vault holds a later epoch's secrets: its parts are not of one time.
        """
        agreement, files = membership.agreement, RunFiles(membership.vault, run)
        session_bytes = files.session()
        if session_bytes is None or files.closed() is not None:
            raise SessionMismatchError("run", expected="one that is open", got=run.hex())
        session = Session.from_bytes(session_bytes, agreement, run)
        files.drop_run_key()
        secrets, epoch = files.epoch(), agreement.epoch_of(files.next_round())
        if secrets.epoch > epoch:
            raise EpochMismatchError("epoch of this site's secrets", expected=epoch, got=secrets.epoch)
        while secrets.epoch < epoch:  # also after a crash between the end of a round and this
            secrets = secrets.next()
            files.keep_epoch(secrets)
        return cls(membership, session, secrets)

    def __repr__(self) -> str:
        return "RunKeys(<redacted>)"
