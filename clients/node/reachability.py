"""Ask the provider's public address whether it is there, and compare its clock with this machine's.

Trust: site only; asks for one public page, and tells the provider nothing.
"""

from __future__ import annotations

import ssl
import time
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Final

import httpx

from protocol.errors import ConfigurationError

MOST_SECONDS_AHEAD: Final = 4.0
"""Flower's node authentication refuses a site whose clock is 5 s ahead; an answer's date is good to 1 s."""

MOST_SECONDS_BEHIND: Final = 30.0
"""It refuses one that is 305 s behind; a clock that lost this much is not set by anything, and will lose the rest."""

_TIMEOUT_SECONDS: Final = 10.0


def check_provider(address: str, certificates: Path | None) -> str:
    """Return what the provider at HOST:PORT answered, and by how much the clocks differ.

    Args:
        address: Host and port.
        certificates: PEM file of the authority that signed the provider's certificate; None for the machine's own.

    Raises:
        ConfigurationError: It cannot be reached, is not the one that the authority vouches for, is not ready, or the
            clocks differ by more than Flower lets pass; says what to do.
    """
    context = _context(certificates)
    begin = time.time()
    try:
        answer = httpx.get(f"https://{address}/health", verify=context, timeout=_TIMEOUT_SECONDS)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ConfigurationError(_advice(address, error)) from None
    if answer.status_code != httpx.codes.OK:
        raise ConfigurationError(f"{address} answers /health with {answer.status_code}: is that the provider's gate?")
    ahead = _seconds_ahead(answer, (begin + time.time()) / 2)
    if not -MOST_SECONDS_BEHIND <= ahead <= MOST_SECONDS_AHEAD:
        raise ConfigurationError(
            f"this machine's clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the provider's, and "
            "Flower lets no site in whose clock is wrong: set it, best by NTP"
        )
    return f"{address} answers; the clocks differ by {abs(ahead):.0f} s"


def _context(certificates: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=certificates)
    except (OSError, ssl.SSLError):  # the latter is raised of a file that holds no certificate
        raise ConfigurationError(f"{certificates} is no file of certificates in PEM") from None


def _advice(address: str, error: Exception) -> str:
    reason = " ".join(str(error).split()) or type(error).__name__
    if "CERTIFICATE_VERIFY_FAILED" in reason:
        return (
            f"{address} shows a certificate that is not good here ({reason}): compare the CA file, the host's name and "
            "this machine's date with what the provider says"
        )
    return f"{address} does not answer ({reason}): ask the provider whether it is up, and your firewall's people"


def _seconds_ahead(answer: httpx.Response, now: float) -> float:
    """Return by how much this machine's clock is ahead of the answer's, which tells whole seconds."""
    try:
        told = parsedate_to_datetime(answer.headers["date"]).timestamp()
    except (KeyError, ValueError):
        raise ConfigurationError("the provider's answer has no date to compare the clock with") from None
    return now - (told + 0.5)
