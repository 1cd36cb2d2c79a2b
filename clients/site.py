"""A hospital: takes the provider's requests, answers them or refuses, and tells its own people why.

Trust: site only. To the provider every refusal is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from clients.learner import Learner
from clients.membership import TABLE, Membership
from clients.opening import Opening
from clients.rounds import Rounds
from clients.run_files import RunFiles
from clients.self_check import check_backend
from clients.table_file import read_table
from clients.vault import Vault
from protocol.envelope import ROUND_NUMBER, Request, pack_list, unpack_list
from protocol.errors import LengthError
from protocol.handshake import RUN_BYTES
from protocol.terms import MAX_ROUNDS

Parts = Mapping[str, bytes]

REQUEST_PARTS: Final[dict[Request, tuple[str, ...]]] = {
    Request.ANNOUNCE: ("run",),
    Request.ENTRUST: ("run", "session"),
    Request.OPEN: ("run", "session", "secret"),
    Request.PREPARE: ("run", "round", "aggregates"),
    Request.UPLOAD: ("run", "call"),
    Request.CLOSE: ("run", "aggregates"),
}
"""What each request carries."""


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
    def of(cls, vault: Vault) -> Site:
        """Load the site that a vault belongs to."""
        return cls(Membership.load(vault))

    @property
    def membership(self) -> Membership:
        """The site's place in the consortium."""
        return self._membership

    def handle(self, request: Request, parts: Parts) -> dict[str, bytes]:
        """Answer one request of the provider's, alone with the vault.

        Args:
            request: What is asked.
            parts: The parts that `REQUEST_PARTS` names, as they came.

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
            Request.PREPARE: self._prepare,
            Request.UPLOAD: self._upload,
            Request.CLOSE: self._close,
        }
        with self._membership.vault.locked():
            return handlers[request](parts)

    def _announce(self, parts: Parts) -> dict[str, bytes]:
        card = Opening(self._membership, parts["run"]).handle_announce()
        return {"card": card, "agreement": self._membership.agreement.to_bytes()}

    def _entrust(self, parts: Parts) -> dict[str, bytes]:
        return {"secrets": pack_list(Opening(self._membership, parts["run"]).handle_entrust(parts["session"]))}

    def _open(self, parts: Parts) -> dict[str, bytes]:
        Opening(self._membership, parts["run"]).handle_open(parts["session"], parts["secret"])
        return {}

    def _prepare(self, parts: Parts) -> dict[str, bytes]:
        if len(parts["round"]) != ROUND_NUMBER.size:
            raise LengthError("round number bytes", expected=ROUND_NUMBER.size, got=len(parts["round"]))
        (round_number,) = ROUND_NUMBER.unpack(parts["round"])
        aggregates = unpack_list(parts["aggregates"], limit=MAX_ROUNDS + 2)
        return {"note": self._rounds(parts).handle_prepare(round_number, aggregates)}

    def _upload(self, parts: Parts) -> dict[str, bytes]:
        return {"update": self._rounds(parts).handle_upload(parts["call"])}

    def _close(self, parts: Parts) -> dict[str, bytes]:
        return {"note": self._rounds(parts).handle_close(unpack_list(parts["aggregates"], limit=MAX_ROUNDS + 2))}

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
            DataError: The table breaks the agreed schema; names line and column.
        """
        if run not in self._learners:
            self._learners[run] = self._make_learner(run)
        return self._learners[run]

    def _make_learner(self, run: bytes) -> Learner:
        member = self._membership
        table = RunFiles(member.vault, run).table()
        if table is None:
            table = read_table(member.vault.path(TABLE), member.agreement.terms.data)
        return Learner(
            terms=member.agreement.terms, parameters=member.agreement.parameters, table=table, site=member.name
        )


def _check_run(run: bytes) -> None:
    if len(run) != RUN_BYTES:
        raise LengthError("run id bytes", expected=RUN_BYTES, got=len(run))
