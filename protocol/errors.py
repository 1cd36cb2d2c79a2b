"""Every error that Cipherward raises on purpose.

Trust: raised on both sides, but shown to one only: what a peer gets to see of any refusal is `PUBLIC_REFUSAL`, because
an answer that depends on *why* something was refused is an oracle. The details go to the local log. No error holds a
value, a key or a record; `expected` and `got` name public fields.

FederationError
├── ConfigurationError          the operator's: refuse to start
│   ├── ParameterError          CKKS parameters that break a limit
│   ├── BackendError            the installed TenSEAL is not the one this code was measured with
│   └── DataError               a site's table, with row and column
├── ValueRefusedError           a value that cannot be put on the grid (NaN, infinity, out of range)
├── ProtocolError               a peer's: drop that message
│   ├── MalformedError          bytes that are not the message they claim to be
│   │   ├── LengthError
│   │   └── ResidueRangeError
│   ├── ChecksumError           the bytes changed on the way
│   ├── SignatureError
│   ├── AgreementMismatchError, SessionMismatchError, EpochMismatchError, RoundMismatchError, RoundKindMismatchError,
│   │   CohortMismatchError, StateMismatchError, ParametersMismatchError, SiteMismatchError
│   ├── DuplicateUpdateError    a second update of one site for one sum
│   ├── CohortError             a cohort that no honest provider would name
│   │   └── CohortIncompleteError
│   ├── SecondUploadError       one state, two different uploads: refused for ever
│   ├── SealError               a sealed secret that does not open
│   ├── TagError                an aggregate that is not the sum of what the cohort signed
│   ├── ReleaseError            a model that its sites have not all decided to hand out, as it is and for one purpose
│   │   ├── ReleaseIncompleteError
│   │   ├── ModelMismatchError
│   │   └── PurposeMismatchError
│   ├── ResidualError           a verified aggregate whose noise is out of bounds
│   ├── AnswerRefusedError      encrypted scores that are wrong for patients whose scores are known
│   └── PeerRefusedError        the other side refused, and does not say why
├── ServiceError                the prediction service refused, or could not be reached
├── RunFailedError              a run ended without a result
│   └── RunPausedError          an upload is missing; the run waits for people
└── SecretMaterialError         a secret where none may be: stop
"""

from __future__ import annotations

PUBLIC_REFUSAL = "refused"
"""All that a peer is ever told about a refusal."""


class FederationError(Exception):
    """Base of all errors raised on purpose."""


class ConfigurationError(FederationError):
    """The operator's configuration cannot work; nothing was started."""


class ParameterError(ConfigurationError):
    """No CKKS parameters satisfy the request; the text says which limit broke."""


class BackendError(ConfigurationError):
    """The installed TenSEAL/SEAL does not write what this code was built for."""


class DataError(ConfigurationError):
    """A table that does not follow its schema; names file, row and column, never a cell's value."""


class ValueRefusedError(FederationError):
    """A value that cannot be placed on the integer grid, named by its tensor."""


class SecretMaterialError(FederationError):
    """Secret material reached a place where none may be."""


class ServiceError(FederationError):
    """The prediction service refused a request, or could not be reached.

    Args:
        title: What it said, or a text of our own.
        status: Of HTTP; 0 if there was no answer.
        cause: The last part of the problem's type, such as "unknown-key"; empty if it gave none.
    """

    def __init__(self, title: str, *, status: int = 0, cause: str = "") -> None:
        self.title = title
        self.status = status
        self.cause = cause
        super().__init__(f"the prediction service: {title}" + (f" ({status})" if status else ""))


class RunFailedError(FederationError):
    """A run ended without its result; says why."""


class RunPausedError(RunFailedError):
    """An upload did not come in time; the run is kept as it is and can be resumed by people."""


class ProtocolError(FederationError):
    """A peer's message was refused; local state is unchanged.

    Args:
        what: Which check failed.
        expected: The public value that would have passed.
        got: The public value that came.
    """

    def __init__(self, what: str, *, expected: object = None, got: object = None) -> None:
        self.what = what
        self.expected = expected
        self.got = got
        detail = "" if expected is None and got is None else f": expected {expected}, got {got}"
        super().__init__(what + detail)


class MalformedError(ProtocolError):
    """Bytes that are not the message they claim to be."""


class LengthError(MalformedError):
    """A message of another length than its terms fix."""


class ResidueRangeError(MalformedError):
    """A residue of q or more."""


class ChecksumError(ProtocolError):
    """The body is not the one that was signed."""


class SignatureError(ProtocolError):
    """A signature that the pinned key does not verify."""


class AgreementMismatchError(ProtocolError):
    """Made under another agreement."""


class SessionMismatchError(ProtocolError):
    """Made in another run or with other run keys."""


class EpochMismatchError(ProtocolError):
    """Made in another key epoch."""


class RoundMismatchError(ProtocolError):
    """Made for another round."""


class RoundKindMismatchError(ProtocolError):
    """Made for another kind of round."""


class CohortMismatchError(ProtocolError):
    """Made for another cohort."""


class StateMismatchError(ProtocolError):
    """Made in another state."""


class ParametersMismatchError(ProtocolError):
    """Made with other CKKS parameters or sizes."""


class SiteMismatchError(ProtocolError):
    """Made by another site than the one expected, or by one outside the cohort."""


class DuplicateUpdateError(ProtocolError):
    """A site's second update for one sum."""


class CohortError(ProtocolError):
    """A cohort that the agreement forbids."""


class CohortIncompleteError(CohortError):
    """A sum that is closed before its whole cohort was added: the masks would not cancel."""


class SecondUploadError(ProtocolError):
    """A second, different upload was asked for one state; never granted."""


class SealError(ProtocolError):
    """A sealed secret that does not open with the keys of this run."""


class TagError(ProtocolError):
    """An aggregate that is not the sum of what its cohort tagged."""


class ReleaseError(ProtocolError):
    """A model without its sites' decision to hand it out."""


class ReleaseIncompleteError(ReleaseError):
    """A site has not decided."""


class ModelMismatchError(ReleaseError):
    """A decision about another model's file."""


class PurposeMismatchError(ReleaseError):
    """Sites have decided for different purposes."""


class ResidualError(ProtocolError):
    """A verified aggregate whose decryption noise exceeds what honest ciphertexts can carry."""


class AnswerRefusedError(ProtocolError):
    """An answer that gives patients whose scores are known other scores."""


class PeerRefusedError(ProtocolError):
    """The other side refused a message; why is in its own log."""
