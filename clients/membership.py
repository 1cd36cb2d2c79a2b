"""What a site holds before any run: its identity, the agreement it pinned, and the consortium secret.

Trust: site only.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Final, Self

from clients.code import code_digest
from clients.identity import Identity
from clients.secret import SecretBytes
from clients.vault import Vault
from protocol.agreement import Agreement, SiteId
from protocol.errors import ConfigurationError
from protocol.schedule import KEY_BYTES

IDENTITY: Final = "identity.secret"
CONSORTIUM_SECRET: Final = "consortium.secret"  # noqa: S105 - a file name
AGREEMENT: Final = "agreement.json"
PIN: Final = "agreement.pin"
TABLE: Final = "data.csv"


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """A site's place in its consortium.

    Attributes:
        vault: The site's directory.
        agreement: The pinned agreement.
        site: Roster position.
        identity: Private keys.
        consortium_secret: P.
    """

    vault: Vault
    agreement: Agreement
    site: int
    identity: Identity
    consortium_secret: SecretBytes

    @property
    def name(self) -> str:
        """The site's name in the roster."""
        return self.agreement.roster[self.site].name

    @classmethod
    def load(cls, vault: Vault) -> Self:
        """Load and check a site's membership.

        Raises:
            ConfigurationError: The agreement is not the pinned one, names another identity, or was made for other
                code; or a secret is missing or damaged.
            MalformedError: The agreement's file is damaged.
        """
        agreement = Agreement.from_bytes(vault.read(AGREEMENT))
        pinned = vault.read(PIN).decode(errors="replace").strip()
        if not hmac.compare_digest(pinned.encode(), agreement.digest.hex().encode()):
            raise ConfigurationError(
                f"{AGREEMENT} is not the agreement that this site pinned ({pinned[:16]}...): compare the digests with "
                "the other sites before pinning a new one"
            )
        if agreement.code_digest != code_digest():
            raise ConfigurationError(
                f"the agreement was made for code {agreement.code_digest[:16]}..., this site runs "
                f"{code_digest()[:16]}...; install the release that the consortium agreed on"
            )
        identity = Identity.from_secret(vault.read_secret(IDENTITY))
        consortium_secret = vault.read_secret(CONSORTIUM_SECRET)
        if len(consortium_secret.reveal()) != KEY_BYTES:
            raise ConfigurationError(f"{CONSORTIUM_SECRET} does not hold {KEY_BYTES} bytes")
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

    @classmethod
    def pin(cls, vault: Vault, *, agreement: Agreement, identity: Identity, consortium_secret: SecretBytes) -> Self:
        """Write a membership into an empty vault and return it as loaded from there."""
        vault.write_secret(IDENTITY, identity.to_secret())
        vault.write_secret(CONSORTIUM_SECRET, consortium_secret)
        vault.write(AGREEMENT, agreement.to_bytes())
        vault.write(PIN, agreement.digest.hex().encode() + b"\n")
        return cls.load(vault)
