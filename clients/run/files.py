"""What a site keeps on disk about one run: its keys, where it stands, and the contribution that waits for its cohort.

Trust: site only. Nothing secret outlives the run.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from safetensors import SafetensorError
from safetensors.numpy import load, save

from clients.data.table import Table, Values
from clients.learning.learner import Contribution
from clients.learning.learner_state import LearnerState
from clients.run.upload_journal import UPLOAD, UploadJournal
from clients.secrets.keys import EpochSecrets
from clients.secrets.secret import SecretBytes
from clients.secrets.vault import Vault
from protocol.agreement import Cohort
from protocol.errors import SessionMismatchError
from protocol.handshake import agreement_named_in
from protocol.state import voided_state

MAX_TRIES: Final = 1000
"""Aggregates that a site refuses per round before it refuses the round for good."""

_EPHEMERAL: Final = "ephemeral.secret"
_EPOCH: Final = "epoch.secret"
_SESSION: Final = "session.bin"
_CARD: Final = "card.bin"
_POSITION: Final = "position.safetensors"
_PENDING: Final = "pending.safetensors"
_CLOSED: Final = "closed.bin"
_ENDED: Final = "ended"
_TRIES: Final = "tries.json"
_TABLE: Final = "table.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where a site stands in a run.

    Attributes:
        round: The round whose sum comes next.
        state: The state chain's value, 32 bytes.
        voided: Roster positions of the sites whose uploads for this round were given up, ascending.
        members: Sites that may be in a cohort: those of the statistics sum; all of the run before it.
        learner: The learner's shared state.
        personal: float64, this site's personal values.
    """

    round: int
    state: bytes
    voided: Cohort = ()
    members: Cohort
    learner: LearnerState
    personal: Values

    @property
    def upload_state(self) -> bytes:
        """The state that this round's updates are made in."""
        return voided_state(self.state, self.voided)


class RunFiles:
    """One run's files below `runs/<run>/`.

    Args:
        vault: The site's vault.
        run: The run's id.

    Attributes:
        journal: What has left the site.
    """

    def __init__(self, vault: Vault, run: bytes) -> None:
        self._vault = vault
        self._directory = f"runs/{run.hex()}"
        self.journal = UploadJournal(vault, run)

    def _name(self, name: str) -> str:
        return f"{self._directory}/{name}"

    def other_runs(self, agreement: bytes) -> int:
        """Return how many other runs of an agreement, given by its digest, this vault has files of."""
        own = self._vault.path(self._name(_CARD))
        cards = self._vault.path("runs").glob(f"*/{_CARD}")
        return sum(path != own and agreement_named_in(path.read_bytes()) == agreement for path in cards)

    def agreement(self) -> bytes | None:
        """Return the digest of the agreement that the run was made under; None if no card went out that names it."""
        return agreement_named_in(self.card()) if self._vault.has(self._name(_CARD)) else None

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

    def open(self, session: bytes, secrets: EpochSecrets) -> None:
        """Keep the session and its first epoch's secrets; the run key, which they came from, is of no more use."""
        self.keep_epoch(secrets)
        self._vault.write(self._name(_SESSION), session)
        self.drop_run_key()

    def drop_run_key(self) -> None:
        """Delete this site's key of an opened run, which a crash may have left over."""
        self._vault.delete(self._name(_EPHEMERAL))

    def has_epoch(self) -> bool:
        """Return whether the site has the run's secrets, which it deletes when the run ends for it."""
        return self._vault.has(self._name(_EPOCH))

    def epoch(self) -> EpochSecrets:
        """Return the secrets of the epoch that the site is in.

        Raises:
            SessionMismatchError: They were deleted.
        """
        if not self.has_epoch():
            raise SessionMismatchError("run", expected="one whose secrets this site still has", got="a forgotten one")
        return EpochSecrets.from_secret(self._vault.read_secret(self._name(_EPOCH)))

    def keep_epoch(self, secrets: EpochSecrets) -> None:
        """Keep the secrets of an epoch in place of those before."""
        self._vault.write_secret(self._name(_EPOCH), secrets.to_secret())

    def position(self) -> Position | None:
        """Return where the site stands, or None before the first round."""
        if not self._vault.has(self._name(_POSITION)):
            return None
        tensors = load(self._vault.read(self._name(_POSITION)))
        head = json.loads(bytes(tensors.pop("position")))
        return Position(
            round=head["round"],
            state=bytes.fromhex(head["state"]),
            voided=tuple(head["voided"]),
            members=tuple(head["members"]),
            personal=tensors.pop("personal"),
            learner=LearnerState.from_tensors(tensors),
        )

    def next_round(self) -> int:
        """Return the round whose sum the site needs next."""
        position = self.position()
        return position.round if position else 0

    def move_to(self, position: Position) -> None:
        """Keep the position in the next round; the contribution to the round before it is no longer needed."""
        self.keep_position(position)
        # after: a position that was not left yet needs the contribution, the update that is in its sum, and its tries
        for name in (_PENDING, UPLOAD, _TRIES):
            self._vault.delete(self._name(name))

    def keep_position(self, position: Position) -> None:
        """Keep where the site stands."""
        head = json.dumps(
            {
                "round": position.round,
                "state": position.state.hex(),
                "voided": list(position.voided),
                "members": list(position.members),
            }
        ).encode()
        tensors = position.learner.to_tensors() | {
            "position": np.frombuffer(head, dtype=np.uint8),
            "personal": position.personal,
        }
        self._vault.write(self._name(_POSITION), save(tensors))

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
        try:
            tensors = load(self._vault.read(self._name(_PENDING)))
        except SafetensorError:  # a power cut may have emptied what was not durable, because it can be made again
            return None
        if int(tensors["round"][0]) != round_number:
            return None
        return Contribution(
            packed=tensors["packed"].astype(np.int64),
            personal=tensors["personal"],
            has_noise=bool(tensors["has_noise"][0]),
        )

    def keep_pending(self, contribution: Contribution, round_number: int) -> None:
        """Keep a round's contribution until the sum it goes into has come."""
        packed = contribution.packed
        fits = np.abs(packed).max() <= np.iinfo(np.int32).max
        tensors = {
            "packed": packed.astype(np.int32) if fits else packed,
            "personal": contribution.personal,
            "has_noise": np.array([contribution.has_noise]),
            "round": np.array([round_number], dtype=np.int64),
        }
        # integers can be made again, but not noise, nor, once they have left, the personal values trained with them
        is_durable = contribution.has_noise or len(contribution.personal) > 0
        self._vault.write(self._name(_PENDING), save(tensors), is_durable=is_durable)

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

    def end(self) -> None:
        """Take no more part in the run, by decision of the site's people, and delete its secrets."""
        self._vault.write(self._name(_ENDED), b"")
        self.forget()

    def is_ended(self) -> bool:
        """Return whether the site's people have ended the run here."""
        return self._vault.has(self._name(_ENDED))

    def forget(self) -> None:
        """Delete every secret of the run, all that could be decrypted with one, and the copy of the patients."""
        for name in (_EPHEMERAL, _EPOCH, _PENDING, UPLOAD, _TRIES, _TABLE):
            self._vault.delete(self._name(name))
