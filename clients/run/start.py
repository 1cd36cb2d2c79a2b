"""The starting model in a site's vault: adopted from the site's own last run, or opened from what a peer sealed.

Trust: site only.
"""

from __future__ import annotations

import hmac
import json
from typing import Final

import numpy as np
from safetensors import SafetensorError, safe_open

from clients.learning.models import ParameterLayout
from clients.learning.starting_model import ModelPurpose, Start, StartingModel
from clients.run.membership import Membership, read_consortium_secret
from clients.run.results import model_path
from clients.run.sealed_model import open_starting_model, seal_starting_model
from clients.secrets.secret import SecretBytes
from clients.secrets.vault import Vault
from protocol.agreement import Agreement
from protocol.errors import ConfigurationError, MalformedError
from protocol.prediction.model_file import MODEL_FORMAT
from protocol.terms import Terms

STARTING_MODELS: Final = "starting-models"


def last_model(vault: Vault, terms: Terms) -> Start:
    """Read the model of the last run that a vault's site has ended, to start one under these terms from.

    `last_model(vault, terms).model.digest(consortium_secret)` is what an agreement names.

    Args:
        vault: The vault of a site that ended the run.
        terms: The terms of the new run.

    Raises:
        ConfigurationError: There is no such model, it is damaged, or it is for something else; says what differs.
    """
    path = model_path("last")
    try:
        with safe_open(vault.path(path), "numpy") as file:
            description = json.loads(file.metadata()[MODEL_FORMAT])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dict
        purpose = ModelPurpose(
            inputs=tuple(description["inputs"]),
            label=description["data"]["label"]["name"],
            kind=description["model"]["kind"],
            hidden=tuple(description["model"]["hidden"]),
            activation=description["model"]["activation"],
            personal=tuple(description["model"]["personal"]),
        )
    except FileNotFoundError:
        raise ConfigurationError(f"the site's vault has no {path}: it has ended no run") from None
    except (SafetensorError, ValueError, KeyError, TypeError):
        raise ConfigurationError(f"{path} is damaged, or not the model of a run") from None
    purpose.check_same(ModelPurpose.of(terms))
    layout = ParameterLayout(terms.model, len(purpose.inputs))
    try:
        values = np.concatenate([tensors[name].reshape(-1) for name in layout.shapes])
        shared, personal = layout.split(values)
        model = StartingModel(
            purpose=purpose,
            mean=tensors["standardisation.mean"],
            deviation=tensors["standardisation.deviation"],
            values=shared,
        )
    except (KeyError, IndexError, MalformedError):
        raise ConfigurationError(f"{path} is damaged, or not the model of a run") from None
    return Start(model=model, personal=personal)


def adopt_starting_model(membership: Membership) -> None:
    """Have the agreed starting model in the vault: it stays there, or is taken from the model of the site's last run.

    Does nothing if the run begins from the public initial model.

    Raises:
        ConfigurationError: The vault has neither; says what to do.
    """
    agreement, vault = membership.agreement, membership.vault
    if not agreement.start or vault.has(_model_file(agreement)):
        return
    start = _own_last_model(vault, agreement, membership.consortium_secret)
    if start.personal is not None and len(start.personal):
        vault.write(_personal_file(agreement), start.personal.astype("<f8").tobytes())
    vault.write(_model_file(agreement), start.model.to_bytes())  # last: with it, the rest is there


def check_starting_model(vault: Vault, agreement: Agreement) -> str:
    """Check that a site can begin where its agreement does, and return where that is; the vault stays as it is.

    Raises:
        ConfigurationError: It lacks the agreed starting model, which says what to do; or that model is damaged.
    """
    if not agreement.start:
        return "the run begins from the public initial model"
    consortium_secret = read_consortium_secret(vault, agreement)
    if vault.has(_model_file(agreement)):
        _kept_model(vault, agreement, consortium_secret)
        return "the model that the agreement starts from is in the vault"
    _own_last_model(vault, agreement, consortium_secret)
    return f"{model_path('last')} is the model that the agreement starts from"


def start_of(membership: Membership) -> Start | None:
    """Return where a site begins under its agreement; None for the public initial model.

    Raises:
        ConfigurationError: The vault lacks the agreed starting model, or it is damaged.
    """
    agreement, vault = membership.agreement, membership.vault
    if not agreement.start:
        return None
    name = _personal_file(agreement)
    return Start(
        model=_kept_model(vault, agreement, membership.consortium_secret),
        personal=np.frombuffer(vault.read(name), dtype="<f8").astype(np.float64) if vault.has(name) else None,
    )


def share_starting_model(membership: Membership, recipient: str) -> bytes:
    """Seal the agreed starting model to another site of the roster; anybody may carry it there.

    Args:
        membership: The site, under the new agreement.
        recipient: The other site's name.

    Raises:
        ConfigurationError: There is no such other site, no starting model was agreed, or this site lacks it.
    """
    card = membership.agreement.roster[membership.agreement.position(recipient)]
    with membership.vault.locked():
        adopt_starting_model(membership)
        start = start_of(membership)
    if start is None:
        raise ConfigurationError("the agreement starts from the public initial model: there is nothing to share")
    return seal_starting_model(membership, card, start.model)


def take_starting_model(membership: Membership, data: bytes) -> None:
    """Open what another site has sealed to this one, and keep it; a refused one leaves the vault as it was.

    Raises:
        ConfigurationError: No starting model was agreed.
        ProtocolError: It is not the agreed model, sealed and signed by another site of the roster, for this one.
    """
    model = open_starting_model(membership, data)
    with membership.vault.locked():
        membership.vault.write(_model_file(membership.agreement), model.to_bytes())


def _own_last_model(vault: Vault, agreement: Agreement, consortium_secret: SecretBytes) -> Start:
    """Return the agreed starting model as the end of the site's own last run."""
    try:
        start = last_model(vault, agreement.terms)
        if not _is_agreed(start.model, agreement, consortium_secret):
            raise ConfigurationError("the last model in this vault is another one")  # noqa: TRY301  told below
    except ConfigurationError as error:
        raise ConfigurationError(
            f"this site lacks the model that the agreement starts from: {error}; ask another hospital to run "
            "`cipherward site share-model` for this one, and take what it sends with `cipherward site take-model`"
        ) from None
    return start


def _kept_model(vault: Vault, agreement: Agreement, consortium_secret: SecretBytes) -> StartingModel:
    """Return the agreed starting model as it was adopted or taken."""
    name = _model_file(agreement)
    try:
        model = StartingModel.from_bytes(vault.read(name), agreement.terms)
    except MalformedError:
        raise ConfigurationError(f"{name} is damaged") from None
    if not _is_agreed(model, agreement, consortium_secret):
        raise ConfigurationError(f"{name} is not the model that the agreement starts from")
    return model


def _is_agreed(model: StartingModel, agreement: Agreement, consortium_secret: SecretBytes) -> bool:
    return hmac.compare_digest(model.digest(consortium_secret), agreement.start)


def _model_file(agreement: Agreement) -> str:
    return f"{STARTING_MODELS}/{agreement.start}.bin"


def _personal_file(agreement: Agreement) -> str:
    return f"{STARTING_MODELS}/{agreement.start}.personal"
