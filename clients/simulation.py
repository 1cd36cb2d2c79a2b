"""Set up a consortium of simulated hospitals on one machine: identities, data, agreement, a vault each.

What real hospitals do by hand and over the telephone, done once per run by whichever simulated site is asked first.

Trust: simulation only. It sees every site's secrets while it makes them; a deployed site never runs it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
from filelock import FileLock

from clients.data.partition import partition
from clients.data.public_data import load_hospitals
from clients.data.small_numbers import check_floors
from clients.data.table_file import TableFile, encode_table
from clients.run.code import code_digest
from clients.run.membership import TABLE, commitment, pin
from clients.secrets.enrolment import enrol
from clients.secrets.secret import SecretBytes
from clients.secrets.vault import LOCK_SECONDS, Vault
from conf.schema import NATURAL, ExperimentConfig
from protocol.agreement import Agreement, SiteId
from protocol.errors import ConfigurationError
from protocol.schedule import KEY_BYTES
from protocol.terms import Terms

SITES: Final = "sites"
_READY: Final = ".consortium-is-ready"


def simulated_site_names(experiment: ExperimentConfig) -> list[SiteId]:
    """Return the simulated hospitals' names, in roster order."""
    sites = experiment.federation.sites
    if experiment.federation.partition == NATURAL:
        return sorted(SiteId(source.site) for source in experiment.data.sources)
    width = len(str(sites))
    return [SiteId(f"hospital-{number:0{width}}") for number in range(1, sites + 1)]


def site_tables(experiment: ExperimentConfig) -> dict[SiteId, TableFile]:
    """Return each simulated hospital's table: its own file, or its share of all patients.

    Raises:
        ConfigurationError: There are no such files, or the patients cannot be dealt out so.
        DataError: A file breaks the schema.
    """
    names = simulated_site_names(experiment)
    hospitals = load_hospitals(experiment.data)
    labels = [encode_table(file, experiment.data).labels for file in hospitals.values()]  # checks every cell
    if experiment.federation.partition == NATURAL:
        return {name: hospitals[name] for name in names}
    everybody = TableFile(
        name=experiment.data.name,
        rows=[row for file in hospitals.values() for row in file.rows],
        lines=[line for file in hospitals.values() for line in file.lines],
    )
    shares = partition(
        np.concatenate(labels),
        sites=len(names),
        kind=experiment.federation.partition,
        alpha=experiment.federation.alpha,
        seed=experiment.strategy.seed,
    )
    return {name: everybody.chosen(share.tolist()) for name, share in zip(names, shares, strict=True)}


def check_hospitals(experiment: ExperimentConfig) -> dict[SiteId, TableFile]:
    """Return `site_tables`, if every hospital has the patients that the agreed floors ask for.

    Raises:
        ConfigurationError: As `site_tables`.
        DataError: A file breaks the schema, or a hospital has too few patients; names the hospital and the floor.
    """
    files = site_tables(experiment)
    for name, file in files.items():
        check_floors(encode_table(file, experiment.data), experiment.privacy, name)
    return files


def simulated_vault(run_directory: Path, position: int, experiment: ExperimentConfig) -> Vault:
    """Return one simulated hospital's vault; the first caller sets the whole consortium up.

    Args:
        run_directory: Directory of the run.
        position: Which hospital, from 0.
        experiment: What is simulated.

    Raises:
        ConfigurationError: There is no such hospital, or no data for it.
        DataError: A file breaks the schema.
    """
    names = simulated_site_names(experiment)
    if not 0 <= position < len(names):
        raise ConfigurationError(
            f"node {position + 1} is not in the roster of {len(names)} sites; start as many nodes as federation.sites"
        )
    home = run_directory / SITES
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / ".lock", timeout=LOCK_SECONDS):
        if not (home / _READY).exists():
            for left in filter(Path.is_dir, list(home.iterdir())):  # by a founder that was killed
                shutil.rmtree(left)
            found_consortium(home, site_tables(experiment), experiment.terms)
            (home / _READY).touch()
    return Vault(home / names[position])


def found_consortium(home: Path, tables: Mapping[SiteId, TableFile], terms: Terms) -> None:
    """Give each hospital an identity, its table, the agreement and the consortium secret, in a vault below `home`."""
    cards = [enrol(Vault(home / name), name).card for name in sorted(tables)]
    consortium_secret = SecretBytes(os.urandom(KEY_BYTES))
    agreement = Agreement(
        roster=tuple(cards), terms=terms, code_digest=code_digest(), secret_digest=commitment(consortium_secret)
    )
    for name, file in tables.items():
        vault = Vault(home / name)
        vault.write(TABLE, file.to_bytes(terms.data))
        pin(vault, agreement=agreement, consortium_secret=consortium_secret)
