"""The hospital's Flower ClientApp: wiring only.

Trust: site only. Flower hands the text of an exception to the provider, so none ever leaves `_answer`.
"""

from __future__ import annotations

import logging
import traceback
from contextlib import suppress
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

import conf
from clients.simulation import simulated_vault
from clients.site import REQUEST_PARTS, Site
from clients.vault import Vault
from conf.run_directory import run_directory
from protocol.envelope import Request, pack_envelope, pack_refusal, unpack_envelope
from protocol.errors import ConfigurationError, FederationError

app = ClientApp()

_log = logging.getLogger("flwr.cipherward.site")


def _answer(request: Request, message: Message, context: Context) -> RecordDict:
    vault = None
    try:
        experiment = conf.from_run_config(context.run_config)
        vault = _vault_of(context, experiment)
        site = Site.of(vault)
        _check_terms(site, experiment)
        parts = unpack_envelope(message.content, REQUEST_PARTS[request])
        is_closing = request is Request.CLOSE and not site.has_closed(parts["run"])
        answer = pack_envelope(site.handle(request, parts))
    except Exception as error:  # whatever it is, the provider must not learn it
        with suppress(Exception):  # a full disk is no reason to tell the provider anything
            _tell_own_people(vault, request, error)
        return pack_refusal()
    if is_closing:
        _write_report(site, parts["run"])
    return answer


def _write_report(site: Site, run: bytes) -> None:
    """Leave the site's people a page about the run; that it was closed does not hang on it."""
    try:
        from clients.report import write_site_report  # noqa: PLC0415 - loads a plotting library, once per run

        with site.membership.vault.locked():
            write_site_report(site.membership, site.learner(run), run.hex())
    except Exception as error:
        with suppress(Exception):
            _tell_own_people(site.membership.vault, "report", error)


def _check_terms(site: Site, experiment: conf.ExperimentConfig) -> None:
    if site.membership.agreement.terms != experiment.terms:
        raise ConfigurationError("the run's configuration is not what this site's agreement fixes")


def _vault_of(context: Context, experiment: conf.ExperimentConfig) -> Vault:
    """Return the vault of the site that this node is.

    A deployed node names its vault's directory in its own node config; a simulated one has only its number.
    """
    directory = context.node_config.get("vault")
    if directory is not None:
        return Vault(Path(str(directory)))
    return simulated_vault(run_directory(context.run_id), int(context.node_config["partition-id"]), experiment)


def _tell_own_people(vault: Vault | None, request: str, error: Exception) -> None:
    # the text of an error that was not raised on purpose may hold values: its place is enough to find it
    reason = str(error) if isinstance(error, FederationError) else "unexpected; see where"
    where = "" if isinstance(error, FederationError) else _place_of(error)
    _log.error("%s refused: %s: %s %s", request, type(error).__name__, reason, where)
    if vault is not None:
        vault.record("refused", request=str(request), error=type(error).__name__, reason=reason, where=where)


def _place_of(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))


def _register(request: Request) -> None:
    category, action = request.split(".")

    def handle(message: Message, context: Context) -> Message:
        return Message(_answer(request, message, context), reply_to=message)

    getattr(app, category)(action)(handle)


for _request in Request:
    _register(_request)
