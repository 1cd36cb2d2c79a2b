"""A consortium's decision to hand out its model in plaintext: one signed file per site, and all of them or none.

Every site that ended a run makes the same file of its shared model. A decision names that file by its digest, so what
the sites signed is what is served, and for what.

Trust: public on both sides. What was released can be read by whoever has it, for good; no decision takes it back.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final

from pydantic import TypeAdapter, ValidationError

from protocol.agreement import Agreement, is_site_name
from protocol.checks import check_range
from protocol.errors import (
    AgreementMismatchError,
    ConfigurationError,
    LengthError,
    MalformedError,
    ModelMismatchError,
    PurposeMismatchError,
    ReleaseIncompleteError,
    SessionMismatchError,
    SiteMismatchError,
)
from protocol.schedule import frame

LONGEST_PURPOSE: Final = 400
"""Characters."""

MAX_DECISION_BYTES: Final = 8 << 10
_LAST_SECOND: Final = 1 << 40
_HEX: Final = {"agreement": 32, "run": 16, "model": 32, "signature": 64}
"""Bytes of the fields that are written in hex."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseDecision:
    """One site's decision.

    Attributes:
        agreement: The agreement's digest, hex.
        run: Id of the run that ended in the model, hex.
        model: SHA-256 of the model's file, hex.
        purpose: To whom and what for, as the sites' people put it; 1..400 printable characters in single spaces.
        site: The site's name in the roster.
        time: When it was signed, in seconds since 1970.
        signature: By the site's signing key over `signed_bytes`, hex.
    """

    agreement: str
    run: str
    model: str
    purpose: str
    site: str
    time: int
    signature: str

    def __post_init__(self) -> None:
        for name, size in _HEX.items():
            if not re.fullmatch(f"[0-9a-f]{{{2 * size}}}", getattr(self, name)):
                raise ConfigurationError(f"a release's {name} is not {2 * size} lower-case hex digits")
        if not is_site_name(self.site):
            raise ConfigurationError("a release's site is no site's name")
        check_range("a release's time", self.time, 0, _LAST_SECOND)
        check_purpose(self.purpose)

    def signed_bytes(self) -> bytes:
        """Return what the site signs."""
        return release_bytes(
            agreement=self.agreement,
            run=self.run,
            model=self.model,
            purpose=self.purpose,
            site=self.site,
            time=self.time,
        )

    def to_bytes(self) -> bytes:
        """Encode as canonical JSON."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> ReleaseDecision:
        """Parse a decision; whether its site signed it is checked against the agreement, by `check_release`.

        Raises:
            LengthError: It is larger than any decision.
            MalformedError: It is not the canonical encoding of a decision.
        """
        if len(data) > MAX_DECISION_BYTES:
            raise LengthError("release decision bytes", expected=f"at most {MAX_DECISION_BYTES}", got=len(data))
        try:
            decision = _PARSER.validate_json(data)
        except (ValidationError, ConfigurationError) as error:
            raise MalformedError(f"release decision ({type(error).__name__})") from None
        if decision.to_bytes() != data:
            raise MalformedError(
                "release decision", expected="canonical JSON without unknown keys", got="another encoding"
            )
        return decision


_PARSER = TypeAdapter(ReleaseDecision)


def release_bytes(*, agreement: str, run: str, model: str, purpose: str, site: str, time: int) -> bytes:
    """Return what a site signs to release a model; the arguments are those of a `ReleaseDecision`."""
    digests = (bytes.fromhex(text) for text in (agreement, run, model))
    return frame("model-release", *digests, purpose.encode(), site.encode(), time)


def model_digest(model: bytes) -> str:
    """Return what a decision names a model's file by: its SHA-256, hex."""
    return hashlib.sha256(model).hexdigest()


def check_purpose(purpose: str) -> None:
    """Check that what people read is all that is signed: no control characters, no spaces that cannot be seen.

    Raises:
        ConfigurationError: It is empty, too long, or holds such characters.
    """
    if not 0 < len(purpose) <= LONGEST_PURPOSE or not purpose.isprintable() or purpose != " ".join(purpose.split()):
        raise ConfigurationError(
            f"the purpose of a release needs 1..{LONGEST_PURPOSE} printable characters, with single spaces"
        )


def check_release(agreement: Agreement, decisions: Sequence[ReleaseDecision], model: bytes) -> None:
    """Check that all sites of an agreement, and nobody else, have decided to release this very file.

    Args:
        agreement: The agreement under which the model was made.
        decisions: One of each site of its roster, in any order.
        model: The model's file.

    Raises:
        AgreementMismatchError: A decision is for another agreement.
        SiteMismatchError: A decision is by a site outside the roster, or a site has decided twice.
        SignatureError: The site did not sign it.
        ModelMismatchError: A decision is for another file.
        SessionMismatchError: Two decisions are for different runs.
        PurposeMismatchError: Two decisions are for different purposes.
        ReleaseIncompleteError: A site's decision is missing; names the missing ones.
    """
    roster, digest = {card.name: card for card in agreement.roster}, model_digest(model)
    decided: dict[str, ReleaseDecision] = {}
    for decision in decisions:
        site = decision.site
        if decision.agreement != agreement.digest.hex():
            raise AgreementMismatchError(
                f"agreement of a release decision by {site!r}", expected=agreement.digest.hex(), got=decision.agreement
            )
        if site not in roster:
            raise SiteMismatchError("site of a release decision", expected=f"one of {', '.join(roster)}", got=site)
        if site in decided:
            raise SiteMismatchError("release decisions", expected="one of each site", got=f"two of {site}")
        roster[site].verify(bytes.fromhex(decision.signature), decision.signed_bytes())
        if decision.model != digest:
            raise ModelMismatchError(f"model that {site} releases", expected=digest, got=decision.model)
        decided[site] = decision
    for site, other in decided.items():
        first = next(iter(decided.values()))
        if other.run != first.run:
            raise SessionMismatchError(f"run whose model {site} releases", expected=first.run, got=other.run)
        if other.purpose != first.purpose:
            raise PurposeMismatchError(
                f"what {site} releases the model for", expected=repr(first.purpose), got=repr(other.purpose)
            )
    missing = [site for site in roster if site not in decided]
    if missing:
        raise ReleaseIncompleteError("release decisions", expected=f"one of {', '.join(missing)} too", got="none")
