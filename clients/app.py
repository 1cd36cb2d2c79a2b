"""The Flower ClientApp of a simulated hospital: wiring only.

A deployed hospital answers the same requests by `clients.node.message_process`, without running a bundle's code.

Trust: simulation only.
"""

from __future__ import annotations

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

import conf
from clients.node.answering import answer, tell_own_people
from clients.run.site import Site
from clients.secrets.vault import Vault
from clients.simulation import simulated_vault
from conf.run_directory import run_directory
from protocol.envelope import Request, pack_refusal
from protocol.errors import ConfigurationError

app = ClientApp()


def _answer(request: Request, message: Message, context: Context) -> RecordDict:
    try:
        experiment = conf.from_run_config(context.run_config)
        directory = run_directory(context.run_id)
        vault = simulated_vault(directory, int(context.node_config["partition-id"]), experiment)
    except Exception as error:
        tell_own_people(None, request, error)
        return pack_refusal()
    return answer(request, message.content, vault, lambda: _site_of(vault, experiment))


def _site_of(vault: Vault, experiment: conf.ExperimentConfig) -> Site:
    site = Site.of(vault)
    if site.membership.agreement.terms != experiment.terms:
        raise ConfigurationError("the run's configuration is not what this site's agreement fixes")
    return site


def _register(request: Request) -> None:
    category, action = request.split(".")

    def handle(message: Message, context: Context) -> Message:
        return Message(_answer(request, message, context), reply_to=message)

    getattr(app, category)(action)(handle)


for _request in Request:
    _register(_request)
