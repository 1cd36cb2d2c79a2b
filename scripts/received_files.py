"""Read the files that hospitals and coordinator send around: cards and agreements.

Trust: public; what is in them comes from outside and is checked.
"""

from __future__ import annotations

from pathlib import Path

from protocol.agreement import Agreement
from protocol.enrolment import EnrolmentCard
from protocol.errors import ConfigurationError, ProtocolError


def read_card(path: Path) -> EnrolmentCard:
    """Read a card that a hospital has sent.

    Raises:
        ConfigurationError: The file cannot be read, or is no card that its hospital signed.
    """
    try:
        return EnrolmentCard.from_bytes(_read(path))
    except ProtocolError as error:
        raise ConfigurationError(f"{path} is no hospital's card ({error}): ask for the file anew") from None


def read_agreement(path: Path) -> Agreement:
    """Read a consortium's agreement.

    Raises:
        ConfigurationError: The file cannot be read, or is none.
    """
    try:
        return Agreement.from_bytes(_read(path))
    except ProtocolError as error:
        raise ConfigurationError(f"{path} is no agreement of this release ({error}): ask for the file anew") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}; it cannot be read") from None
