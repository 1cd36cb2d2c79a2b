"""What `cipherward provider init` makes and refuses, and what the other commands say without it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from protocol.errors import ConfigurationError
from scripts.cli import app
from scripts.provider.directory import SETTINGS as SETTINGS_NAME
from scripts.provider.directory import OwnCertificate, ProviderDirectory, ProviderSettings, write_whole
from server.tls import Authority, TlsFiles, check_certificates

SETTINGS = ProviderSettings(hosts=("fl.example.org", "10.0.0.1"), listen="127.0.0.1", port=9092)


def cipherward(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture
def own(tmp_path):
    """A certificate that somebody else made."""
    directory = tmp_path / "house"
    directory.mkdir()
    files = TlsFiles(directory=directory)
    authority = Authority.generate()
    authority.write(files)
    authority.issue(files, SETTINGS.hosts)
    return OwnCertificate(certificate=files.certificate, key=files.key, authority=files.authority)


def test_init_makes_settings_and_certificates_and_says_what_hospitals_need(tmp_path):
    done = cipherward("provider", "init", "--directory", tmp_path / "p", "--host", "fl.example.org", "--port", "9443")

    assert done.exit_code == 0
    provider = ProviderDirectory(tmp_path / "p")
    assert str(provider.tls.authority) in done.output
    assert "ca.key" not in done.output
    assert json.loads((tmp_path / "p" / "provider.json").read_text()) == {
        "hosts": ["fl.example.org"],
        "listen": "0.0.0.0",
        "port": 9443,
    }
    assert provider.settings().address == "fl.example.org:9443"
    check_certificates(provider.tls, ("fl.example.org", "127.0.0.1", "localhost"))
    assert (tmp_path / "p").stat().st_mode & 0o077 == 0


def test_a_directory_that_was_there_is_made_private(tmp_path):
    (tmp_path / "p").mkdir(mode=0o755)

    ProviderDirectory(tmp_path / "p").found(SETTINGS, None)

    assert (tmp_path / "p").stat().st_mode & 0o077 == 0


def test_init_overwrites_nothing(tmp_path):
    ProviderDirectory(tmp_path / "p").found(SETTINGS, None)
    before = (tmp_path / "p" / "tls" / "ca.crt").read_bytes()

    with pytest.raises(ConfigurationError, match="not empty"):
        cipherward("provider", "init", "--directory", tmp_path / "p", "--host", "fl.example.org")
    assert (tmp_path / "p" / "tls" / "ca.crt").read_bytes() == before


def test_a_certificate_of_one_s_own_is_copied_and_no_authority_key_is_there(tmp_path, own):
    provider = ProviderDirectory(tmp_path / "p")

    provider.found(SETTINGS, own)

    check_certificates(provider.tls, SETTINGS.hosts)
    assert sorted(path.name for path in provider.tls.directory.iterdir()) == ["ca.crt", "server.crt", "server.key"]


def test_a_certificate_for_other_names_is_refused_and_another_try_is_possible(tmp_path, own):
    provider = ProviderDirectory(tmp_path / "p")
    other = ProviderSettings(hosts=("other.example.org",), listen="127.0.0.1", port=9092)

    with pytest.raises(ConfigurationError, match=r"as other\.example\.org"):
        provider.found(other, own)
    provider.found(SETTINGS, own)


def test_half_a_certificate_is_refused(tmp_path, own):
    with pytest.raises(ConfigurationError, match="all three"):
        cipherward("provider", "init", "--directory", tmp_path / "p", "--host", "a", "--ca", own.authority)


@pytest.mark.parametrize(
    "command", [("provider", "start"), ("provider", "status"), ("submit",), ("logs",), ("provider", "expel", "a")]
)
def test_without_a_provider_s_directory_each_command_says_how_to_make_one(tmp_path, command):
    with pytest.raises(ConfigurationError, match="cipherward provider init"):
        cipherward(*command, "--directory", tmp_path)


@pytest.mark.parametrize("command", [("provider", "expel", "a"), ("submit", "federation.sites=3")])
def test_what_needs_a_running_provider_says_how_to_start_it(tmp_path, command):
    provider = ProviderDirectory(tmp_path / "p")
    provider.found(SETTINGS, None)
    for directory in (provider.runs, provider.admitted):
        directory.mkdir()

    with pytest.raises(ConfigurationError, match="cipherward provider start"):
        cipherward(*command, "--directory", provider.path)
    assert provider.run_names() == []


@pytest.mark.parametrize("damage", ["", "[]", '{"hosts": [], "listen": "", "port": 1}', '{"hosts": ["a"], "port": 1}'])
def test_damaged_settings_are_refused(tmp_path, damage):
    (tmp_path / "provider.json").write_text(damage)

    with pytest.raises(ConfigurationError):
        ProviderDirectory(tmp_path).settings()


def test_a_run_is_asked_for_by_name_only(tmp_path):
    provider = ProviderDirectory(tmp_path)
    for name in ("..", "2026-01-31_12-00-00/..", "2026-01-31_12-00-00"):
        with pytest.raises(ConfigurationError):
            provider.run(name)


def test_what_is_written_whole_is_on_disk_with_its_name_and_so_are_the_directories_that_hold_it(tmp_path, monkeypatch):
    provider, synced = ProviderDirectory(tmp_path / "provider"), []
    monkeypatch.setattr(
        "os.fsync", lambda descriptor: synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
    )

    provider.found(SETTINGS, None)
    assert synced[-3:] == [f"{SETTINGS_NAME}.partial", "provider", tmp_path.name]

    synced.clear()
    provider.prepare_inner(1)
    assert synced == ["provider"]
    write_whole(provider.admitted / "basel.node", b"1")
    assert synced == ["provider", "basel.node.partial", "admitted"]
