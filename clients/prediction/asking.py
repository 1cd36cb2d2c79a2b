"""Ask a service for many patients' scores: as many queries as it takes, and all answers before any is read.

Nothing is decrypted here, and what is sent does not depend on what comes back: whoever made answers up would otherwise
learn from what the client does next.

Trust: runs at whoever encrypts: a key's owner, or a device that has the public key alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from clients.prediction.keys import PredictionKey, PublicEncryptor
from clients.prediction.records import Values, encrypt_records
from clients.prediction.service import PredictionService
from protocol.prediction.description import ModelDescription
from protocol.prediction.messages import Answer, QueryHeader, query_bytes

MOST_QUERY_BYTES: Final = 1_000_000
"""A query is cut so that it stays below this, where fewer patients make it smaller."""

_IN_FLIGHT: Final = 3

Told = Callable[[int, int], None]
"""Called with the patients whose answers have come, and with all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A query that was answered.

    Attributes:
        query: Its header.
        answer: The answer's bytes, checked to be one to this query.
    """

    query: QueryHeader
    answer: bytes


def patients_per_query(description: ModelDescription, *, is_seeded: bool) -> int:
    """Return how many patients go into one query, at least 1.

    Args:
        description: Of the model.
        is_seeded: Whether the key's owner encrypts.
    """
    patients = description.parameter_set.patients
    if not description.parameter_set.is_linear:
        return patients  # each query has all slots, however few are used
    while patients > 1 and query_bytes(description, patients=patients, is_seeded=is_seeded) > MOST_QUERY_BYTES:
        patients //= 2
    return patients


def ask(
    service: PredictionService,
    description: ModelDescription,
    batches: Sequence[Values],
    key: PredictionKey | PublicEncryptor,
    key_id: bytes,
    *,
    told: Told | None = None,
) -> list[Exchange]:
    """Have batches of standardised records scored.

    Args:
        service: The service.
        description: Of the model.
        batches: Each of shape (n, d), n at most `patients_per_query`.
        key: What they are encrypted under.
        key_id: Id of its public key.
        told: Gets to know how it goes on.

    Returns:
        In the batches' order.

    Raises:
        ServiceError: The service refused a query, or cannot be reached.
        ProtocolError: What came is no answer to what was asked.
    """
    answered, patients = 0, sum(map(len, batches))
    exchanges = []
    for exchange in _exchanges(service, description, batches, key, key_id):
        Answer.from_bytes(exchange.answer, description, exchange.query)
        exchanges.append(exchange)
        answered += exchange.query.patients
        if told is not None:
            told(answered, patients)
    return exchanges


def _exchanges(
    service: PredictionService,
    description: ModelDescription,
    batches: Sequence[Values],
    key: PredictionKey | PublicEncryptor,
    key_id: bytes,
) -> Iterator[Exchange]:
    """Encrypt in this thread, because SEAL's objects are not for several, and wait for answers in others."""
    waiting: deque[tuple[QueryHeader, Future[bytes]]] = deque()
    pool = ThreadPoolExecutor(_IN_FLIGHT)
    try:
        for records in batches:
            query = encrypt_records(records, description, key, key_id)
            if len(waiting) == _IN_FLIGHT:
                yield _finished(*waiting.popleft())
            sent = pool.submit(service.predict, description.name, query.to_bytes(description))
            waiting.append((query.header, sent))
        while waiting:
            yield _finished(*waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _finished(query: QueryHeader, sent: Future[bytes]) -> Exchange:
    return Exchange(query=query, answer=sent.result())
