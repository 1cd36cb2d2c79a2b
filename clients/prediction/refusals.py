"""Read what a prediction service answers: never more than expected, and of a refusal its title and cause alone.

Trust: runs at the client, on bytes from a service that may mean harm.
"""

from __future__ import annotations

import json
import re
import ssl
import time
from typing import Final

import httpx
from tenacity import RetryCallState

from protocol.errors import ServiceError

_LONGEST_WAIT_SECONDS: Final = 30.0  # a budget that is used up comes back the next day: nobody waits for that
_TITLE = re.compile(r"[ -~]{1,200}")
_CAUSE = re.compile(r"urn:cipherward:problem:([a-z-]{1,40})")
_RETRY_AFTER = re.compile(r"[0-9]{1,6}")


class AgainError(Exception):
    """What may go better at another try.

    Args:
        error: What to tell if it does not.
        seconds: How long the service said to wait.
        is_lost: Whether the service may have done what was asked, and its answer was lost.
    """

    def __init__(self, error: ServiceError, seconds: float | None = None, *, is_lost: bool = False) -> None:
        self.error = error
        self.seconds = seconds
        self.is_lost = is_lost
        super().__init__(str(error))


def seconds_to_wait(state: RetryCallState) -> float:
    """Return how long to wait before another try: as long as the service said, or longer each time."""
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, AgainError) and error.seconds is not None:
        return error.seconds
    return float(min(2 ** (state.attempt_number - 2), _LONGEST_WAIT_SECONDS))


def bounded(answer: httpx.Response, most: int, deadline: float) -> bytes:
    """Read an answer's body of `most` bytes at most, before a time of the monotonic clock."""
    parts, length = [], 0
    if answer.headers.get("content-encoding", "identity") != "identity":
        raise ServiceError("it sent a compressed answer, which it was asked not to do", status=answer.status_code)
    for part in answer.iter_raw():
        length += len(part)
        if length > most:
            raise ServiceError(f"its answer is longer than {most} bytes", status=answer.status_code)
        if time.monotonic() > deadline:
            raise ServiceError("its answer did not come to an end in time", status=answer.status_code)
        parts.append(part)
    return b"".join(parts)


def refusal(answer: httpx.Response, body: bytes) -> ServiceError | AgainError:
    """Return the error that stands for a refusal, whatever its body is."""
    status, title, cause = answer.status_code, "it refused, and gave no reason that can be shown", ""
    if answer.is_redirect:
        return ServiceError("it sends on to another address, which is not followed", status=status)
    try:
        problem = json.loads(body)
        if _TITLE.fullmatch(problem["title"]):
            title = problem["title"]
        found = _CAUSE.fullmatch(problem["type"])
        cause = found[1] if found else ""
    except (ValueError, TypeError, KeyError, RecursionError):
        pass  # the fixed text says enough
    error = ServiceError(title, status=status, cause=cause)
    if cause == "bad-signature":
        error.add_note("Its provider has not admitted this vault's card.json, or no more: `cipherward service admit`.")
    if status not in (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE):
        return error
    after = answer.headers.get("retry-after", "")
    seconds = float(after) if _RETRY_AFTER.fullmatch(after) else None
    return error if seconds is not None and seconds > _LONGEST_WAIT_SECONDS else AgainError(error, seconds)


def certificate_error(error: BaseException | None) -> str:
    """Return why a certificate was refused, empty if it was not that."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return error.verify_message
        error = error.__cause__ or error.__context__
    return ""
