"""Stands where the homomorphic evaluation stands, in workers as well; does what the end of a query's bytes says.

Trust: tests only.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from pathlib import Path

from protocol.errors import MalformedError
from protocol.prediction.messages import PublicKey
from protocol.prediction.publication import Publication

CANARY = "canary-4711"
"""In everything that goes wrong here; nobody may come to see it."""

DIE, SLEEP, FAIL, REFUSE, TELL = b"-die", b"-sleep", b"-fail", b"-refuse", b"-pid"


def answer_query(*, model: Path, key: Path, query: bytes) -> bytes:
    _do_as_told(query)
    if query.endswith(TELL):
        return str(os.getpid()).encode()
    return answer_to(model.name, key.read_bytes(), query)


def check_public_key(data: bytes) -> None:
    PublicKey.parameters_of(data)
    _do_as_told(data)


def read_publication(data: bytes) -> Publication:
    _do_as_told(data)
    return Publication.from_bytes(data)


def answer_to(model: str, key: bytes, query: bytes) -> bytes:
    return hashlib.sha512(b"|".join((model.encode(), key, query))).digest()


def _do_as_told(data: bytes) -> None:
    if data.endswith(DIE):
        os.kill(os.getpid(), signal.SIGKILL)
    if data.endswith(SLEEP):
        time.sleep(60)
    if data.endswith(FAIL):
        raise RuntimeError(CANARY)
    if data.endswith(REFUSE):
        raise MalformedError("query", expected=CANARY, got=CANARY)
