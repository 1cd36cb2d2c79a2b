"""What has left a site: at most one update per state, on disk and in the journal before it leaves.

The journal is one file for all runs, and outlives them: a state is good for one upload, whatever run asks for it.

Trust: site only.
"""

from __future__ import annotations

import hashlib
from typing import Final

from clients.secrets.vault import Vault
from protocol.agreement import Cohort
from protocol.errors import SecondUploadError

JOURNAL: Final = "journal.jsonl"
UPLOAD: Final = "upload.bin"
"""The update that left last, below the run's directory."""


class UploadJournal:
    """A site's promises about what it uploads.

    Args:
        vault: The site's vault.
        run: The id of the run that is gone on with.
    """

    def __init__(self, vault: Vault, run: bytes) -> None:
        self._vault = vault
        self._run = run.hex()
        self._file = f"runs/{self._run}/{UPLOAD}"

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
            data = self._vault.read(self._file) if self._vault.has(self._file) else b""
            if hashlib.sha256(data).hexdigest() != entry.get("sha256"):
                raise SecondUploadError(
                    "update for this state", expected="the one that left, in the run it left in", got="none or another"
                )
            if cohort is not None and entry.get("cohort") != list(cohort):
                raise SecondUploadError("cohort for this state", expected=entry.get("cohort"), got=list(cohort))
            return data
        return None

    def first_cohort(self, state: bytes) -> Cohort | None:
        """Return the cohort of the first update that left in a round, if one did.

        Args:
            state: The state that the round began in.
        """
        first = self._first(state)
        return tuple(first["cohort"]) if first else None  # type: ignore[arg-type]  # as `keep_upload` wrote it

    def check_run(self, state: bytes) -> None:
        """Check that no update left in a round of another run.

        States tell runs apart no more once somebody was given up in one of them: that would be a second run of the
        agreement, and other sums of the same patients.

        Args:
            state: The state that the round began in.

        Raises:
            SecondUploadError: One has.
        """
        first = self._first(state)
        if first and first.get("run") != self._run:
            raise SecondUploadError(
                f"run {self._run}: this agreement's run, {first.get('run')}, has begun already; either the provider "
                "goes on with it (`cipherward submit --resume`), or the consortium makes a new agreement"
            )

    def _first(self, state: bytes) -> dict[str, object] | None:
        return next((entry for entry in self._vault.lines(JOURNAL) if entry.get("round_state") == state.hex()), None)

    def keep_upload(self, data: bytes, *, state: bytes, round_state: bytes, round_number: int, cohort: Cohort) -> None:
        """Put an update on disk and into the journal, before it leaves.

        Args:
            data: The update.
            state: The state it was made in.
            round_state: The state that its round began in; the same, unless uploads were given up since.
            round_number: Its round.
            cohort: Whose masks are in it.
        """
        self._vault.write(self._file, data)
        entry: dict[str, object] = {
            "run": self._run,
            "state": state.hex(),
            "round_state": round_state.hex(),
            "round": round_number,
            "cohort": list(cohort),
            "sha256": hashlib.sha256(data).hexdigest(),
            "bytes": len(data),
        }
        self._vault.append(JOURNAL, entry, is_durable=True)

    def keep_void(self, state: bytes, round_number: int) -> None:
        """Put into the journal that nothing of this site has left in a round and never will, before it is signed."""
        entry: dict[str, object] = {"void": state.hex(), "round": round_number}
        self._vault.append(JOURNAL, entry, is_durable=True)

    def has_voided(self, state: bytes) -> bool:
        """Return whether this site has signed that it has no update for the round that began in a state."""
        return any(entry.get("void") == state.hex() for entry in self._vault.lines(JOURNAL))

    def keep_overruled(self, site: int, round_number: int) -> None:
        """Put into the journal that this site's people have given up another's upload."""
        entry: dict[str, object] = {"overruled": site, "run": self._run, "round": round_number}
        self._vault.append(JOURNAL, entry, is_durable=True)

    def overruled(self, round_number: int) -> set[int]:
        """Return the sites whose uploads for a round this site's people have given up."""
        return {
            int(entry["overruled"])  # type: ignore[call-overload]  # as `keep_overruled` wrote it
            for entry in self._vault.lines(JOURNAL)
            if "overruled" in entry and (entry.get("run"), entry.get("round")) == (self._run, round_number)
        }
