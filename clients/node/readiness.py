"""Find out whether a vault and its machine are ready for a run, before anybody waits for them.

Trust: site only; it reads patients' records to check them, and names lines and columns only.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from platform import python_version
from typing import Final

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from clients.data.small_numbers import check_floors
from clients.data.table_file import read_table
from clients.run.membership import (
    CONSORTIUM_SECRET,
    TABLE,
    check_code,
    pinned_agreement,
    read_consortium_secret,
    roster_position,
)
from clients.run.start import check_starting_model
from clients.secrets.enrolment import NODE_KEY, check_node_key, read_card
from clients.secrets.identity import Identity
from clients.secrets.identity_file import IDENTITY
from clients.secrets.self_check import check_backend
from clients.secrets.vault import Vault
from protocol.agreement import SiteId
from protocol.enrolment import fingerprint, in_groups
from protocol.errors import ConfigurationError, FederationError
from protocol.packing import RoundKind

_PACKAGE: Final = "cipherward"
_SPARE_BYTES: Final = 1 << 30
_KEPT_UPDATES: Final = 10
"""Updates' worth of disk that a run may take at a site: what it sends, gets, and keeps of both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check found.

    Attributes:
        name: What was checked.
        is_ok: Whether it can stay as it is.
        text: What was found, or what to do.
    """

    name: str
    is_ok: bool
    text: str


def findings(checks: dict[str, Callable[[], str]]) -> Iterator[Finding]:
    """Run checks, each whatever the others found.

    Args:
        checks: By name, functions that return what they found, or raise a FederationError that says what to do.
    """
    for name, check in checks.items():
        try:
            yield Finding(name=name, is_ok=True, text=check())
        except FederationError as error:
            yield Finding(name=name, is_ok=False, text=str(error))
        except OSError as error:
            yield Finding(name=name, is_ok=False, text=f"{error.filename or name}: {error.strerror}")


def vault_checks(vault: Vault, unlock: Callable[[], Identity]) -> dict[str, Callable[[], str]]:
    """Return the checks of a vault and of what is installed on its machine.

    Args:
        vault: The site's vault.
        unlock: Returns the vault's identity, with its passphrase if it needs one.
    """
    return {
        "identity": lambda: _identity(vault, unlock),
        "node key": lambda: _node_key(vault),
        "agreement": lambda: _agreement(vault),
        "code": lambda: _code(vault),
        "secret": lambda: _consortium_secret(vault),
        "table": lambda: check_table(vault),
        "model": lambda: check_starting_model(vault, pinned_agreement(vault)),
        "packages": _packages,
        "encryption": lambda: _encryption(vault),
        "disk": lambda: _disk(vault),
    }


def _identity(vault: Vault, unlock: Callable[[], Identity]) -> str:
    enrolled = read_card(vault).card
    if unlock().card(SiteId(enrolled.name)) != enrolled:
        raise ConfigurationError(f"{IDENTITY} is not the one of this site's card: restore both from one backup")
    return f"{enrolled.name}, {fingerprint(enrolled)}"


def _node_key(vault: Vault) -> str:
    check_node_key(vault, read_card(vault))
    return f"{NODE_KEY} is the card's"


def _agreement(vault: Vault) -> str:
    agreement = pinned_agreement(vault)
    position = roster_position(agreement, read_card(vault).card)
    return f"site {position + 1} of {len(agreement.roster)}; digest {in_groups(agreement.digest.hex())}"


def _code(vault: Vault) -> str:
    agreement = pinned_agreement(vault)
    check_code(agreement)
    return f"{agreement.code_digest[:16]}..., as agreed"


def _consortium_secret(vault: Vault) -> str:
    read_consortium_secret(vault, pinned_agreement(vault))
    return f"{CONSORTIUM_SECRET} is the agreement's, for this site only"


def check_table(vault: Vault) -> str:
    """Check the patients' table against the agreed schema and floors, and return what it holds.

    Raises:
        ConfigurationError: It is missing, breaks the schema (names line and column), or has too few patients.
    """
    terms = pinned_agreement(vault).terms
    if not vault.has(TABLE):
        raise ConfigurationError(f"put the patients' table into the vault as {TABLE}")
    table = read_table(vault.path(TABLE), terms.data)
    check_floors(table, terms.privacy, TABLE)
    return f"{TABLE}: {table.records} patients, as the schema of {terms.data.name} says"


def _packages() -> str:
    """Compare what is installed with what this release asks for."""
    try:
        wanted = [Requirement(text) for text in requires(_PACKAGE) or ()]
        python = SpecifierSet(metadata(_PACKAGE)["Requires-Python"])
    except PackageNotFoundError:
        raise ConfigurationError(f"{_PACKAGE} is not installed as a package: install the release with pip") from None
    wanted = [each for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})]
    complaints = [complaint for requirement in wanted if (complaint := _complaint(requirement))]
    if python_version() not in python:
        complaints.insert(0, f"Python is {python_version()}, the release needs {python}")
    if complaints:
        raise ConfigurationError(f"{'; '.join(complaints)}: install the release anew with pip")
    exact = sorted(each.name for each in wanted if str(each.specifier).startswith("=="))
    named = [f"Python {python_version()}", *(f"{name} {version(name)}" for name in exact)]
    return f"{', '.join(named)}; all {len(wanted)} packages are as released"


def _complaint(requirement: Requirement) -> str:
    try:
        installed = version(requirement.name)
    except PackageNotFoundError:
        return f"{requirement.name} is missing"
    is_right = requirement.specifier.contains(installed, prereleases=True)
    return "" if is_right else f"{requirement.name} is {installed}, the release needs {requirement.specifier}"


def _encryption(vault: Vault) -> str:
    parameters = pinned_agreement(vault).parameters
    check_backend(parameters)
    return f"SEAL computes as it should with N = {parameters.ring_degree} and {parameters.modulus_bits} bits"


def _disk(vault: Vault) -> str:
    agreement = pinned_agreement(vault)
    values = max(agreement.plan(kind).values for kind in RoundKind)
    needed = _SPARE_BYTES + _KEPT_UPDATES * agreement.parameters.update_bytes(values)
    free = shutil.disk_usage(vault.directory).free
    if free < needed:
        raise ConfigurationError(f"{free / 1e9:.1f} GB are free, a run may need {needed / 1e9:.1f} GB")
    return f"{free / 1e9:.0f} GB are free"
