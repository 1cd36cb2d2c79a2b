"""A simulated consortium: set up once, each hospital with its own vault, keys and share of the table."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import clients.simulation
from clients.membership import CONSORTIUM_SECRET, IDENTITY, TABLE, Membership
from clients.partition import load_public_table
from clients.simulation import simulated_site_names, simulated_vault
from clients.table import read_table
from protocol.errors import ConfigurationError


@pytest.fixture
def vault_of(tmp_path, founded_once):
    terms = founded_once.experiment.terms

    def make(position, *, sites=3, kind="iid"):
        return simulated_vault(tmp_path / "run", position, terms=terms, sites=sites, kind=kind, alpha=0.5)

    return make


@pytest.mark.parametrize("sites", [3, 9, 10, 100, 128])
def test_names_are_in_roster_order_however_many_there_are(sites):
    names = simulated_site_names(sites)

    assert len(set(names)) == sites
    assert names == sorted(names)


def test_the_first_caller_sets_everything_up_and_later_ones_find_it(vault_of):
    identities = [vault_of(position).read(IDENTITY) for position in (2, 0, 1)]
    again = [vault_of(position).read(IDENTITY) for position in (2, 0, 1)]

    assert identities == again
    assert len(set(identities)) == 3


def test_callers_at_the_same_time_find_one_consortium(vault_of, monkeypatch):
    founded = []
    found = clients.simulation._found_consortium
    monkeypatch.setattr(
        clients.simulation, "_found_consortium", lambda *args, **kwargs: (founded.append(1), found(*args, **kwargs))
    )

    with ThreadPoolExecutor(6) as pool:
        vaults = list(pool.map(vault_of, [0, 1, 2] * 2))

    assert founded == [1]
    assert len({Membership.load(vault).agreement.digest for vault in vaults}) == 1


def test_every_hospital_loads_its_own_membership(vault_of):
    members = [Membership.load(vault_of(position)) for position in range(3)]

    assert [member.site for member in members] == [0, 1, 2]
    assert len({member.consortium_secret.reveal() for member in members}) == 1
    assert len({member.identity.to_secret().reveal() for member in members}) == 3


def test_each_patient_is_dealt_to_one_hospital(vault_of, founded_once):
    data = founded_once.experiment.data
    whole = load_public_table(data)

    dealt = [read_table(vault_of(position).path(TABLE), data) for position in range(3)]

    assert sum(table.records for table in dealt) == whole.records
    rows = np.concatenate([np.column_stack([table.features, table.labels]) for table in dealt])
    assert sorted(map(tuple, rows)) == sorted(map(tuple, np.column_stack([whole.features, whole.labels])))


def test_vaults_are_private(vault_of):
    vault = vault_of(0)

    assert vault.directory.stat().st_mode & 0o777 == 0o700
    for name in (IDENTITY, CONSORTIUM_SECRET):
        assert vault.path(name).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("position", [-1, 3, 100])
def test_a_node_outside_the_roster_is_refused(vault_of, position):
    with pytest.raises(ConfigurationError, match="not in the roster of 3 sites"):
        vault_of(position)


def test_a_consortium_that_could_not_be_set_up_is_not_taken_for_one(vault_of, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "urandom", None)
        with pytest.raises(TypeError):
            vault_of(0)

    assert Membership.load(vault_of(0)).site == 0


def test_an_unknown_deal_is_refused(vault_of):
    with pytest.raises(ConfigurationError, match="partition"):
        vault_of(0, kind="by hand")
