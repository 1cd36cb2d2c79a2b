"""Set up a consortium of simulated hospitals on one machine: identities, data, agreement, a vault each.

What real hospitals do by hand and over the telephone, done once per run by whichever simulated site is asked first.

Trust: simulation only. It sees every site's secrets while it makes them; a deployed site never runs it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from filelock import FileLock

from clients.code import code_digest
from clients.identity import Identity
from clients.membership import TABLE, Membership
from clients.partition import load_public_table, partition
from clients.secret import SecretBytes
from clients.table import write_table
from clients.vault import LOCK_SECONDS, Vault
from protocol.agreement import Agreement, SiteId
from protocol.errors import ConfigurationError
from protocol.schedule import KEY_BYTES
from protocol.terms import Terms

SITES: Final = "sites"
_READY: Final = ".consortium-is-ready"


def simulated_site_names(sites: int) -> list[SiteId]:
    """Return the simulated hospitals' names, in roster order."""
    width = len(str(sites))
    return [SiteId(f"hospital-{number:0{width}}") for number in range(1, sites + 1)]


def simulated_vault(run_directory: Path, position: int, *, terms: Terms, sites: int, kind: str, alpha: float) -> Vault:
    """Return one simulated hospital's vault; the first caller sets the whole consortium up.

    Args:
        run_directory: Directory of the run.
        position: Which hospital, from 0.
        terms: What the consortium agrees on.
        sites: Number of hospitals.
        kind: How the public data set is dealt out: "iid" or "dirichlet".
        alpha: Dirichlet concentration.

    Raises:
        ConfigurationError: There is no such hospital, or the data cannot be dealt out so.
    """
    names = simulated_site_names(sites)
    if not 0 <= position < sites:
        raise ConfigurationError(
            f"node {position + 1} is not in the roster of {sites} sites; start as many nodes as federation.sites"
        )
    home = run_directory / SITES
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / ".lock", timeout=LOCK_SECONDS):
        if not (home / _READY).exists():
            _found_consortium(home, names, terms=terms, kind=kind, alpha=alpha)
            (home / _READY).touch()
    return Vault(home / names[position])


def _found_consortium(home: Path, names: list[SiteId], *, terms: Terms, kind: str, alpha: float) -> None:
    tables = partition(
        load_public_table(terms.data), sites=len(names), kind=kind, alpha=alpha, seed=terms.training.seed
    )
    identities = [Identity.generate() for _ in names]
    agreement = Agreement(
        roster=tuple(identity.card(name) for identity, name in zip(identities, names, strict=True)),
        terms=terms,
        code_digest=code_digest(),
    )
    consortium_secret = SecretBytes(os.urandom(KEY_BYTES))
    for name, identity, table in zip(names, identities, tables, strict=True):
        vault = Vault(home / name)
        write_table(vault.path(TABLE), table, terms.data)
        Membership.pin(vault, agreement=agreement, identity=identity, consortium_secret=consortium_secret)
