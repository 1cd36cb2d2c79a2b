"""Where a site begins: its own last model if that is the agreed one, else what a peer has sealed, else nowhere."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from next_agreement import next_agreement
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from clients.run.start import STARTING_MODELS, adopt_starting_model, last_model, start_of
from protocol.data_terms import LabelTerms
from protocol.errors import ConfigurationError
from protocol.terms import ModelTerms

LAST = "models/last.safetensors"


@pytest.fixture
def joined(closed):
    """Four sites that have ended a run, under the next agreement."""
    return next_agreement(closed, sites=4, start_from=0)


def test_all_who_ended_the_run_make_the_same_starting_model_from_their_own_vaults(closed):
    member = closed.member(0)
    models = [last_model(closed.vault(site), member.agreement.terms).model for site in closed.everyone]

    assert len({model.to_bytes() for model in models}) == 1
    assert len({model.digest(member.consortium_secret) for model in models}) == 1
    tensors = load_file(closed.vault(0).path(LAST))
    assert np.array_equal(models[0].values, closed.values(0))
    assert np.array_equal(models[0].mean, tensors["standardisation.mean"])
    assert np.array_equal(models[0].deviation, tensors["standardisation.deviation"])


def test_an_old_site_adopts_its_own_model_once_and_keeps_it_while_its_last_one_changes(joined):
    member = joined.member(1)
    before = last_model(member.vault, member.agreement.terms).model.to_bytes()

    adopt_starting_model(member)
    member.vault.delete(LAST)
    adopt_starting_model(member)

    assert start_of(member).model.to_bytes() == before
    assert start_of(member).personal is None
    (file,) = member.vault.path(STARTING_MODELS).iterdir()
    assert file.stat().st_mode & 0o777 == 0o600


def test_without_a_starting_model_there_is_nothing_to_adopt(founded):
    adopt_starting_model(founded.member(1))

    assert start_of(founded.member(1)) is None
    assert not founded.vault(1).has(STARTING_MODELS)


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"model": ModelTerms(kind="mlp", hidden=(4,))}, "the starting model has kind = 'logistic_regression'"),
        ({"model": ModelTerms(personal=("output.bias",))}, "the starting model has personal = "),
        ({"data": lambda data: replace(data, label=LabelTerms(name="other"))}, "label = 'malignant'"),
        ({"data": lambda data: replace(data, columns=data.columns[1:])}, "it lacks none, and has besides mean radius"),
    ],
)
def test_terms_for_another_model_cannot_start_from_this_one(closed, changes, difference):
    terms = closed.agreement.terms
    changed = {name: new(getattr(terms, name)) if callable(new) else new for name, new in changes.items()}

    with pytest.raises(ConfigurationError, match=difference):
        last_model(closed.vault(0), replace(terms, **changed))


def rewritten(vault, *, metadata=None, **tensors):
    path = vault.path(LAST)
    save_file(load_file(path) | tensors, path, metadata)


@pytest.mark.parametrize(
    "damage",
    [
        lambda vault: vault.write(LAST, b""),
        lambda vault: vault.write(LAST, vault.read(LAST)[:-8]),
        rewritten,
        lambda vault: rewritten(vault, metadata={"cipherward.model/1": "[]"}),
        lambda vault: rewritten(vault, metadata={"cipherward.model/1": "{"}),
    ],
    ids=["empty", "cut", "no description", "another description", "no JSON"],
)
def test_a_damaged_model_is_told_as_such(closed, damage):
    damage(closed.vault(0))

    with pytest.raises(ConfigurationError, match=r"models/last\.safetensors is damaged"):
        last_model(closed.vault(0), closed.agreement.terms)


@pytest.mark.parametrize("name", ["output.weight", "standardisation.mean", "standardisation.deviation"])
def test_so_are_tensors_of_another_shape(closed, name):
    path = closed.vault(0).path(LAST)
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
    rewritten(closed.vault(0), metadata=metadata, **{name: np.ones(7)})

    with pytest.raises(ConfigurationError, match=r"models/last\.safetensors is damaged"):
        last_model(closed.vault(0), closed.agreement.terms)


def test_the_model_of_a_run_that_has_not_ended_is_none_to_start_from(summed):
    with pytest.raises(ConfigurationError, match="it has ended no run"):
        last_model(summed.vault(0), summed.agreement.terms)


def test_a_run_that_dies_leaves_the_model_of_the_one_that_ended(joined):
    member = joined.member(0)
    before = last_model(member.vault, member.agreement.terms).model.to_bytes()
    joined.open()
    for _ in range(2):
        joined.prepare_all()
        joined.sum_up()
    joined.prepare_all()

    assert last_model(member.vault, member.agreement.terms).model.to_bytes() == before


def test_a_vault_that_ended_no_run_has_no_model(founded):
    with pytest.raises(ConfigurationError, match="it has ended no run"):
        last_model(founded.vault(0), founded.agreement.terms)


@pytest.mark.parametrize(("data", "told"), [(b"", "is damaged"), (None, "is not the model that the agreement starts")])
def test_an_adopted_model_that_was_changed_since_is_refused(joined, data, told):
    member = joined.member(1)
    adopt_starting_model(member)
    (file,) = member.vault.path(STARTING_MODELS).iterdir()
    file.write_bytes(file.read_bytes()[:-1] + b"\0" if data is None else data)

    with pytest.raises(ConfigurationError, match=told):
        start_of(member)
