"""What a site holds before any run: its identity, the agreement it pinned, and the consortium secret.

Trust: site only.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Final, Self

from clients.run.code import code_digest
from clients.secrets.enrolment import read_card
from clients.secrets.identity import Identity
from clients.secrets.identity_file import read_identity
from clients.secrets.secret import SecretBytes
from clients.secrets.vault import Vault
from protocol.agreement import Agreement, SiteCard, SiteId
from protocol.errors import ConfigurationError
from protocol.schedule import KEY_BYTES, authenticate

CONSORTIUM_SECRET: Final = "consortium.secret"  # noqa: S105 - a file name
AGREEMENT: Final = "agreement.json"
PIN: Final = "agreement.pin"
TABLE: Final = "data.csv"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A site's place in its consortium, without its secrets.

    Attributes:
        vault: The site's directory.
        agreement: The pinned agreement.
        site: Roster position.
    """

    vault: Vault
    agreement: Agreement
    site: int

    @property
    def name(self) -> str:
        """The site's name in the roster."""
        return self.agreement.roster[self.site].name

    @classmethod
    def read(cls, vault: Vault) -> Self:
        """Read a site's place, whatever code the agreement was made for; needs no passphrase.

        Raises:
            ConfigurationError: The agreement is not the pinned one, or the roster does not hold the site's card.
            MalformedError: The agreement's file is damaged.
        """
        agreement = pinned_agreement(vault)
        return cls(vault=vault, agreement=agreement, site=roster_position(agreement, read_card(vault).card))


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership(Place):
    """A site's place in its consortium, and the secrets that it takes part with.

    Attributes:
        identity: Private keys.
        consortium_secret: P.
    """

    identity: Identity
    consortium_secret: SecretBytes

    @classmethod
    def load(cls, vault: Vault, identity: Identity | None = None) -> Self:
        """Load and check a site's membership.

        Raises:
            ConfigurationError: The agreement was made for other code, or as `read`.
            MalformedError: The agreement's file is damaged.
        """
        member = cls.read(vault, identity)
        check_code(member.agreement)
        return member

    @classmethod
    def read(cls, vault: Vault, identity: Identity | None = None) -> Self:
        """Load a site's membership, whatever code it was made for: to look at it, or to end what was begun with it.

        Args:
            vault: The site's vault.
            identity: The vault's, if it was read already, which an encrypted one must have been.

        Raises:
            ConfigurationError: The agreement is not the pinned one, names another identity or commits to another
                consortium secret, or a secret is missing, damaged or encrypted.
            MalformedError: The agreement's file is damaged.
        """
        agreement = pinned_agreement(vault)
        identity = identity or read_identity(vault)
        consortium_secret = read_consortium_secret(vault, agreement)
        for site, card in enumerate(agreement.roster):
            if card == identity.card(SiteId(card.name)):
                return cls(
                    vault=vault,
                    agreement=agreement,
                    site=site,
                    identity=identity,
                    consortium_secret=consortium_secret,
                )
        raise ConfigurationError("the agreement's roster does not hold this site's public keys")


def check_pin(vault: Vault, *, agreement: Agreement, consortium_secret: SecretBytes, may_replace: bool = False) -> int:
    """Check that a site that has enrolled can pin an agreement, and return its roster position.

    Args:
        vault: The site's vault.
        agreement: What its people are to decide on.
        consortium_secret: P.
        may_replace: Whether it may take the place of another agreement.

    Raises:
        ConfigurationError: The roster does not hold the vault's card, the agreement is for other code or commits to
            another secret, or the vault has pinned another one.
    """
    site = roster_position(agreement, read_card(vault).card)
    check_code(agreement)
    check_consortium_secret(consortium_secret, agreement)
    if not may_replace:
        _check_unpinned(vault, agreement)
    return site


def pin(vault: Vault, *, agreement: Agreement, consortium_secret: SecretBytes, may_replace: bool = False) -> Place:
    """Pin an agreement in the vault of a site that has enrolled; needs no passphrase.

    Args and errors are those of `check_pin`.
    """
    with vault.locked():
        site = check_pin(vault, agreement=agreement, consortium_secret=consortium_secret, may_replace=may_replace)
        vault.write_secret(CONSORTIUM_SECRET, consortium_secret)
        vault.write(AGREEMENT, agreement.to_bytes())
        vault.write(PIN, agreement.digest.hex().encode() + b"\n")
    return Place(vault=vault, agreement=agreement, site=site)


def pinned_agreement(vault: Vault) -> Agreement:
    """Read the agreement that a site pinned.

    Raises:
        ConfigurationError: There is none, or it is another than the pinned one.
        MalformedError: Its file is damaged.
    """
    for name in (AGREEMENT, PIN):
        if not vault.has(name):
            raise ConfigurationError(
                f"the site's vault has no {name}: when the agreement has come, `cipherward agreement pin` puts it there"
            )
    agreement = Agreement.from_bytes(vault.read(AGREEMENT))
    pinned = vault.read(PIN).decode(errors="replace").strip()
    if not hmac.compare_digest(pinned.encode(), agreement.digest.hex().encode()):
        raise ConfigurationError(
            f"{AGREEMENT} is not the agreement that this site pinned ({pinned[:16]}...): compare the digests with "
            "the other sites before pinning a new one"
        )
    return agreement


def read_consortium_secret(vault: Vault, agreement: Agreement) -> SecretBytes:
    """Read P.

    Raises:
        ConfigurationError: It is missing, readable by others, or not the agreement's.
    """
    consortium_secret = vault.read_secret(CONSORTIUM_SECRET)
    check_consortium_secret(consortium_secret, agreement)
    return consortium_secret


def commitment(consortium_secret: SecretBytes) -> str:
    """Return what an agreement commits to P by, hex: no other P has it, and it says nothing about 32 uniform bytes.

    Raises:
        ConfigurationError: P has another length.
    """
    if len(consortium_secret.reveal()) != KEY_BYTES:
        raise ConfigurationError(f"{CONSORTIUM_SECRET} does not hold {KEY_BYTES} bytes")
    return authenticate(consortium_secret.reveal(), "consortium-secret").hex()


def check_consortium_secret(consortium_secret: SecretBytes, agreement: Agreement) -> None:
    """Check that P is the one that an agreement was made with.

    Raises:
        ConfigurationError: It is another, or of another length.
    """
    if not hmac.compare_digest(commitment(consortium_secret), agreement.secret_digest):
        raise ConfigurationError(
            f"{CONSORTIUM_SECRET} is not the one that the agreement was made with: ask the coordinator on the "
            "telephone which of the two is wrong"
        )


def check_code(agreement: Agreement) -> None:
    """Check that an agreement was made for the code that is installed here.

    Raises:
        ConfigurationError: It was made for other code.
    """
    if agreement.code_digest != code_digest():
        raise ConfigurationError(
            f"the agreement was made for code {agreement.code_digest[:16]}..., this site runs "
            f"{code_digest()[:16]}...; install the release that the consortium agreed on"
        )


def roster_position(agreement: Agreement, card: SiteCard) -> int:
    """Return the place of a card in the roster.

    Raises:
        ConfigurationError: It has none: another name, or other keys.
    """
    if card not in agreement.roster:
        raise ConfigurationError(
            f"the agreement's roster does not hold the card of this site, {card.name}: ask the coordinator for an "
            "agreement that was made with it"
        )
    return agreement.roster.index(card)


def _check_unpinned(vault: Vault, agreement: Agreement) -> None:
    if not vault.has(PIN):
        return
    pinned = vault.read(PIN).decode(errors="replace").strip()
    if pinned != agreement.digest.hex():
        raise ConfigurationError(
            f"this vault has pinned another agreement ({pinned[:16]}...): end its runs with `cipherward site forget`, "
            "then pin the new one with --replace"
        )
