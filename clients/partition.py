"""Deal a public data set out to simulated sites.

Trust: runs where a federation is simulated, on public data only; a real site reads its own table instead.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from sklearn.datasets import load_breast_cancer

from clients.generator import public_generator
from clients.table import Table
from protocol.errors import ConfigurationError
from protocol.terms import DataTerms, check_choice

PUBLIC_TABLES: Final = ("breast_cancer",)
PARTITION_KINDS: Final = ("iid", "dirichlet")

MIN_SITE_RECORDS: Final = 8
"""Fewest patients of a simulated site."""

MAX_DEALS: Final = 1000
"""Deals that are tried before the request is called impossible."""


def load_public_table(terms: DataTerms) -> Table:
    """Load a public data set whose columns are the agreed ones.

    Args:
        terms: `name` picks the data set, `features` its columns. breast_cancer is the Wisconsin diagnostic data set
            (Street, Wolberg and Mangasarian, 1993) of 569 patients; its label is 1 for a malignant mass.

    Raises:
        ConfigurationError: There is no such data set, or it has no such column.
    """
    check_choice("data.name", terms.name, PUBLIC_TABLES)
    source = load_breast_cancer()
    position = {str(name): at for at, name in enumerate(source.feature_names)}
    for feature in terms.features:
        if feature.name not in position:
            raise ConfigurationError(f"data.features: {terms.name} has no column {feature.name!r}")
    if terms.label != "malignant":
        raise ConfigurationError(f"data.label: the label of {terms.name} is 'malignant', not {terms.label!r}")
    columns = [position[feature.name] for feature in terms.features]
    return Table(
        features=source.data[:, columns].astype(np.float64),
        labels=(1 - source.target).astype(np.int8),
    )


def partition(table: Table, *, sites: int, kind: str, alpha: float, seed: int) -> list[Table]:
    """Deal each row to exactly one site.

    Args:
        table: The rows to deal.
        sites: Number of sites, at least 1.
        kind: "iid" deals equal random shares; "dirichlet" draws each label's shares over the sites from
            Dirichlet(alpha, ..., alpha), as Flower Datasets' DirichletPartitioner does (Yurochkin et al., ICML 2019).
        alpha: Concentration, > 0; the smaller, the more the sites differ in size and in labels.
        seed: Public seed of the deal.

    Returns:
        One table per site, of at least MIN_SITE_RECORDS rows each.

    Raises:
        ConfigurationError: Unknown kind, or no deal gave every site enough rows.
    """
    check_choice("federation.partition", kind, PARTITION_KINDS)
    generator = public_generator("partition", seed=seed)
    for _ in range(MAX_DEALS):
        site_of_row = (
            generator.permutation(np.arange(table.records) % sites)
            if kind == "iid"
            else _dirichlet_deal(table, sites, alpha, generator)
        )
        if np.bincount(site_of_row, minlength=sites).min() >= MIN_SITE_RECORDS:
            return [table.rows(np.flatnonzero(site_of_row == site)) for site in range(sites)]
    raise ConfigurationError(
        f"federation.sites = {sites}: no {kind} deal of {table.records} rows (alpha = {alpha}) left every site "
        f"{MIN_SITE_RECORDS} rows in {MAX_DEALS} tries"
    )


def _dirichlet_deal(table: Table, sites: int, alpha: float, generator: np.random.Generator) -> np.ndarray:
    site_of_row = np.zeros(table.records, dtype=np.int64)
    for label in (0, 1):
        rows = generator.permutation(np.flatnonzero(table.labels == label))
        shares = generator.dirichlet(np.full(sites, alpha))
        borders = (np.cumsum(shares)[:-1] * len(rows)).astype(np.int64)
        for site, dealt in enumerate(np.split(rows, borders)):
            site_of_row[dealt] = site
    return site_of_row
