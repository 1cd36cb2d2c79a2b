"""Run the prediction service: its parts on one directory, behind TLS, until asked to end.

Trust: runs at the provider, on the public network.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastapi import FastAPI

from protocol.agreement import SiteCard
from server.prediction import evaluation as homomorphic
from server.prediction.app import service_app
from server.prediction.client_registry import ClientRegistry
from server.prediction.files import remove_leftovers
from server.prediction.metrics import Metrics
from server.prediction.model_store import ModelStore
from server.prediction.parts import Evaluation, ServiceParts
from server.prediction.reception import Reception
from server.prediction.served_log import ServedLog
from server.prediction.service_directory import ServiceDirectory
from server.prediction.signatures import Signatures
from server.prediction.usage import Usage
from server.prediction.workers import Workers
from server.public_port import serve
from server.tls import LOOPBACK, TlsFiles


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """How to serve.

    Attributes:
        directory: The service's.
        tls: Certificate and key for the line.
        hosts: Names and addresses of this service; requests for others are refused. Loopback's are added.
        listen: Address to listen on.
        port: Port to listen on.
        workers: Processes that compute.
        metrics_port: Port of loopback for monitoring.
    """

    directory: ServiceDirectory
    tls: TlsFiles
    hosts: Sequence[str]
    listen: str
    port: int
    workers: int
    metrics_port: int


def service_parts(
    directory: ServiceDirectory,
    *,
    hosts: Sequence[str],
    started: float,
    workers: int,
    evaluation: Evaluation = homomorphic,
) -> tuple[ServiceParts, Signatures]:
    """Put a service's parts together; only one process may do so with a directory.

    Args:
        directory: Made if it is missing.
        hosts: Names and addresses of the service.
        started: When the service started; seconds since 1970.
        workers: Processes that compute.
        evaluation: What they compute.

    Returns:
        The parts, and what verifies signatures, from when on.
    """
    registry, store = ClientRegistry(directory.clients), ModelStore(directory.models)
    for place in (directory.path, directory.clients, directory.models):
        remove_leftovers(place)

    def card_of(name: str) -> SiteCard | None:
        client = registry.find(name)
        return None if client is None else client.enrolment.card

    signatures = Signatures(card_of, hosts=frozenset(host.lower() for host in (*hosts, *LOOPBACK)), started=started)
    processes = Workers(workers, module=evaluation.__name__)
    parts = ServiceParts(
        registry=registry,
        store=store,
        usage=Usage(directory.usage),
        reception=Reception(registry, signatures),
        workers=processes,
        evaluation=evaluation,
        log=ServedLog(directory.log),
        metrics=Metrics(waiting=lambda: processes.waiting, lost=lambda: processes.lost),
    )
    return parts, signatures


def ready_app(parts: ServiceParts, signatures: Signatures, tell_ready: Callable[[], None]) -> FastAPI:
    """Make an application that takes requests once workers are there and no older signature counts any more."""

    async def ready() -> None:
        await parts.workers.warm_up()
        await asyncio.sleep(max(0.0, signatures.earliest + 1 - time.time()))  # signatures state whole seconds
        tell_ready()

    return service_app(parts, ready=ready)


def run_service(settings: ServiceSettings, tell_ready: Callable[[], None]) -> None:
    """Serve until asked to end, by SIGINT or SIGTERM.

    Args:
        settings: How.
        tell_ready: Called when requests are taken.
    """
    parts, signatures = service_parts(
        settings.directory, hosts=settings.hosts, started=time.time(), workers=settings.workers
    )
    end_metrics = parts.metrics.listen(settings.metrics_port)
    try:
        serve(
            ready_app(parts, signatures, tell_ready),
            host=settings.listen,
            port=settings.port,
            certificate=settings.tls.certificate,
            key=settings.tls.key,
        )
    finally:
        end_metrics()
