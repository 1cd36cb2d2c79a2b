"""Encrypt records into queries, and read scores out of answers.

Trust: runs at the clinic, on patients' records.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt
import tenseal.sealapi as seal

from clients.prediction.keys import PredictionKey, PublicEncryptor
from protocol.errors import ValueRefusedError
from protocol.prediction.backend import prediction_backend
from protocol.prediction.description import ModelDescription
from protocol.prediction.layout import QueryLayout
from protocol.prediction.messages import Answer, Query, QueryHeader
from protocol.prediction.parameters import RECORD_RANGE
from protocol.prediction.wire import REQUEST_BYTES

Values = npt.NDArray[np.float64]

SCORE_DECIMALS: Final = 5
"""Of a logit."""


def encrypt_records(
    records: Values, description: ModelDescription, key: PredictionKey | PublicEncryptor, key_id: bytes
) -> Query:
    """Encrypt standardised records.

    Args:
        records: Shape (n, d), within +-RECORD_RANGE; n is at most what the parameters hold.
        description: Of the model.
        key: Its owner's, which makes queries of half the size, or its public half.
        key_id: Id of the public key.

    Raises:
        ValueRefusedError: A value is not finite, or out of range.
        LengthError: There are no patients, or too many for one query.
    """
    if not np.isfinite(records).all() or np.abs(records).max(initial=0.0) > RECORD_RANGE:
        raise ValueRefusedError(f"records: a standardised value is not within +-{RECORD_RANGE:.0f}")
    header = QueryHeader(
        model=description.digest,
        key=key_id,
        patients=len(records),
        request=os.urandom(REQUEST_BYTES),
        is_seeded=isinstance(key, PredictionKey),
    )
    plaintexts = _plaintexts(records, description)
    if isinstance(key, PredictionKey):
        first, seeds = zip(*map(key.encrypt, plaintexts), strict=True)
        return Query(header=header, polynomials=np.stack(first)[:, np.newaxis], seeds=seeds)
    return Query(header=header, polynomials=np.stack([key.encrypt(plaintext) for plaintext in plaintexts]))


def read_logits(answer: Answer, description: ModelDescription, key: PredictionKey) -> Values:
    """Decrypt scores, without the tensors that are personal.

    They are rounded: what lies below is noise, and whoever drew it, such as the service, would learn of the key from a
    score that was passed on with all its digits (Li and Micciancio, Eurocrypt 2021). Of an answer that was made up even
    the rounded scores tell the key: they are for whoever may have it.

    Args:
        answer: The service's, checked to be the one to the query.
        description: Of the model.
        key: The one that the query was encrypted under.

    Returns:
        Logits, shape (n,), to SCORE_DECIMALS. An answer under another key, or a made-up one, gives random numbers.
    """
    (polynomials,) = answer.polynomials
    if description.parameter_set.is_linear:
        scores = key.decrypt_coefficients(polynomials)
    else:
        scores = key.decrypt(polynomials).real
    return np.round(scores[: answer.query.patients], SCORE_DECIMALS)


def _plaintexts(records: Values, description: ModelDescription) -> Iterator[seal.Plaintext]:
    parameters = description.parameter_set
    backend, primes = prediction_backend(parameters), len(parameters.primes)
    layout = QueryLayout.of(parameters, inputs=description.inputs, patients=len(records))
    scale = float(1 << parameters.record_bits)
    if parameters.is_linear:
        for coefficients in layout.arrange(records * scale, parameters.ring_degree):
            yield backend.encode(coefficients, primes)
    else:
        for slots in layout.arrange(records * scale, parameters.ring_degree // 2):
            yield backend.encode_slots(slots.astype(np.complex128), primes)
