"""What travels with a run: the packages, and nothing that lies beside or between them; opened and looked at."""

from __future__ import annotations

import shutil
import subprocess
import zipfile

import pytest

from clients.run.code import code_digest
from clients.run.pinned_run import bundle_code_digest
from scripts.environment import flower_environment, program, project_root

CANARY = b'{"canary": 4711}\n'
PLACES = ["cleveland", "local/sites/va", "provider/runs/2026-01-31_12-00-00", "clients/vault", "conf/data/vault"]
FILES = ["card.json", "journal.jsonl", "metrics.jsonl", "agreement.json", "data.csv", "identity.secret", "node.key"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """The bundle of a copy of this project in which people have left their vaults everywhere."""
    home = tmp_path_factory.mktemp("bundle")
    project = home / "project"
    names = ["clients", "conf", "protocol", "server", "strategies", "scripts", "tests"]
    for name in names:
        shutil.copytree(project_root() / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ["pyproject.toml", "README.md", "LICENSE", ".gitignore"]:
        shutil.copy(project_root() / name, project)
    for place in PLACES:
        (project / place).mkdir(parents=True)
        for file in FILES:
            (project / place / file).write_bytes(CANARY)
    command = [program("flwr"), "build", "--app", str(project)]
    subprocess.run(command, cwd=home, env=flower_environment(home), check=True, capture_output=True, timeout=120)
    (built,) = home.glob("*.fab")
    return built


def test_no_vault_no_data_and_no_key_is_in_the_bundle(bundle):
    with zipfile.ZipFile(bundle) as archive:
        names = [name for name in archive.namelist() if not name.startswith(".info/")]
        contents = [archive.read(name) for name in names]

    assert not any(b"4711" in content for content in contents)
    assert {name.split("/")[0] for name in names} == {
        "clients", "conf", "protocol", "server", "strategies", "pyproject.toml",
    }  # fmt: skip
    assert {name.rpartition(".")[2] for name in names} == {"py", "yaml", "toml"}


def test_its_code_is_what_an_agreement_of_this_release_names(bundle):
    assert bundle_code_digest(bundle.read_bytes()) == code_digest()
