"""What `cipherward site check` looks at in a vault: whatever is wrong is found, and all the rest still told."""

from __future__ import annotations

import shutil
from collections import namedtuple

import pytest
from next_agreement import next_agreement
from packaging.requirements import Requirement

import clients.node.readiness
from clients.node.readiness import findings, vault_checks
from clients.run.membership import AGREEMENT, CONSORTIUM_SECRET, PIN, TABLE
from clients.run.start import STARTING_MODELS, share_starting_model, take_starting_model
from clients.secrets.enrolment import CARD, NODE_KEY, enrol
from clients.secrets.identity import Identity
from clients.secrets.identity_file import IDENTITY, read_identity
from clients.secrets.secret import SecretBytes
from clients.secrets.vault import Vault
from protocol.agreement import SiteId
from protocol.errors import BackendError, ConfigurationError

OF_VAULT = ("identity", "node key", "agreement", "code", "secret", "table", "model", "packages", "encryption", "disk")
OF_AGREEMENT = {"agreement", "code", "secret", "table", "model", "encryption", "disk"}


def failures(vault, unlock=None):
    """Return name -> advice of the checks that failed; all have run."""
    found = list(findings(vault_checks(vault, unlock or (lambda: read_identity(vault)))))
    assert tuple(finding.name for finding in found) == OF_VAULT
    assert all(finding.text and "\n" not in finding.text for finding in found)
    return {finding.name: finding.text for finding in found if not finding.is_ok}


@pytest.fixture
def vault(founded):
    return founded.vault(1)


def test_a_site_that_is_ready_has_nothing_to_do(vault):
    assert failures(vault) == {}


def test_each_missing_file_fails_its_checks_and_no_others(vault):
    for name, broken in {
        IDENTITY: {"identity"},
        NODE_KEY: {"node key"},
        CARD: {"identity", "node key", "agreement"},
        AGREEMENT: OF_AGREEMENT,
        PIN: OF_AGREEMENT,
        CONSORTIUM_SECRET: {"secret"},
        TABLE: {"table"},
    }.items():
        content = vault.read(name)
        vault.delete(name)
        found = failures(vault)
        assert set(found) == broken, name
        assert all(name in text or "site enrol" in text for text in found.values())
        assert name not in (AGREEMENT, PIN) or all("cipherward agreement pin" in text for text in found.values())
        vault.write(name, content)
    assert failures(vault) == {}


def test_a_vault_with_nothing_in_it_is_told_all_of_it(tmp_path):
    found = failures(Vault(tmp_path / "empty"))

    assert set(found) == set(OF_VAULT) - {"packages"}


@pytest.mark.parametrize(
    ("name", "check"), [(IDENTITY, "identity"), (NODE_KEY, "node key"), (CONSORTIUM_SECRET, "secret")]
)
def test_a_secret_that_others_may_read_is_found(vault, name, check):
    vault.path(name).chmod(0o640)

    assert "may be read by others" in failures(vault)[check]


def test_another_s_identity_is_found(vault):
    found = failures(vault, Identity.generate)

    assert set(found) == {"identity"}
    assert "is not the one of this site's card" in found["identity"]


def test_a_passphrase_that_does_not_open_is_one_failure_of_many(vault):
    def unlock():
        raise ConfigurationError("the passphrase does not open identity.secret")

    assert failures(vault, unlock) == {"identity": "the passphrase does not open identity.secret"}


def test_an_agreement_of_others_is_found(vault, tmp_path):
    for name in (CARD, IDENTITY, NODE_KEY):
        vault.delete(name)
    enrol(vault, SiteId("stranger"))

    found = failures(vault)

    assert set(found) == {"agreement"}
    assert "does not hold the card of this site, stranger" in found["agreement"]


def test_another_release_is_found(vault, monkeypatch):
    monkeypatch.setattr("clients.run.membership.code_digest", lambda: "0" * 64)

    assert "install the release" in failures(vault)["code"]


def test_a_secret_of_another_length_is_found(vault):
    vault.write_secret(CONSORTIUM_SECRET, SecretBytes(b"Z" * 33))

    assert failures(vault) == {"secret": "consortium.secret does not hold 32 bytes"}


def test_another_secret_than_the_agreement_s_is_found(vault):
    vault.write_secret(CONSORTIUM_SECRET, SecretBytes(bytes(32)))

    found = failures(vault)

    assert set(found) == {"secret"}
    assert "not the one that the agreement was made with: ask the coordinator" in found["secret"]


def test_a_cell_that_breaks_the_schema_is_named_by_line_and_column_and_not_shown(vault):
    lines = vault.read(TABLE).decode().splitlines()
    cells = lines[3].split(",")
    cells[0] = "seventeen"
    vault.write(TABLE, "\n".join([*lines[:3], ",".join(cells), *lines[4:]]).encode())

    text = failures(vault)["table"]

    assert "line 4, column '" in text
    assert "not a number" in text
    assert "seventeen" not in text


def test_too_few_patients_are_found(vault):
    lines = vault.read(TABLE).splitlines()
    vault.write(TABLE, b"\n".join(lines[:6]))

    assert "privacy.smallest_records" in failures(vault)["table"]


def test_a_missing_or_damaged_starting_model_is_found(closed):
    joined = next_agreement(closed, sites=5, start_from=0)
    old, new = joined.vault(1), joined.vault(4)

    assert "cipherward site share-model" in failures(new)["model"]
    assert failures(old) == {}
    assert not old.has(STARTING_MODELS)  # a check changes nothing
    take_starting_model(joined.member(4), share_starting_model(joined.member(1), joined.member(4).name))
    assert failures(old) == failures(new) == {}
    (file,) = new.path(STARTING_MODELS).iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    assert "is damaged" in failures(new)["model"]


def test_packages_that_are_not_the_release_s_are_named(vault, monkeypatch):
    monkeypatch.setattr(
        clients.node.readiness,
        "requires",
        lambda name: ["torch==1.0", "numpy<1", "no-such-package>=2", "httpx>=0.1", 'ruff<0 ; extra == "dev"'],
    )
    monkeypatch.setattr(clients.node.readiness, "python_version", lambda: "3.9.2")

    text = failures(vault)["packages"]

    assert "Python is 3.9.2" in text
    assert "torch is " in text
    assert "numpy is " in text
    assert "no-such-package is missing" in text
    assert "httpx" not in text
    assert "ruff" not in text


def test_the_release_itself_must_be_installed(vault, monkeypatch):
    monkeypatch.setattr(clients.node.readiness, "_PACKAGE", "no-such-package")

    assert "pip" in failures(vault)["packages"]


def test_a_local_build_of_a_pinned_version_counts_as_that_version(monkeypatch):
    monkeypatch.setattr(clients.node.readiness, "version", lambda name: "2.13.0+cpu")

    assert clients.node.readiness._complaint(Requirement("torch==2.13.0")) == ""


def test_a_backend_that_differs_is_found(vault, monkeypatch):
    def refuse(parameters):
        raise BackendError("SEAL derives different keys from one seed")

    monkeypatch.setattr(clients.node.readiness, "check_backend", refuse)

    assert failures(vault) == {"encryption": "SEAL derives different keys from one seed"}


def test_a_full_disk_is_found(vault, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12, 10**9))

    assert failures(vault)["disk"].startswith("1.0 GB are free, a run may need 1.1 GB")


def test_a_directory_in_the_table_s_place_is_an_answer_too(vault):
    vault.delete(TABLE)
    vault.path(TABLE).mkdir()

    assert set(failures(vault)) == {"table"}


def test_a_finding_is_made_of_any_failure_that_the_machine_may_have():
    def fail():
        raise PermissionError(13, "Permission denied", "/somewhere")

    (finding,) = findings({"thing": fail})

    assert not finding.is_ok
    assert finding.text == "/somewhere: Permission denied"
