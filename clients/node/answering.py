"""Answer one message of the provider's: with what the site says to it, or with the one refusal there is.

Trust: site only. Flower hands the text of an exception to the provider, so none ever leaves `answer`.
"""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from flwr.app import RecordDict

from clients.run.site import Site
from clients.secrets.vault import Vault
from protocol.envelope import REQUEST_PARTS, Request, pack_envelope, pack_refusal, unpack_envelope
from protocol.errors import FederationError

_log = logging.getLogger("flwr.cipherward.site")


def answer(request: Request, content: RecordDict, vault: Vault, load: Callable[[], Site]) -> RecordDict:
    """Answer a request; whatever goes wrong, the provider gets the same refusal, and the site's own people the reason.

    Args:
        request: What is asked.
        content: The message's content, as it came.
        vault: The vault of the site that is asked.
        load: Loads that site, or refuses to.
    """
    try:
        site = load()
        parts = unpack_envelope(content, REQUEST_PARTS[request])
        is_closing = request is Request.CLOSE and not site.has_closed(parts["run"])
        reply = pack_envelope(site.handle(request, parts))
    except Exception as error:  # whatever it is, the provider must not learn it
        tell_own_people(vault, request, error)
        return pack_refusal()
    if is_closing:
        _write_report(site, parts["run"])
    return reply


def tell_own_people(vault: Vault | None, doing: str, error: Exception) -> None:
    """Tell the site's people what was refused and why, in Flower's log and in the vault's."""
    # the text of an error that was not raised on purpose may hold values: its place is enough to find it
    reason = str(error) if isinstance(error, FederationError) else _kind_of(error)
    where = "" if isinstance(error, FederationError) else _place_of(error)
    with suppress(Exception):  # a full disk is no reason to tell the provider anything
        _log.error("%s refused: %s: %s %s", doing, type(error).__name__, reason, where)
        if vault is not None:
            vault.record("refused", request=str(doing), error=type(error).__name__, reason=reason, where=where)


def _write_report(site: Site, run: bytes) -> None:
    """Leave the site's people a page about the run; that it was closed does not hang on it."""
    try:
        from clients.reports.report import write_site_report  # noqa: PLC0415 - loads a plotting library, once per run

        with site.membership.vault.locked():
            write_site_report(site.membership, site.learner(run), run.hex())
    except Exception as error:
        tell_own_people(site.membership.vault, "report", error)


def _kind_of(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno:  # the system's own words for the number, without a path
        return os.strerror(error.errno)
    return "unexpected; see where"


def _place_of(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
