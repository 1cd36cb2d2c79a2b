"""Deal the patients of a public data set out to simulated sites.

Trust: runs where a federation is simulated, on public data only; a real site reads its own table instead.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from clients.data.generator import public_generator
from clients.data.table import Labels
from protocol.errors import ConfigurationError

MIN_SITE_RECORDS: Final = 8
"""Fewest patients of a simulated site."""

MAX_DEALS: Final = 1000
"""Deals that are tried before the request is called impossible."""


def partition(labels: Labels, *, sites: int, kind: str, alpha: float, seed: int) -> list[npt.NDArray[np.int64]]:
    """Deal each patient to exactly one site.

    Args:
        labels: int8 (n,), 0 or 1.
        sites: Number of sites, at least 1.
        kind: "iid" deals equal random shares; "dirichlet" draws each label's shares over the sites from
            Dirichlet(alpha, ..., alpha), as Flower Datasets' DirichletPartitioner does (Yurochkin et al., ICML 2019).
        alpha: Concentration, > 0; the smaller, the more the sites differ in size and in labels.
        seed: Public seed of the deal.

    Returns:
        Each site's rows, ascending, at least MIN_SITE_RECORDS of them.

    Raises:
        ConfigurationError: No deal gave every site enough rows.
    """
    generator = public_generator("partition", seed=seed)
    for _ in range(MAX_DEALS):
        site_of_row = (
            generator.permutation(np.arange(len(labels)) % sites)
            if kind == "iid"
            else _dirichlet_deal(labels, sites, alpha, generator)
        )
        if np.bincount(site_of_row, minlength=sites).min() >= MIN_SITE_RECORDS:
            return [np.flatnonzero(site_of_row == site) for site in range(sites)]
    raise ConfigurationError(
        f"federation.sites = {sites}: no {kind} deal of {len(labels)} rows (alpha = {alpha}) left every site "
        f"{MIN_SITE_RECORDS} rows in {MAX_DEALS} tries"
    )


def _dirichlet_deal(labels: Labels, sites: int, alpha: float, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    site_of_row = np.zeros(len(labels), dtype=np.int64)
    for label in (0, 1):
        rows = generator.permutation(np.flatnonzero(labels == label))
        shares = generator.dirichlet(np.full(sites, alpha))
        borders = (np.cumsum(shares)[:-1] * len(rows)).astype(np.int64)
        for site, dealt in enumerate(np.split(rows, borders)):
            site_of_row[dealt] = site
    return site_of_row
