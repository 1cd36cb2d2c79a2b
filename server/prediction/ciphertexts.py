"""Load the ciphertexts of a checked message, one at a time.

Trust: runs at the provider.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from protocol.prediction.backend import PredictionBackend
from protocol.prediction.messages import EncryptedModel, Query

if TYPE_CHECKING:
    from protocol.prediction.backend import Ciphertext

WORD_BYTES: Final = 8
"""Of a residue in memory."""


def load_ciphertext(backend: PredictionBackend, message: Query | EncryptedModel, index: int) -> Ciphertext:
    """Return one ciphertext of a message."""
    if message.seeds:
        return backend.load_seeded(message.polynomials[index, 0], message.seeds[index])
    return backend.load(message.polynomials[index])


def load_ciphertexts(backend: PredictionBackend, message: Query) -> Iterator[Ciphertext]:
    """Yield all ciphertexts of a query."""
    for index in range(len(message.polynomials)):
        yield load_ciphertext(backend, message, index)
