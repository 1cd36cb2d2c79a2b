"""What the reader of scores adds to them, because the service does not have it.

A model with a personal intercept leaves it at its site; of an encrypted model the last bias stays with its owner.

Trust: site only.
"""

from __future__ import annotations

import math

from clients.prediction.published import Published
from clients.prediction.site_model import read_site_model
from clients.secrets.vault import Vault
from protocol.errors import ConfigurationError
from protocol.prediction.description import ModelDescription


def reader_intercept(description: ModelDescription, vault: Vault, given: float | None) -> float:
    """Return what is added to each decrypted score.

    Args:
        description: Of the model.
        vault: The reader's vault.
        given: By the reader; for a model whose intercept is personal, in a clinic that has no such model.

    Raises:
        ConfigurationError: It is needed and not there, or given and not needed; says what to do.
    """
    if given is not None and (description.is_encrypted or not description.model.personal or not math.isfinite(given)):
        raise ConfigurationError(
            f"the model {description.name} takes no intercept of the reader's, or it is not a number: leave it out"
        )
    if description.is_encrypted:
        return Published.read(vault, description.digest).bias
    if not description.model.personal:
        return 0.0
    return _personal_intercept(description, vault) if given is None else given


def _personal_intercept(description: ModelDescription, vault: Vault) -> float:
    advice = (
        "give one (intercept= or --intercept), such as the logit of the outcome's share among your own patients whose "
        "inputs are average"
    )
    try:
        model = read_site_model(vault, "last")
    except ConfigurationError as error:
        raise ConfigurationError(
            f"each site has its own intercept of the model {description.name}, this one has none ({error}): {advice}"
        ) from None
    described = model.describe(description.name, weights=description.weights)
    if described != description or not model.is_personal:
        raise ConfigurationError(
            f"the model in {vault.directory} is not the one that the service calls {description.name}, and its "
            f"intercept does not fit: take part in that model's run, or {advice}"
        )
    return float(model.tensors["output.bias"][0])
