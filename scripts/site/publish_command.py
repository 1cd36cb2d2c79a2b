"""The commands `cipherward site publish-model` and `withdraw-model`: a hospital's own model, encrypted, at a service.

Trust: runs at the hospital, where the model is in plaintext; what leaves is encrypted under the hospital's key.
"""

from __future__ import annotations

from typing import Annotated

import typer

from protocol.checks import check_choice
from scripts.prediction.service_options import CaOption, ServiceOption, connected
from scripts.site.vault_option import VaultOption, opened_vault

# As in scripts.cli, commands import what they need when they run.
# ruff: noqa: PLC0415

NameOption = Annotated[str, typer.Option("--name", help="The model's name at the service.")]


def publish_model(
    *,
    name: NameOption,
    service: ServiceOption,
    vault: VaultOption,
    ca: CaOption = None,
    model: Annotated[str, typer.Option(help="Which model of the vault: last, best or local.")] = "last",
    allowed: Annotated[
        list[str] | None, typer.Option("--for", help="A client, such as a device, that may use it; may be repeated.")
    ] = None,
) -> None:
    """Publish this hospital's model, encrypted under its current prediction key, for its own devices.

    The service sees neither the weights nor the records that devices send, and only this vault reads the scores. Before
    anything leaves, the encrypted model is tried on records whose scores are known. Its means and deviations are public
    to whoever may use it.

    - `cipherward keys create --vault /srv/cipherward`
    - `cipherward site publish-model --name heart --for ward-3 --service ps.example.org:8443 --ca ca.crt --vault
      /srv/cipherward`
    - `cipherward keys export --output cleveland.cwk --vault /srv/cipherward`
    """
    from clients.prediction import publication
    from clients.prediction.site_model import read_site_model
    from clients.secrets.enrolment import read_card
    from scripts.prediction.known_answer import check_encrypted_model

    check_choice("--model", model, ("last", "best", "local"))
    opened = opened_vault(vault)
    trained, owner = read_site_model(opened, model), read_card(opened).card.name
    prepared = publication.prepare_model(trained, name, owner=owner, vault=opened)
    error = check_encrypted_model(prepared.description, trained, prepared.weights, prepared.key, prepared.public_key)
    with connected(opened, service, ca) as connection:
        publication.publish_model(prepared, connection, opened, allowed or [])
    tolerance = prepared.description.parameter_set.tolerance
    typer.echo(f"""{name} is published, encrypted
largest error of a logit  {error:.1e} on known records; at most {tolerance:.0e} is promised
public key                {prepared.description.key[:16]}...
may use it                {", ".join([owner, *(allowed or [])])}

Next, for the devices, each of which is also a client of the service:
cipherward keys export --parameters {prepared.description.parameters} --output {name}.cwk --vault {opened.directory}""")


def withdraw_model(*, name: NameOption, service: ServiceOption, vault: VaultOption, ca: CaOption = None) -> None:
    """Delete a model of this hospital's own from the service; scores that devices have got can still be opened.

    Example: `cipherward site withdraw-model --name heart --service ps.example.org:8443 --ca ca.crt --vault
    /srv/cipherward`
    """
    opened = opened_vault(vault)
    with connected(opened, service, ca) as connection:
        connection.withdraw(name)
    opened.record("model withdrawn", model=name)
    typer.echo(f"{name} is deleted at the service")
