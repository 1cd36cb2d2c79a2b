"""The command `cipherward service publish`: put a plain model into the prediction service.

Trust: runs at the provider.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from protocol.errors import ConfigurationError, ProtocolError
from scripts.provider.commands import DirectoryOption

if TYPE_CHECKING:
    from protocol.prediction.release import ReleaseDecision

# As in scripts.cli, commands import what they need when they run.
# ruff: noqa: PLC0415


def publish(
    model: Annotated[Path, typer.Argument(help="The model's file.", exists=True, dir_okay=False)],
    decisions: Annotated[
        list[Path] | None,
        typer.Argument(help="The hospitals' decisions, NAME.release.json of each.", exists=True, dir_okay=False),
    ] = None,
    *,
    name: Annotated[str, typer.Option(help="The model's name at the service: lower-case letters, digits, - and _.")],
    directory: DirectoryOption = Path("provider"),
    agreement: Annotated[
        Path | None, typer.Option(help="The consortium's agreement, whose hospitals have decided.", dir_okay=False)
    ] = None,
    own: Annotated[bool, typer.Option("--own", help="The model is the provider's own; nobody has to decide.")] = False,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace", help="Take the place of a plain model of that name, which stays until an instant before."
        ),
    ] = False,
) -> None:
    """Put a model into the service in plaintext: a consortium's with its hospitals' decisions, or your own.

    Every hospital of the agreement makes its decision with `cipherward site release-model`. Before anything is
    published, encrypted scores of known records are compared with plaintext ones.

    - `cipherward service publish model.safetensors *.release.json --name heart --agreement agreement.json`
    - `cipherward service publish model.safetensors --name risk --own`
    """
    from protocol.prediction.model_file import TrainedModel
    from scripts.prediction.known_answer import check_plain_model
    from scripts.provider.directory import ProviderDirectory
    from scripts.received_files import read_agreement
    from server.prediction.evaluation import prepare_plain_model
    from server.prediction.model_store import ModelStore
    from server.prediction.publication import publish_own, publish_released

    if own == (agreement is not None) or own == bool(decisions):
        raise ConfigurationError(
            "say whose model it is: --agreement and the hospitals' decisions for a consortium's, or --own for yours"
        )
    provider = ProviderDirectory(directory)
    provider.settings()
    store, data = ModelStore(provider.prediction.models), model.read_bytes()
    error = check_plain_model(prepare_plain_model(name, data), TrainedModel.from_bytes(data))
    if agreement is None:
        description = publish_own(store, name, data, may_replace=replace)
        by = "the provider's own"
    else:
        consortium = read_agreement(agreement)
        made = [_read_decision(path) for path in decisions or []]
        description = publish_released(store, name, data, agreement=consortium, decisions=made, may_replace=replace)
        by = f"released by {', '.join(card.name for card in consortium.roster)}, for: {made[0].purpose}"
    tolerance = description.parameter_set.tolerance
    typer.echo(f"""{name} is published, {by}
model   {description.model.kind}, {description.inputs} inputs; SHA-256 {description.weights}
digest  {description.digest.hex()}
check   encrypted scores of known records are at most {error:.1e} off; {tolerance:.0e} is promised""")


def _read_decision(path: Path) -> ReleaseDecision:
    from protocol.prediction.release import ReleaseDecision

    try:
        return ReleaseDecision.from_bytes(path.read_bytes())
    except ProtocolError as error:
        raise ConfigurationError(f"{path} is no hospital's decision ({error}): ask for the file anew") from None
