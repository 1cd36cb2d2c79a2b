"""The command `cipherward site release-model`: a hospital's decision to hand out its consortium's model.

Trust: runs at the hospital, on its vault; what it writes is for others.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from protocol.errors import ConfigurationError
from scripts.site.commands import YesOption
from scripts.site.vault_option import VaultOption, opened_vault

if TYPE_CHECKING:
    from protocol.agreement import Agreement

# As in scripts.cli, commands import what they need when they run.
# ruff: noqa: PLC0415

MODEL_FILE: Final = "model.safetensors"


def release_model(
    *,
    vault: VaultOption,
    purpose: Annotated[
        str,
        typer.Option("--for", metavar="TEXT", help="Who gets the model, and what for; the same words at every site."),
    ],
    output: Annotated[
        Path, typer.Option(help="Directory for the model's file and the decision; made if needed.", file_okay=False)
    ],
    run: Annotated[
        str, typer.Option("--run", help="The run's id, or its beginning; needed if several have ended.")
    ] = "",
    yes: YesOption = False,
) -> None:
    """Sign this hospital's decision to hand out the consortium's model, as it was when the run ended.

    Writes model.safetensors, the same file at every hospital, and NAME.release.json, the decision. A service publishes
    the model only with the decisions of all hospitals of the agreement, for the same file and in the same words.

    The file can be read by whoever has it, and no decision takes it back. What is personal, such as this hospital's own
    intercept, is not in it.

    Example: `cipherward site release-model --vault /srv/cipherward --for "Cardio Cloud AG: scoring referrals" --output
    released`
    """
    from clients.run.membership import Membership
    from clients.run.model_release import releasable_model, release
    from scripts.site.passphrase import unlocked_identity

    words = " ".join(purpose.split())
    opened = opened_vault(vault)
    member = Membership.read(opened, unlocked_identity(opened))
    model = releasable_model(member, run)
    decision_file = output / f"{member.name}.release.json"
    for path, content in ((output / MODEL_FILE, model.file), (decision_file, None)):
        if path.exists() and path.read_bytes() != content:
            raise ConfigurationError(f"{path} is there already, and is never overwritten: take another directory")
    typer.echo(_what_is_released(member.agreement, model.run, len(model.file), words))
    if not yes:
        typer.confirm(f"{member.name}: release this model, for good?", abort=True)
    decision = release(member, model, words)
    output.mkdir(parents=True, exist_ok=True)
    (output / MODEL_FILE).write_bytes(model.file)
    decision_file.write_bytes(decision.to_bytes())
    typer.echo(f"""released by {member.name}
model     {output / MODEL_FILE}, SHA-256 {decision.model}
decision  {decision_file}

Compare the SHA-256 with the other hospitals', then send the decision to the provider; one hospital sends the model.""")


def _what_is_released(agreement: Agreement, run: bytes, size: int, purpose: str) -> str:
    """Return in plain words what the decision gives away."""
    terms = agreement.terms
    model, inputs = terms.model, len(terms.data.inputs)
    own = ", ".join(model.personal) or "nothing"
    scores = (
        f"Scores alone give it away as well: whoever may ask for those of {inputs + 1} patients of their choice can "
        "work\nthe whole model out."
        if model.kind == "logistic_regression"
        else "Scores alone say much about it as well: with enough patients of their choice, people can imitate it."
    )
    hospitals = ", ".join(card.name for card in agreement.roster)
    return f"""You are about to release a model in plaintext.

run       {run.hex()}
agreement {agreement.digest.hex()}
model     {model.kind}, {inputs} inputs, {terms.data.name}; {size:,} bytes
for       {purpose}

In the file are the shared weights, mean and deviation of each input over all hospitals' patients, and the schema of the
table. Not in it: patients' records, and what each hospital trained for itself ({own}).
Whoever runs the service that it is given to can read it, copy it, and study what it says about the patients that it was
trained on. That cannot be undone.
{scores}
It is published only if all {len(agreement.roster)} hospitals decide the same: {hospitals}.
"""
