"""A simulated consortium: set up once, each hospital with its own vault, keys and share of the table."""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

import clients.simulation
from clients.data.public_data import load_hospitals
from clients.data.table_file import encode_table, read_table, read_table_file
from clients.run.membership import CONSORTIUM_SECRET, TABLE, Membership
from clients.secrets.identity_file import IDENTITY
from clients.simulation import simulated_site_names, simulated_vault, site_tables
from conf import DataConfig, ExperimentConfig, FederationConfig, SourceConfig
from protocol.data_terms import ColumnTerms
from protocol.errors import ConfigurationError, DataError


@pytest.fixture
def vault_of(tmp_path, founded_once):
    experiment = replace(founded_once.experiment, federation=FederationConfig(sites=3, partition="iid"))
    return lambda position: simulated_vault(tmp_path / "run", position, experiment)


@pytest.fixture
def wards(tmp_path):
    """Three hospitals' own files, in the data directory of an experiment that leaves each its patients."""
    sources = []
    for hospital, ages in (("west", range(40, 52)), ("east", range(20, 29)), ("north", range(60, 70))):
        sources.append(SourceConfig(site=hospital, file=f"wards/{hospital}.csv"))
        path = tmp_path / "wards" / f"{hospital}.csv"
        path.parent.mkdir(exist_ok=True)
        path.write_text("age,label\n" + "".join(f"{age},{age % 2}\n" for age in ages))
    return ExperimentConfig(
        data=DataConfig(
            name="wards",
            columns=(ColumnTerms(name="age", centre=50, scale=20),),
            sources=tuple(sources),
            dir=str(tmp_path),
            missing=("?",),
        ),
        federation=FederationConfig(sites=3, partition="natural"),
    )


@pytest.mark.parametrize("sites", [3, 9, 10, 100, 128])
def test_names_are_in_roster_order_however_many_there_are(founded_once, sites):
    experiment = replace(founded_once.experiment, federation=FederationConfig(sites=sites))
    names = simulated_site_names(experiment)

    assert len(set(names)) == sites
    assert names == sorted(names)


def test_the_first_caller_sets_everything_up_and_later_ones_find_it(vault_of):
    identities = [vault_of(position).read(IDENTITY) for position in (2, 0, 1)]
    again = [vault_of(position).read(IDENTITY) for position in (2, 0, 1)]

    assert identities == again
    assert len(set(identities)) == 3


def test_callers_at_the_same_time_find_one_consortium(vault_of, monkeypatch):
    founded = []
    found = clients.simulation.found_consortium
    monkeypatch.setattr(clients.simulation, "found_consortium", lambda *args: (founded.append(1), found(*args)))

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
    (published,) = load_hospitals(data).values()
    whole = encode_table(published, data)

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


def test_what_a_killed_founder_left_is_made_anew(vault_of, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(clients.simulation, "pin", None)
        with pytest.raises(TypeError):
            vault_of(0)

    assert [Membership.load(vault_of(position)).site for position in range(3)] == [0, 1, 2]


def test_each_hospital_keeps_its_own_patients_where_the_data_set_has_hospitals(wards, tmp_path):
    assert simulated_site_names(wards) == ["east", "north", "west"]
    for position, name in enumerate(simulated_site_names(wards)):
        vault = simulated_vault(tmp_path / "run", position, wards)
        kept = read_table_file(vault.path(TABLE), wards.data)

        assert Membership.load(vault).name == name
        assert kept.rows == load_hospitals(wards.data)[name].rows


@pytest.mark.parametrize("partition", ["iid", "dirichlet"])
def test_several_hospitals_patients_can_be_dealt_out_anew(wards, partition):
    mixed = replace(wards, federation=FederationConfig(sites=3, partition=partition, alpha=100.0))
    published = load_hospitals(wards.data).values()

    dealt = site_tables(mixed)

    assert list(dealt) == ["hospital-1", "hospital-2", "hospital-3"]
    assert Counter(tuple(row) for file in dealt.values() for row in file.rows) == Counter(
        tuple(row) for file in published for row in file.rows
    )


def test_a_hospital_s_broken_table_is_named_before_anything_is_set_up(wards, tmp_path):
    (tmp_path / "wards" / "east.csv").write_text("age,label\n30,1\nthirty,0\n")

    with pytest.raises(DataError, match=r"east\.csv, line 3, column 'age': not a number"):
        simulated_vault(tmp_path / "run", 0, wards)
    assert not list((tmp_path / "run").rglob("*.csv"))
