"""Write the golden messages: bytes that a later version must still read and write in the same way.

    PYTHONPATH=. python tests/vectors/make.py

Run it only when the wire format is meant to change. `vectors.json` says what each file is.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from consortium import COHORT, Consortium

from protocol.notes import NoteKind, UploadCall

HERE = Path(__file__).parent
INDEX = HERE / "vectors.json"


def messages() -> dict[str, tuple[str, bytes]]:
    """Return name -> (what it is, bytes) of every golden message."""
    consortium = Consortium()
    terms = consortium.terms()
    made = {
        "agreement": ("the agreement of four hospitals; canonical JSON", consortium.agreement.to_bytes()),
        "run_card": ("hospital-2's signed key for the run", consortium.card(1).to_bytes()),
        "session": ("the four run cards in roster order", consortium.session.to_bytes()),
        "sealed_secret": ("the epoch secret from hospital-1 to hospital-3", consortium.sealed_secret(2).to_bytes()),
        "note_ready": ("hospital-2 is ready for round 1", consortium.note(1).to_bytes()),
        "note_closed": ("hospital-2 closed after round 4", _closed(consortium)),
        "note_void": ("hospital-2 has no update for round 1", consortium.note(1, kind=NoteKind.VOID).to_bytes()),
        "note_ready_without": ("hospital-2 is ready without hospital-3", consortium.note(1, voided=(2,)).to_bytes()),
        "upload_call": ("round 1, cohort of roster positions 0, 1, 3", UploadCall(round=1, cohort=COHORT).to_bytes()),
        "header": ("head of hospital-1's update for round 1", terms.header_of(0).to_bytes()),
        "aggregate": ("sum of the three updates, with their proofs", consortium.aggregate(terms).to_bytes()),
    }
    expanding = Consortium(largest_seeded_cohort=2)
    made["aggregate_expanded"] = (
        "sum of the three updates with their second polynomials, under an agreement that expands sums of three",
        expanding.aggregate(expanding.terms()).to_bytes(),
    )
    for site in COHORT:
        update = consortium.update(terms, site).to_bytes()
        made[f"update_{site}"] = (f"hospital-{site + 1}'s update for round 1, one ciphertext of 2048 residues", update)
    return made


def _closed(consortium: Consortium) -> bytes:
    return consortium.note(1, kind=NoteKind.CLOSED, round=consortium.agreement.last_round + 1).to_bytes()


def index(made: dict[str, tuple[str, bytes]]) -> str:
    """Return the text of `vectors.json`."""
    entries = {
        f"{name}.bin": {"what": what, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, (what, data) in sorted(made.items())
    }
    return json.dumps(entries, indent=2) + "\n"


def main() -> None:
    """Write all golden files and their index."""
    made = messages()
    for name, (_, data) in made.items():
        (HERE / f"{name}.bin").write_bytes(data)
    INDEX.write_text(index(made))


if __name__ == "__main__":
    main()
