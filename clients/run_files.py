"""What a site keeps on disk about one run: its keys, where it stands, and the one update per state that has left.

Trust: site only. The journal outlives the run; the secrets do not.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from safetensors.numpy import load, save

from clients.learner import Contribution
from clients.learner_state import LearnerState
from clients.secret import SecretBytes
from clients.table import Table, Values
from clients.vault import Vault
from protocol.agreement import Cohort
from protocol.errors import SecondUploadError

JOURNAL: Final = "journal.jsonl"
MAX_TRIES: Final = 1000
"""Aggregates that a site refuses per round before it refuses the round for good."""

_EPHEMERAL: Final = "ephemeral.secret"
_EPOCH: Final = "epoch.secret"
_SESSION: Final = "session.bin"
_CARD: Final = "card.bin"
_POSITION: Final = "position.safetensors"
_PENDING: Final = "pending.safetensors"
_UPLOAD: Final = "upload.bin"
_CLOSED: Final = "closed.bin"
_TRIES: Final = "tries.json"
_TABLE: Final = "table.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where a site stands in a run.

    Attributes:
        round: The round whose sum comes next.
        state: The state chain's value, 32 bytes.
        members: Sites that may be in a cohort: those of the statistics sum; all of the run before it.
        learner: The learner's shared state.
        personal: float64, this site's personal values.
    """

    round: int
    state: bytes
    members: Cohort
    learner: LearnerState
    personal: Values


class RunFiles:
    """One run's files below `runs/<run>/`.

    Args:
        vault: The site's vault.
        run: The run's id.
    """

    def __init__(self, vault: Vault, run: bytes) -> None:
        self._vault = vault
        self._directory = f"runs/{run.hex()}"

    def _name(self, name: str) -> str:
        return f"{self._directory}/{name}"

    def other_runs(self) -> int:
        """Return how many other runs this vault has files of."""
        runs = self._vault.path("runs")
        return sum(1 for path in runs.iterdir() if path != self._vault.path(self._directory)) if runs.exists() else 0

    def has_ephemeral(self) -> bool:
        """Return whether the site has announced itself in this run and not closed it."""
        return self._vault.has(self._name(_EPHEMERAL))

    def announce(self, ephemeral: X25519PrivateKey, card: bytes) -> None:
        """Keep the run key and the card that went out."""
        self._vault.write(self._name(_CARD), card)
        self._vault.write_secret(self._name(_EPHEMERAL), SecretBytes(ephemeral.private_bytes_raw()))

    def ephemeral(self) -> X25519PrivateKey:
        """Return this site's key of the run."""
        return X25519PrivateKey.from_private_bytes(self._vault.read_secret(self._name(_EPHEMERAL)).reveal())

    def card(self) -> bytes:
        """Return the card that went out."""
        return self._vault.read(self._name(_CARD))

    def session(self) -> bytes | None:
        """Return the cards of the run, if it was opened."""
        return self._vault.read(self._name(_SESSION)) if self._vault.has(self._name(_SESSION)) else None

    def open(self, session: bytes, epoch_secret: SecretBytes, epoch: int) -> None:
        """Keep session and epoch secret."""
        framed = SecretBytes(epoch.to_bytes(4, "little") + epoch_secret.reveal())
        self._vault.write_secret(self._name(_EPOCH), framed)
        self._vault.write(self._name(_SESSION), session)

    def epoch(self) -> tuple[int, SecretBytes]:
        """Return epoch number and epoch secret."""
        raw = self._vault.read_secret(self._name(_EPOCH)).reveal()
        return int.from_bytes(raw[:4], "little"), SecretBytes(raw[4:])

    def position(self) -> Position | None:
        """Return where the site stands, or None before the first round."""
        if not self._vault.has(self._name(_POSITION)):
            return None
        tensors = load(self._vault.read(self._name(_POSITION)))
        head = json.loads(bytes(tensors.pop("position")))
        return Position(
            round=head["round"],
            state=bytes.fromhex(head["state"]),
            members=tuple(head["members"]),
            personal=tensors.pop("personal"),
            learner=LearnerState.from_tensors(tensors),
        )

    def move_to(self, position: Position) -> None:
        """Keep a new position; the contribution to the round before it is no longer needed."""
        head = json.dumps(
            {"round": position.round, "state": position.state.hex(), "members": list(position.members)}
        ).encode()
        tensors = position.learner.to_tensors() | {
            "position": np.frombuffer(head, dtype=np.uint8),
            "personal": position.personal,
        }
        self._vault.write(self._name(_POSITION), save(tensors))
        # after: a position that was not left yet needs the contribution, the update that is in its sum, and its tries
        for name in (_PENDING, _UPLOAD, _TRIES):
            self._vault.delete(self._name(name))

    def table(self) -> Table | None:
        """Return the patients that the run began with, if it has come to them."""
        if not self._vault.has(self._name(_TABLE)):
            return None
        return Table(**load(self._vault.read(self._name(_TABLE))))

    def keep_table(self, table: Table) -> None:
        """Keep the run's patients: were the site's file changed later, rows held out so far would be trained on."""
        data = save({"features": np.ascontiguousarray(table.features), "labels": table.labels})
        self._vault.write(self._name(_TABLE), data)

    def pending(self, round_number: int) -> Contribution | None:
        """Return a round's contribution, which waits for its cohort or its sum, if there is one."""
        if not self._vault.has(self._name(_PENDING)):
            return None
        tensors = load(self._vault.read(self._name(_PENDING)))
        if int(tensors["round"][0]) != round_number:
            return None
        return Contribution(packed=tensors["packed"].astype(np.int64), personal=tensors["personal"])

    def keep_pending(self, contribution: Contribution, round_number: int) -> None:
        """Keep a round's contribution until the sum it goes into has come."""
        packed = contribution.packed
        fits = np.abs(packed).max() <= np.iinfo(np.int32).max
        tensors = {
            "packed": packed.astype(np.int32) if fits else packed,
            "personal": contribution.personal,
            "round": np.array([round_number], dtype=np.int64),
        }
        # integers can be made again, but once they have left not the personal values that were trained with them
        self._vault.write(self._name(_PENDING), save(tensors), is_durable=len(contribution.personal) > 0)

    def uploaded(self, state: bytes, cohort: Cohort | None = None) -> bytes | None:
        """Return the update that left for a state, if one did.

        Args:
            state: The state it was made in.
            cohort: The cohort asked for now; None asks for none.

        Raises:
            SecondUploadError: One left for another cohort, or its bytes are gone; no second one will.
        """
        for entry in self._vault.lines(JOURNAL):
            if entry.get("state") != state.hex():
                continue
            data = self._vault.read(self._name(_UPLOAD)) if self._vault.has(self._name(_UPLOAD)) else b""
            if hashlib.sha256(data).hexdigest() != entry.get("sha256"):
                raise SecondUploadError(
                    "update for this state", expected="the one that left, in the run it left in", got="none or another"
                )
            if cohort is not None and entry.get("cohort") != list(cohort):
                raise SecondUploadError("cohort for this state", expected=entry.get("cohort"), got=list(cohort))
            return data
        return None

    def keep_upload(self, data: bytes, *, state: bytes, round_number: int, cohort: Cohort) -> None:
        """Put an update on disk and into the journal, before it leaves."""
        self._vault.write(self._name(_UPLOAD), data)
        entry: dict[str, object] = {
            "state": state.hex(),
            "round": round_number,
            "cohort": list(cohort),
            "sha256": hashlib.sha256(data).hexdigest(),
            "bytes": len(data),
        }
        self._vault.append(JOURNAL, entry, is_durable=True)

    def count_tries(self, tries: int) -> None:
        """Count refused aggregates of this round."""
        self._vault.write(self._name(_TRIES), json.dumps(self.tries() + tries).encode())

    def tries(self) -> int:
        """Return how many aggregates of this round were refused."""
        name = self._name(_TRIES)
        return int(json.loads(self._vault.read(name))) if self._vault.has(name) else 0

    def closed(self) -> bytes | None:
        """Return the closing note, if the run was closed."""
        return self._vault.read(self._name(_CLOSED)) if self._vault.has(self._name(_CLOSED)) else None

    def close(self, note: bytes) -> None:
        """Keep the closing note, then delete every secret of the run and all that could be decrypted with one."""
        self._vault.write(self._name(_CLOSED), note)
        self.forget()

    def forget(self) -> None:
        """Delete every secret of the run, all that could be decrypted with one, and the copy of the patients."""
        for name in (_EPHEMERAL, _EPOCH, _PENDING, _UPLOAD, _TRIES, _TABLE):
            self._vault.delete(self._name(name))
