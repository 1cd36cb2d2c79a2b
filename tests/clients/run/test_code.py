"""The digest of the code that runs at a site: any change of that code changes it, nothing else does."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

import pytest

import clients.run.code
from clients.run.code import PACKAGES, code_digest

ROOT = Path(clients.run.code.__file__).parents[2]


@pytest.fixture
def installation(tmp_path, monkeypatch):
    """A second installation of the site's packages, whose digest `digest_of` returns."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(clients.run.code, "__file__", str(tmp_path / "clients" / "run" / "code.py"))
    return tmp_path


def digest_on_disk():
    return code_digest.__wrapped__()


def test_the_digest_is_the_same_wherever_the_code_is_installed(installation, monkeypatch):
    elsewhere = digest_on_disk()
    monkeypatch.undo()

    assert elsewhere == digest_on_disk()
    assert len(bytes.fromhex(elsewhere)) == 32


def test_all_that_a_site_s_code_imports_counts():
    ours = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    for package in PACKAGES:
        for source in (ROOT / package).rglob("*.py"):
            nodes = ast.walk(ast.parse(source.read_text()))
            imported = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
            assert {name.split(".")[0] for name in imported} & ours <= set(PACKAGES), source


def test_the_digest_is_taken_once_per_process():
    assert code_digest() == code_digest()
    assert code_digest.cache_info().currsize == 1


@pytest.mark.parametrize("package", PACKAGES)
def test_one_byte_in_any_package_changes_the_digest(installation, package):
    before = digest_on_disk()
    source = next((installation / package).glob("*.py"))
    source.write_bytes(source.read_bytes() + b" ")

    assert digest_on_disk() != before


def test_a_new_or_renamed_file_changes_the_digest(installation):
    before = digest_on_disk()

    (installation / "clients" / "extra.py").touch()
    with_extra = digest_on_disk()
    (installation / "clients" / "extra.py").rename(installation / "clients" / "other.py")

    assert len({before, with_extra, digest_on_disk()}) == 3


def test_the_provider_s_code_and_compiled_files_do_not_count(installation):
    before = digest_on_disk()
    (installation / "server").mkdir()
    (installation / "server" / "app.py").write_text("print()\n")
    (installation / "clients" / "code.pyc").write_bytes(b"compiled")

    assert digest_on_disk() == before
