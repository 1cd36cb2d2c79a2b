"""Enrol a hospital: make its keys in its vault, and the public card that others get.

Trust: site only; the card is public.
"""

from __future__ import annotations

from typing import Final

from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
)

from clients.secrets.identity import Identity
from clients.secrets.identity_file import IDENTITY, write_identity
from clients.secrets.secret import SecretBytes
from clients.secrets.vault import Vault
from protocol.agreement import SiteId
from protocol.enrolment import EnrolmentCard, signed_bytes
from protocol.errors import ConfigurationError, ProtocolError

NODE_KEY: Final = "node.key"
CARD: Final = "card.json"


def enrol(vault: Vault, name: SiteId, passphrase: SecretBytes | None = None) -> EnrolmentCard:
    """Make a hospital's identity and its node's key, and return its public card, which the vault keeps too.

    Args:
        vault: The hospital's vault.
        name: Its name in rosters.
        passphrase: Encrypts the identity, if there is one.

    Raises:
        ConfigurationError: The vault has an identity, the name is not one, or the passphrase is too short.
    """
    with vault.locked():
        if vault.has(IDENTITY):
            raise ConfigurationError(
                f"{vault.directory} has an identity already, which is never overwritten: its card is "
                f"{vault.path(CARD)}; to enrol as another site, take another directory"
            )
        identity, node_key = Identity.generate(), generate_private_key(SECP384R1())
        card, node_line = identity.card(name), _public_line(node_key)
        enrolment = EnrolmentCard(
            card=card, node_key=node_line, signature=identity.sign(signed_bytes(card, node_line)).hex()
        )
        private = node_key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        vault.write_secret(NODE_KEY, SecretBytes(private))
        vault.write(CARD, enrolment.to_bytes())
        write_identity(vault, identity, passphrase)  # the last: a vault that has it is enrolled
    return enrolment


def read_card(vault: Vault) -> EnrolmentCard:
    """Read a vault's own public card.

    Raises:
        ConfigurationError: There is none, or it is damaged.
    """
    if not vault.has(CARD):
        raise ConfigurationError(f"{vault.directory} has no {CARD}: `cipherward site enrol` makes one")
    try:
        return EnrolmentCard.from_bytes(vault.read(CARD))
    except ProtocolError as error:
        raise ConfigurationError(f"{CARD} is damaged ({error}): restore it from the one that was sent") from None


def check_node_key(vault: Vault, enrolment: EnrolmentCard) -> None:
    """Check that a vault holds the private half of its card's node key.

    Raises:
        ConfigurationError: It is missing, readable by others, damaged, or another one.
    """
    private = vault.read_secret(NODE_KEY)
    try:
        node_key = load_ssh_private_key(private.reveal(), password=None)
    except ValueError:
        raise ConfigurationError(f"{NODE_KEY} is damaged: restore it from backup") from None
    if not isinstance(node_key, EllipticCurvePrivateKey) or _public_line(node_key) != enrolment.node_key:
        raise ConfigurationError(f"{NODE_KEY} is not the key of {CARD}: restore it from backup")


def _public_line(node_key: EllipticCurvePrivateKey) -> str:
    return node_key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
