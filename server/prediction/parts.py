"""What a prediction service is made of, for whoever answers with it.

Trust: runs at the provider.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from protocol.prediction.publication import Publication
from server.prediction.client_registry import ClientRegistry
from server.prediction.metrics import Metrics
from server.prediction.model_store import ModelStore
from server.prediction.reception import Reception
from server.prediction.served_log import ServedLog
from server.prediction.usage import Usage
from server.prediction.workers import Workers


class Evaluation(Protocol):
    """What workers do: module-level functions, because they travel by name."""

    @property
    def __name__(self) -> str:
        """The module."""

    @property
    def answer_query(self) -> Callable[..., bytes]:
        """Answer a query, given the directory of its model, the file of its public key, and its bytes."""

    @property
    def check_public_key(self) -> Callable[[bytes], None]:
        """Check a client's public key."""

    @property
    def read_publication(self) -> Callable[[bytes], Publication]:
        """Read and check a client's encrypted model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceParts:
    """What a service is made of.

    Attributes:
        registry: Who may use it.
        store: Its models.
        usage: Counts patients.
        reception: Lets requests in.
        workers: Compute.
        evaluation: What they compute.
        log: Gets a line for each request.
        metrics: Count each request.
    """

    registry: ClientRegistry
    store: ModelStore
    usage: Usage
    reception: Reception
    workers: Workers
    evaluation: Evaluation
    log: ServedLog
    metrics: Metrics
