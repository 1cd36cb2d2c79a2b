"""The options by which a client's commands are told where the prediction service is.

Trust: runs at the client.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from clients.prediction.service import PredictionService
    from clients.secrets.vault import Vault

ServiceOption = Annotated[str, typer.Option("--service", help="The prediction service's HOST:PORT.")]
CaOption = Annotated[
    Path | None,
    typer.Option(
        "--ca",
        help="The authority of the service's certificate, PEM; the machine's own ones if not given.",
        exists=True,
        dir_okay=False,
    ),
]


def connected(vault: Vault, service: str, ca: Path | None) -> PredictionService:
    """Return the service as the client that is enrolled in a vault, asking for a passphrase if its identity needs one.

    Raises:
        ConfigurationError: There is no identity, or the address or the file is none.
    """
    from clients.prediction.service import PredictionService  # noqa: PLC0415 - as in scripts.cli
    from scripts.site.passphrase import unlocked_identity  # noqa: PLC0415 - as in scripts.cli

    return PredictionService.from_vault(vault, unlocked_identity(vault), service, ca)
