"""What a run has come to: everything that a provider which starts again needs in order to go on.

Each thing is kept before any site can have acted on it: the run's id before it is announced, the session before a
secret is drawn for it, the cohort before anybody is asked to upload for it.

Trust: runs at the provider. Nothing in it is secret: the sealed secrets open at their recipients only.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Final

from protocol.agreement import Agreement, Cohort
from protocol.envelope import pack_list, unpack_list
from protocol.errors import AgreementMismatchError
from protocol.handshake import RUN_BYTES, Session
from protocol.notes import UploadCall
from protocol.terms import Terms
from protocol.update import EncryptedAggregate
from strategies.journal import RunJournal

_MOST_HISTORY_BYTES: Final = 1 << 26
"""Of the sums in one message, the last one not counted: both sides hold them in memory."""

_RUN: Final = "run.id"
_AGREEMENT: Final = "agreement.json"
_SESSION: Final = "session.cwk"
_SECRETS: Final = "secrets.cws"


class RunHistory:
    """The kept messages of one run.

    Args:
        journal: Keeps them.
    """

    def __init__(self, journal: RunJournal) -> None:
        self._journal = journal

    @cached_property
    def run(self) -> bytes:
        """The run's id: the one that is kept, or a new one, kept from now on."""
        kept = self._journal.load(_RUN)
        return self._kept(_RUN, os.urandom(RUN_BYTES)) if kept is None else kept

    def session(self, terms: Terms) -> tuple[Agreement, Session] | None:
        """Return agreement and session, if the run got as far.

        Raises:
            AgreementMismatchError: The run was submitted with other terms than it began with.
        """
        agreement, session = self._journal.load(_AGREEMENT), self._journal.load(_SESSION)
        if agreement is None or session is None:
            return None
        parsed = Agreement.from_bytes(agreement)
        if parsed.terms != terms:
            raise AgreementMismatchError("terms", expected="those that this run began with", got="others")
        return parsed, Session.from_bytes(session, parsed, self.run)

    def is_begun_run_of(self, agreement: Agreement) -> bool:
        """Return whether this is an agreement's run, and an update may have left for it; parses nothing of it."""
        has_begun = self._journal.load(_in_round("cohorts", 0, "cwc")) is not None
        return has_begun and self._journal.load(_AGREEMENT) == agreement.to_bytes()

    def keep_session(self, agreement: Agreement, session: Session) -> None:
        """Keep agreement and session."""
        self._kept(_AGREEMENT, agreement.to_bytes())
        self._kept(_SESSION, session.to_bytes())

    def secrets(self, session: Session) -> dict[int, bytes] | None:
        """Return the sealed epoch secret of each site but the steward, if the steward has made them."""
        data = self._journal.load(_SECRETS)
        if data is None:
            return None
        others = session.others(session.steward)
        return dict(zip(others, unpack_list(data, limit=len(others)), strict=True))

    def keep_secrets(self, secrets: Mapping[int, bytes]) -> None:
        """Keep the sealed secrets, by roster position."""
        self._kept(_SECRETS, pack_list([secret for _, secret in sorted(secrets.items())]))

    def cohort(self, round_number: int) -> Cohort | None:
        """Return the cohort that was named for a round first, if one was; later ones are what is left of it."""
        data = self._journal.load(_in_round("cohorts", round_number, "cwc"))
        return None if data is None else UploadCall.from_bytes(data).cohort

    def keep_cohort(self, call: UploadCall, state: bytes) -> None:
        """Keep the cohort that a round's first calls name, and the MAC of the state that its updates are made in."""
        if self.cohort(call.round) is None:
            self._kept(_in_round("states", call.round, "mac"), state)
            self._kept(_in_round("cohorts", call.round, "cwc"), call.to_bytes())

    def state(self, round_number: int) -> bytes | None:
        """Return the MAC of the state that a round's first updates are made in, if a cohort was named."""
        return self._journal.load(_in_round("states", round_number, "mac"))

    def voids(self, round_number: int) -> list[bytes]:
        """Return the void notes of a round."""
        return unpack_list(self._journal.load(_in_round("voids", round_number, "cwn")) or pack_list([]), limit=1 << 16)

    def keep_void(self, round_number: int, note: bytes) -> None:
        """Keep one more void note of a round."""
        self._kept(_in_round("voids", round_number, "cwn"), pack_list([*self.voids(round_number), note]))

    def sum(self, round_number: int) -> bytes | None:
        """Return a round's encrypted sum, if it was made."""
        return self._journal.load(_in_round("sums", round_number, "cwa"))

    def keep_sum(self, round_number: int, data: bytes) -> None:
        """Keep a round's encrypted sum."""
        self._kept(_in_round("sums", round_number, "cwa"), data)
        self._journal.event("sum-kept", round=round_number, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    def members(self, agreement: Agreement, session: Session) -> Cohort:
        """Return the sites that may be in a cohort: those of the statistics sum; before it, all."""
        data = self.sum(0)
        return session.sites if data is None else EncryptedAggregate.from_bytes(data, agreement).cohort

    def since(self, round_number: int, until: int) -> tuple[Sequence[bytes], int]:
        """Return what brings a site from before one round to before another, or as far as one message goes.

        Returns:
            Void notes and sums, in order, and the round before which they bring the site.
        """
        steps: list[bytes] = []
        size = 0
        for number in range(round_number, until + 1):
            steps += self.voids(number)
            data = self.sum(number) if number < until else None
            if data is None:
                continue
            steps.append(data)
            size += len(data)
            if size > _MOST_HISTORY_BYTES and number + 1 < until:
                return steps, number + 1
        return steps, until

    def _kept(self, name: str, data: bytes) -> bytes:
        self._journal.keep(name, data)
        return data


def _in_round(kind: str, round_number: int, suffix: str) -> str:
    return f"{kind}/round-{round_number:05d}.{suffix}"
