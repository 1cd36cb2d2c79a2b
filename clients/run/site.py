"""A hospital: takes the provider's requests, answers them or refuses, and tells its own people why.

Trust: site only. To the provider every refusal is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from clients.data.small_numbers import check_floors
from clients.data.table_file import read_table
from clients.learning.learner import Learner
from clients.run.files import RunFiles
from clients.run.membership import TABLE, Membership
from clients.run.opening import Opening
from clients.run.rounds import Rounds
from clients.run.start import adopt_starting_model, start_of
from clients.secrets.identity import Identity
from clients.secrets.self_check import check_backend
from clients.secrets.vault import Vault
from protocol.envelope import ROUND_NUMBER, Request, pack_list, unpack_list, unpack_round
from protocol.errors import LengthError
from protocol.handshake import RUN_BYTES
from protocol.terms import MAX_ROUNDS

Parts = Mapping[str, bytes]

MAX_HISTORY: Final = 2 * MAX_ROUNDS
"""Most void notes and sums in one message: a sum of each round, and room for sites that were given up."""


class Site:
    """One hospital's process-independent side: all that it knows is in its vault.

    Args:
        membership: The site's place in the consortium.
    """

    def __init__(self, membership: Membership) -> None:
        self._membership = membership
        self._learners: dict[bytes, Learner] = {}
        check_backend(membership.agreement.parameters)

    @classmethod
    def of(cls, vault: Vault, identity: Identity | None = None) -> Site:
        """Load the site that a vault belongs to.

        Args:
            vault: Its directory.
            identity: The site's identity, if the vault keeps it under a passphrase.

        Raises:
            ConfigurationError: As `Membership.load`.
        """
        return cls(Membership.load(vault, identity))

    @property
    def membership(self) -> Membership:
        """The site's place in the consortium."""
        return self._membership

    def handle(self, request: Request, parts: Parts) -> dict[str, bytes]:
        """Answer one request of the provider's, alone with the vault.

        Args:
            request: What is asked.
            parts: The parts that `protocol.envelope.REQUEST_PARTS` names, as they came.

        Returns:
            The parts of the answer.

        Raises:
            FederationError: The request is refused; nothing has changed but the log.
        """
        _check_run(parts["run"])
        handlers: dict[Request, Callable[[Parts], dict[str, bytes]]] = {
            Request.ANNOUNCE: self._announce,
            Request.ENTRUST: self._entrust,
            Request.OPEN: self._open,
            Request.CATCH_UP: self._catch_up,
            Request.PREPARE: self._prepare,
            Request.UPLOAD: self._upload,
            Request.VOID: self._void,
            Request.CLOSE: self._close,
        }
        with self._membership.vault.locked():
            return handlers[request](parts)

    def _announce(self, parts: Parts) -> dict[str, bytes]:
        adopt_starting_model(self._membership)  # a site that cannot begin is to be in no run
        card = Opening(self._membership, parts["run"]).handle_announce()
        next_round = ROUND_NUMBER.pack(RunFiles(self._membership.vault, parts["run"]).next_round())
        return {"card": card, "agreement": self._membership.agreement.to_bytes(), "round": next_round}

    def _entrust(self, parts: Parts) -> dict[str, bytes]:
        return {"secrets": pack_list(Opening(self._membership, parts["run"]).handle_entrust(parts["session"]))}

    def _open(self, parts: Parts) -> dict[str, bytes]:
        Opening(self._membership, parts["run"]).handle_open(parts["session"], parts["secret"])
        return {}

    def _catch_up(self, parts: Parts) -> dict[str, bytes]:
        next_round = self._rounds(parts).handle_catch_up(unpack_list(parts["history"], limit=MAX_HISTORY))
        return {"round": ROUND_NUMBER.pack(next_round)}

    def _prepare(self, parts: Parts) -> dict[str, bytes]:
        history = unpack_list(parts["history"], limit=MAX_HISTORY)
        return {"note": self._rounds(parts).handle_prepare(unpack_round(parts["round"]), history)}

    def _upload(self, parts: Parts) -> dict[str, bytes]:
        return {"update": self._rounds(parts).handle_upload(parts["call"])}

    def _void(self, parts: Parts) -> dict[str, bytes]:
        return {"note": self._rounds(parts).handle_void(unpack_round(parts["round"]))}

    def _close(self, parts: Parts) -> dict[str, bytes]:
        return {"note": self._rounds(parts).handle_close(unpack_list(parts["history"], limit=MAX_HISTORY))}

    def overrule(self, run: bytes, round_number: int, site: str) -> None:
        """Give up another site's upload, by decision of this site's people; see `Rounds.overrule`.

        Raises:
            ConfigurationError: There is no such site.
            ProtocolError: The site is not in the run, or the round is not the one that this site stands before.
        """
        with self._membership.vault.locked():
            self._rounds({"run": run}).overrule(round_number, self._membership.agreement.position(site))

    def _rounds(self, parts: Parts) -> Rounds:
        return Rounds(self._membership, parts["run"], lambda: self.learner(parts["run"]))

    def has_closed(self, run: bytes) -> bool:
        """Return whether this site has closed a run.

        Raises:
            LengthError: That is no run's id.
        """
        _check_run(run)
        return RunFiles(self._membership.vault, run).closed() is not None

    def learner(self, run: bytes) -> Learner:
        """Return the site's learning in a run, from its table as it was when the run began.

        Raises:
            DataError: The table breaks the agreed schema, which names line and column; or it has too few patients.
            ConfigurationError: The vault lacks the agreed starting model.
        """
        if run not in self._learners:
            self._learners[run] = self._make_learner(run)
        return self._learners[run]

    def _make_learner(self, run: bytes) -> Learner:
        member = self._membership
        table = RunFiles(member.vault, run).table()
        if table is None:
            table = read_table(member.vault.path(TABLE), member.agreement.terms.data)
            check_floors(table, member.agreement.terms.privacy, TABLE)
        return Learner(
            terms=member.agreement.terms,
            parameters=member.agreement.parameters,
            table=table,
            site=member.name,
            start=start_of(member),
        )


def _check_run(run: bytes) -> None:
    if len(run) != RUN_BYTES:
        raise LengthError("run id bytes", expected=RUN_BYTES, got=len(run))
