"""The agreement after an agreement: some sites stay, some join, some are expelled; keys, names and vaults stay as real.

Trust: tests only.
"""

from __future__ import annotations

import os
from dataclasses import replace

from clients.run.code import code_digest
from clients.run.membership import TABLE, commitment, pin
from clients.run.start import last_model
from clients.secrets.enrolment import enrol, read_card
from clients.secrets.identity_file import IDENTITY
from clients.secrets.secret import SecretBytes
from clients.secrets.vault import Vault
from clients.simulation import simulated_site_names, site_tables
from protocol.agreement import Agreement
from protocol.schedule import KEY_BYTES


def next_agreement(
    consortium, *, sites: int, start_from: int | None, consortium_secret: SecretBytes | None = None, **changes
):
    """Have sites pin a new agreement with a new consortium secret, in the vaults that they have.

    Args:
        consortium: The consortium so far, with its run at an end.
        sites: Sites in the new roster: the first of the old one, which expels the others; or these and new ones.
        start_from: Roster position of the site whose last model the new run starts from; None for no such model.
        consortium_secret: P; None for a new one.
        changes: What else is new in the experiment.

    Returns:
        The consortium under its new agreement, with no run yet.
    """
    old = consortium.experiment
    experiment = replace(old, federation=replace(old.federation, sites=sites), **changes)
    vaults = {name: Vault(consortium.directory / "sites" / name) for name in simulated_site_names(experiment)}
    for name, vault in vaults.items():
        if not vault.has(IDENTITY):
            enrol(vault, name)
            vault.write(TABLE, site_tables(experiment)[name].to_bytes(experiment.data))
    secret = SecretBytes(os.urandom(KEY_BYTES)) if consortium_secret is None else consortium_secret
    agreement = Agreement(
        roster=tuple(read_card(vault).card for vault in vaults.values()),
        terms=experiment.terms,
        code_digest=code_digest(),
        secret_digest=commitment(secret),
        start=""
        if start_from is None
        else last_model(consortium.vault(start_from), experiment.terms).model.digest(secret),
    )
    for vault in vaults.values():
        pin(vault, agreement=agreement, consortium_secret=secret, may_replace=True)
    return type(consortium)(consortium.directory, experiment)
