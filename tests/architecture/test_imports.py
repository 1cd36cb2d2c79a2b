from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import protocol

PROJECT = Path(protocol.__file__).parents[1]
VECTORS = PROJECT / "tests" / "vectors"
LINTER = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["importlinter"]
CONTRACTS = [contract["name"] for contract in LINTER["contracts"]]

PROVIDER_LAYERS = "Imports go one way: scripts -> server -> strategies -> protocol"
HOSPITAL_LAYERS = "The hospital's side: scripts -> clients -> protocol"
ROOMS = "Inside the hospital: who learns knows no run, and who reads a table knows no key"
NEVER_MEET = "The provider's packages and the hospital's never meet"
NO_STRATEGIES = "Hospitals do not load the provider's strategies, nor they the hospitals' code"
HYDRA_AT_THE_EDGE = "Hydra is known at the edge only"
CONF_ALONE = "conf builds on protocol alone"
SEAL_BY_PROTOCOL = "The provider's packages reach SEAL through protocol alone"
VIOLATIONS = [
    (PROVIDER_LAYERS, "protocol.schedule", "strategies.round_sum"),
    (PROVIDER_LAYERS, "protocol.schedule", "server.record"),
    (PROVIDER_LAYERS, "strategies.journal", "server.record"),
    (PROVIDER_LAYERS, "server.record", "scripts.simulation.summary_table"),
    (HOSPITAL_LAYERS, "protocol.schedule", "clients.secrets.secret"),
    (HOSPITAL_LAYERS, "clients.secrets.secret", "scripts.simulation.summary_table"),
    (ROOMS, "clients.data.table", "clients.secrets.keys"),
    (ROOMS, "clients.secrets.secret", "clients.data.table"),
    (ROOMS, "clients.learning.models", "clients.run.results"),
    (ROOMS, "clients.run.site", "clients.node.supernode"),
    (NEVER_MEET, "server.record", "clients.secrets.secret"),
    (NEVER_MEET, "clients.secrets.secret", "server.record"),
    (NO_STRATEGIES, "strategies.round_sum", "clients.secrets.secret"),
    (NO_STRATEGIES, "clients.secrets.secret", "strategies.round_sum"),
    (HYDRA_AT_THE_EDGE, "protocol.terms", "omegaconf"),
    (HYDRA_AT_THE_EDGE, "clients.secrets.secret", "hydra"),
    (CONF_ALONE, "conf.schema", "clients.secrets.secret"),
    (CONF_ALONE, "conf.schema", "strategies.journal"),
    (SEAL_BY_PROTOCOL, "strategies.round_sum", "tenseal"),
    (SEAL_BY_PROTOCOL, "server.record", "tenseal"),
]

LOAD_PACKAGES = """
import importlib, pkgutil, sys
for name in sys.argv[1:]:
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, name + "."):
        importlib.import_module(module.name)
print(*sys.modules)
"""

SUM_GOLDEN_UPDATES = """
import sys
from pathlib import Path
from protocol.agreement import Agreement
from protocol.rounds import RoundTerms, UpdateHeader
from strategies.round_sum import RoundSum

def golden(name):
    return Path(sys.argv[1], name + ".bin").read_bytes()

header = UpdateHeader.from_bytes(golden("header"))
terms = RoundTerms(
    agreement=Agreement.from_bytes(golden("agreement")),
    session=header.session,
    epoch=header.epoch,
    round=header.round,
    cohort=(0, 1, 3),
    state=header.state,
)
total = RoundSum(terms)
for site in terms.cohort:
    total.add(golden(f"update_{site}"))
if total.close().to_bytes() != golden("aggregate"):
    sys.exit("another sum")
print(*sys.modules)
"""

SUM_AND_EXPAND = """
import sys
sys.path.insert(0, sys.argv[1])
from consortium import COHORT, Consortium, golden
from strategies.round_sum import RoundSum

if "tenseal" in sys.modules:
    sys.exit("loaded before anything is to be expanded")
consortium = Consortium(largest_seeded_cohort=2)
terms = consortium.terms()
total = RoundSum(terms)
for site in COHORT:
    total.add(consortium.update(terms, site).to_bytes())
if total.close().to_bytes() != golden("aggregate_expanded"):
    sys.exit("another sum")
print(*sys.modules)
"""


def modules_after(program, *arguments):
    """Run a program in a fresh process of this project; return the names of all modules it has loaded."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def roots(modules):
    return {module.partition(".")[0] for module in modules}


def modules_of(*packages):
    """Return the dotted names of the packages' source files."""
    paths = [path.relative_to(PROJECT) for package in packages for path in (PROJECT / package).rglob("*.py")]
    return {".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in paths}


def lint(tree):
    linter = Path(sys.executable).with_name("lint-imports")
    return subprocess.run(
        [linter, "--no-cache"],
        cwd=tree,
        env=os.environ | {"COLUMNS": "300"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def tree(tmp_path):
    """A copy of the project's packages, in which imports can be planted."""
    for package in LINTER["root_packages"]:
        shutil.copytree(PROJECT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROJECT / "pyproject.toml", tmp_path)
    return tmp_path


def test_all_import_contracts_hold(tree):
    done = lint(tree)

    assert done.returncode == 0, done.stdout + done.stderr
    for contract in CONTRACTS:
        assert f"{contract} KEPT" in done.stdout


@pytest.mark.parametrize(("contract", "importer", "imported"), VIOLATIONS)
def test_a_planted_import_breaks_its_contract(tree, contract, importer, imported):
    source = tree.joinpath(*importer.split(".")).with_suffix(".py")
    source.write_text(f"{source.read_text()}\nimport {imported}\n")

    done = lint(tree)

    assert done.returncode != 0
    assert f"{contract} BROKEN" in done.stdout
    assert re.search(rf"{re.escape(importer)} -> {re.escape(imported)}\b", done.stdout)


def test_every_contract_is_shown_to_break():
    assert {contract for contract, _, _ in VIOLATIONS} == set(CONTRACTS)


def test_protocol_and_strategies_load_neither_secrets_nor_what_handles_them():
    modules = modules_after(LOAD_PACKAGES, "protocol", "strategies")

    assert modules_of("protocol", "strategies") <= set(modules)
    assert not roots(modules) & {"clients", "tenseal", "torch", "server", "scripts", "conf", "hydra", "omegaconf"}


def test_the_providers_server_loads_neither_secrets_nor_what_handles_them():
    modules = modules_after(LOAD_PACKAGES, "protocol", "strategies", "server")

    assert modules_of("protocol", "strategies", "server") <= set(modules)
    assert not roots(modules) & {"clients", "tenseal", "torch", "scripts"}


def test_adding_real_updates_and_closing_the_sum_loads_neither_tenseal_nor_clients():
    modules = modules_after(SUM_GOLDEN_UPDATES, str(VECTORS))

    assert "strategies.round_sum" in modules
    assert not roots(modules) & {"clients", "tenseal", "torch", "hydra", "server", "scripts", "conf"}


def test_only_a_large_cohort_s_sum_loads_tenseal_and_it_loads_nothing_of_clients_either():
    modules = modules_after(SUM_AND_EXPAND, str(VECTORS))

    assert "tenseal" in roots(modules)
    assert not roots(modules) & {"clients", "torch", "hydra", "server", "scripts", "conf"}


def test_what_the_tests_above_look_for_is_there_where_ciphertexts_are_made():
    modules = modules_after("import sys, clients.secrets.ckks; print(*sys.modules)")

    assert {"clients", "tenseal"} <= roots(modules)
