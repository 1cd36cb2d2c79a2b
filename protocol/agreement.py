"""The agreement: what every site pins before it takes part, and what every signature and key is bound to.

Trust: public. The consortium secret P, which the sites also share, is never in it; a commitment to P is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from operator import attrgetter
from typing import Final, NewType

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import TypeAdapter, ValidationError

from protocol.errors import CohortError, ConfigurationError, LengthError, MalformedError, SignatureError
from protocol.packing import PackingPlan, RoundKind, packing_plan
from protocol.parameters import MAX_SITES, CkksParameters, advise
from protocol.schedule import DIGEST_BYTES, digest
from protocol.terms import Terms

SiteId = NewType("SiteId", str)
"""A site's name in the roster."""

Cohort = tuple[int, ...]
"""Roster positions of the sites in one sum, ascending."""

FIRST_EPOCH: Final = 1
"""Key epoch that a run opens with."""

MAX_AGREEMENT_BYTES: Final = 1 << 20
_signing_key, _exchange_key = attrgetter("signing_key"), attrgetter("exchange_key")
_PUBLIC_KEY_BYTES: Final = 32
_HEX_DIGITS: Final = frozenset("0123456789abcdef")
_NAME: Final = re.compile(r"[a-z0-9-]{1,64}")  # a file name, and in one case, because some file systems know only one


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteCard:
    """A site's public identity.

    Attributes:
        name: Lower-case letters, digits and hyphens; unique in the roster.
        signing_key: Ed25519 public key, hex.
        exchange_key: X25519 public key, hex.
    """

    name: str
    signing_key: str
    exchange_key: str

    def __post_init__(self) -> None:
        if not is_site_name(self.name):
            raise ConfigurationError("a site's name needs 1..64 lower-case letters, digits or hyphens")
        for key in (self.signing_key, self.exchange_key):
            if len(key) != 2 * _PUBLIC_KEY_BYTES or set(key) - _HEX_DIGITS:
                raise ConfigurationError(f"site {self.name}: a public key is not 64 lower-case hex digits")

    def verify(self, signature: bytes, message: bytes) -> None:
        """Check the site's signature.

        Raises:
            SignatureError: Names the site.
        """
        try:
            Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.signing_key)).verify(signature, message)
        except (InvalidSignature, ValueError):
            raise SignatureError("signature", expected=f"one by {self.name}", got="another") from None


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Roster, terms and code that all sites fixed. Two agreements are the same if their digests are.

    Attributes:
        roster: Cards of all sites, by ascending name.
        terms: Data, model, training, precision, cohort rules.
        code_digest: SHA-256 over the code that a site runs, hex.
        secret_digest: What commits to the consortium secret and says nothing about it, hex.
        start: What tells the sites, and nobody else, which model the run begins from: an HMAC under the consortium
            secret, hex. Empty for the public initial model.
    """

    roster: tuple[SiteCard, ...]
    terms: Terms
    code_digest: str
    secret_digest: str
    start: str = ""

    def __post_init__(self) -> None:
        names = [card.name for card in self.roster]
        if names != sorted(set(names)):
            raise ConfigurationError("the roster is not in order of name, or names a site twice")
        if any(len({key(card) for card in self.roster}) != len(names) for key in (_signing_key, _exchange_key)):
            raise ConfigurationError("two sites of the roster share a key")
        if not self.terms.cohort.smallest_cohort <= len(names) <= MAX_SITES:
            raise ConfigurationError(
                f"the roster has {len(names)} sites; the agreement allows {self.terms.cohort.smallest_cohort}.."
                f"{MAX_SITES}"
            )
        for name in ("code_digest", "secret_digest"):
            if not _is_hex_digest(getattr(self, name)):
                raise ConfigurationError(f"the agreement's {name} is not 64 lower-case hex digits")
        if self.start and not _is_hex_digest(self.start):
            raise ConfigurationError("the agreement's start is not 64 lower-case hex digits, nor empty")

    @cached_property
    def digest(self) -> bytes:
        """A: the 32 bytes that go into every signature and key derivation."""
        return digest("agreement", self.to_bytes())

    @cached_property
    def parameters(self) -> CkksParameters:
        """The CKKS parameters that the advisor derives from the terms."""
        values = max(self._values(kind) for kind in RoundKind)
        return self._advised(values)

    def plan(self, kind: RoundKind) -> PackingPlan:
        """Return the packing plan of a kind of round."""
        return self._plans[kind]

    @cached_property
    def _plans(self) -> dict[RoundKind, PackingPlan]:
        return {kind: packing_plan(kind, self.terms, self.parameters) for kind in RoundKind}

    def round_kind(self, round_number: int) -> RoundKind:
        """Return what a round sums: statistics first, then training, then one evaluation.

        Raises:
            MalformedError: The run has no such round.
        """
        if not 0 <= round_number <= self.last_round:
            raise MalformedError("round", expected=f"0..{self.last_round}", got=round_number)
        if round_number == 0:
            return RoundKind.STATISTICS
        return RoundKind.EVALUATE if round_number == self.last_round else RoundKind.TRAIN

    @property
    def last_round(self) -> int:
        """Number of the evaluation round, which ends the run."""
        return self.terms.training.rounds + 1

    def epoch_of(self, round_number: int) -> int:
        """Return the key epoch of a round, from 1; what comes after the last round belongs to its epoch.

        Raises:
            MalformedError: The run has no such round.
        """
        self.round_kind(min(round_number, self.last_round))
        every = self.terms.crypto.epoch_rounds
        return FIRST_EPOCH + (min(round_number, self.last_round) // every if every else 0)

    def position(self, name: str) -> int:
        """Return a site's place in the roster.

        Raises:
            ConfigurationError: It has none.
        """
        for index, card in enumerate(self.roster):
            if card.name == name:
                return index
        raise ConfigurationError(f"site {name!r} is not in the agreement's roster")

    def check_cohort(self, cohort: Sequence[int], *, members: Sequence[int] | None = None) -> None:
        """Check that a cohort may be summed.

        Args:
            cohort: Roster positions.
            members: The only sites allowed, if restricted.

        Raises:
            CohortError: It is too small, unordered, or reaches outside.
        """
        if list(cohort) != sorted(set(cohort)):
            raise CohortError("cohort order", expected="ascending, each site once", got=tuple(cohort))
        allowed = range(len(self.roster)) if members is None else members
        strangers = [index for index in cohort if index not in allowed]
        if strangers:
            raise CohortError("cohort", expected=f"among {tuple(allowed)}", got=tuple(strangers))
        smallest = self.terms.cohort.smallest_cohort
        if len(cohort) < smallest:
            raise CohortError("cohort size", expected=f"at least {smallest}", got=len(cohort))

    def is_seeded(self, sites: int) -> bool:
        """Return whether the sum of so many sites goes down with their seeds, else with its second polynomials."""
        return sites <= self.terms.crypto.largest_seeded_cohort

    def sum_shape(self, kind: RoundKind, sites: int) -> tuple[int, int]:
        """Return the shape of a sum's residues, which is also what a tag covers.

        (ciphertexts, N) for first polynomials alone, (2 ciphertexts, N) with the second ones below them.
        """
        rows, columns = self.plan(kind).shape
        return (rows if self.is_seeded(sites) else 2 * rows), columns

    def to_bytes(self) -> bytes:
        """Encode as canonical JSON; it says where the run begins only if that is not the public initial model."""
        content = asdict(self)
        if not self.start:
            del content["start"]
        return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Agreement:
        """Parse and check an agreement.

        Raises:
            LengthError: It is larger than any agreement.
            MalformedError: It is not the canonical encoding of a valid agreement.
        """
        if len(data) > MAX_AGREEMENT_BYTES:
            raise LengthError("agreement bytes", expected=f"at most {MAX_AGREEMENT_BYTES}", got=len(data))
        return _parse(data)

    def _values(self, kind: RoundKind) -> int:
        # digit widths depend on the modulus, which depends on the wanted bits only; any value count tells it
        return packing_plan(kind, self.terms, self._advised(1)).values

    def _advised(self, values: int) -> CkksParameters:
        crypto = self.terms.crypto
        return advise(
            sites=len(self.roster),
            value_bits=crypto.value_bits,
            values=values,
            security_bits=crypto.security_bits,
        ).parameters


def is_site_name(text: str) -> bool:
    """Return whether a text can be a site's name: 1..64 lower-case letters, digits or hyphens, not hyphens alone."""
    return _NAME.fullmatch(text) is not None and text.strip("-") != ""


def _is_hex_digest(text: str) -> bool:
    return len(text) == 2 * DIGEST_BYTES and not set(text) - _HEX_DIGITS


_PARSER = TypeAdapter(Agreement)


@lru_cache(maxsize=4)
def _parse(data: bytes) -> Agreement:
    """Parse once per process what every message comes back to; equal bytes are one agreement."""
    try:
        agreement = _PARSER.validate_json(data)
    except (ValidationError, ConfigurationError) as error:
        raise MalformedError(f"agreement ({type(error).__name__})") from None
    if agreement.to_bytes() != data:
        raise MalformedError("agreement", expected="canonical JSON without unknown keys", got="another encoding")
    return agreement
