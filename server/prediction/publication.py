"""Put a plain model into the store: the consortium's, by its sites' decisions, or the provider's own.

Trust: runs at the provider, who can read every model that it publishes so. What its consortium has not released as it
is, for one purpose and by all its sites, is not published in the consortium's name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Final

from protocol.agreement import Agreement
from protocol.errors import ConfigurationError
from protocol.prediction.description import ModelDescription
from protocol.prediction.release import ReleaseDecision, check_release
from server.prediction.evaluation import PLAIN_FILE, prepare_plain_model
from server.prediction.model_store import ModelStore

DECISION_FILE: Final = "decision.json"
"""By whose decision a plain model is served: `origin`, and the agreement with its sites' decisions if it is theirs."""


def publish_released(
    store: ModelStore,
    name: str,
    model: bytes,
    *,
    agreement: Agreement,
    decisions: Sequence[ReleaseDecision],
    may_replace: bool = False,
) -> ModelDescription:
    """Publish a model that its consortium has released.

    Args:
        store: The service's.
        name: The model's name at the service.
        model: Its file.
        agreement: The agreement under which it was made.
        decisions: One of each site.
        may_replace: Whether it may take the place of a model of that name.

    Returns:
        What the service says of it.

    Raises:
        ProtocolError: As `check_release`: the consortium has not released this.
        ConfigurationError: The model cannot be evaluated under encryption, or the name is taken or none.
    """
    check_release(agreement, decisions, model)
    ordered = sorted(decisions, key=lambda decision: decision.site)
    record = {"origin": "consortium", "agreement": asdict(agreement), "decisions": list(map(asdict, ordered))}
    return _publish(store, name, model, record, may_replace=may_replace)


def publish_own(store: ModelStore, name: str, model: bytes, *, may_replace: bool = False) -> ModelDescription:
    """Publish a model of the provider's own; arguments, result and errors are those of `publish_released`."""
    return _publish(store, name, model, {"origin": "own"}, may_replace=may_replace)


def _publish(
    store: ModelStore, name: str, model: bytes, record: Mapping[str, object], *, may_replace: bool
) -> ModelDescription:
    description = prepare_plain_model(name, model)
    files = {PLAIN_FILE: model, DECISION_FILE: json.dumps(record, indent=2, sort_keys=True).encode() + b"\n"}
    try:
        store.publish(description, files, may_replace=may_replace)
    except FileExistsError:
        raise ConfigurationError(
            f"the service has a model {name}: publish under another name, or with --replace"
        ) from None
    except OSError as error:
        raise ConfigurationError(f"nothing is published, and nothing was replaced: {error.strerror}") from None
    return description
