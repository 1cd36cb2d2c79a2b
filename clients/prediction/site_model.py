"""Read a model that training has left in a site's vault.

Trust: site only.
"""

from __future__ import annotations

from clients.secrets.vault import Vault
from protocol.errors import ConfigurationError
from protocol.prediction.model_file import TrainedModel


def read_site_model(vault: Vault, which: str) -> TrainedModel:
    """Return a model of a vault.

    Args:
        vault: The site's vault.
        which: "last", "best" or "local".

    Raises:
        ConfigurationError: There is none, or its file is damaged.
    """
    from clients.run.results import model_path  # noqa: PLC0415 - loads torch, which a clinic without a model can do without

    if not vault.has(model_path(which)):
        raise ConfigurationError(f"{vault.directory} has no {model_path(which)}: no run has left a model there")
    return TrainedModel.from_bytes(vault.read(model_path(which)))
