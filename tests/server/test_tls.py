"""Certificates: what is made is trusted by whoever has the authority; what does not fit is refused when it comes."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

import server.tls
from protocol.errors import ConfigurationError
from server.tls import Authority, TlsFiles, check_certificates, copy_certificates, days_left

HOSTS = ("fl.example.org", "10.1.2.3")


def issued(directory, hosts=HOSTS, authority=None):
    directory.mkdir()
    files = TlsFiles(directory=directory)
    authority = authority or Authority.generate()
    authority.write(files)
    authority.issue(files, hosts)
    return files


@pytest.fixture
def files(tmp_path):
    return issued(tmp_path / "tls")


def certificate(path):
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_whoever_has_the_authority_trusts_the_server_under_all_its_names(files):
    check_certificates(files, (*HOSTS, "127.0.0.1", "localhost"))
    assert 395 < days_left(files) < 397


def test_the_authority_signs_servers_and_nothing_below_them(files):
    authority = certificate(files.authority)
    usage = authority.extensions.get_extension_for_class(x509.KeyUsage).value
    basic = authority.extensions.get_extension_for_class(x509.BasicConstraints).value

    assert isinstance(authority.public_key().curve, ec.SECP256R1)
    assert (basic.ca, basic.path_length) == (True, 0)
    assert usage.key_cert_sign
    assert not any([usage.digital_signature, usage.crl_sign, usage.key_agreement, usage.key_encipherment])
    assert authority.not_valid_after_utc - authority.not_valid_before_utc == timedelta(days=3650)


def test_the_server_certificate_is_for_servers_only(files):
    server_certificate = certificate(files.certificate)
    extensions = server_certificate.extensions

    purposes = list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    assert purposes == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert server_certificate.not_valid_before_utc < datetime.now(UTC)


def test_keys_are_the_owners_alone_and_nothing_is_overwritten(files):
    assert [path.stat().st_mode & 0o777 for path in (files.authority_key, files.key)] == [0o600, 0o600]
    before = {path: path.read_bytes() for path in files.directory.iterdir()}

    with pytest.raises(FileExistsError):
        Authority.generate().write(files)
    with pytest.raises(FileExistsError):
        Authority.load(files).issue(files, HOSTS)
    assert {path: path.read_bytes() for path in files.directory.iterdir()} == before


def test_an_authority_that_was_written_issues_again(files):
    files.certificate.unlink()
    files.key.unlink()

    Authority.load(files).issue(files, ("new.example.org",))

    check_certificates(files, ("new.example.org",))


def test_an_authority_whose_key_is_anothers_is_refused(files, tmp_path):
    shutil.copy(issued(tmp_path / "other").authority_key, files.authority_key)

    with pytest.raises(ConfigurationError, match="is not the key of"):
        Authority.load(files)


def test_a_name_that_the_certificate_lacks_is_named(files):
    with pytest.raises(ConfigurationError, match=r"as other\.example\.org"):
        check_certificates(files, (*HOSTS, "other.example.org"))


def test_a_key_of_another_certificate_is_refused(files, tmp_path):
    shutil.copy(issued(tmp_path / "other").key, files.key)

    with pytest.raises(ConfigurationError, match="do not belong together"):
        check_certificates(files, HOSTS)


def test_a_certificate_of_another_authority_is_refused(files, tmp_path):
    shutil.copy(issued(tmp_path / "other").authority, files.authority)

    with pytest.raises(ConfigurationError, match="would not trust"):
        check_certificates(files, HOSTS)


def test_a_certificate_that_has_ended_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(server.tls, "SERVER_DAYS", 0)
    monkeypatch.setattr(server.tls, "_CLOCK_TOLERANCE", timedelta(days=1))
    files = issued(tmp_path / "tls")

    with pytest.raises(ConfigurationError, match="expired"):
        check_certificates(files, HOSTS)
    assert days_left(files) < 0


@pytest.mark.parametrize("damaged", ["authority", "certificate", "key"])
def test_a_file_that_holds_no_such_thing_is_refused(files, damaged):
    getattr(files, damaged).write_text("nothing of the kind\n")

    with pytest.raises(ConfigurationError):
        check_certificates(files, HOSTS)


@pytest.mark.parametrize("host", ["", "a b", "https://fl.example.org", "fl.example.org:9092", "käse.example"])
def test_what_is_no_host_is_refused(tmp_path, host):
    with pytest.raises(ConfigurationError):
        issued(tmp_path / "tls", (host,))


def test_a_certificate_from_elsewhere_is_copied(files, tmp_path):
    (tmp_path / "copy").mkdir()
    copy = TlsFiles(directory=tmp_path / "copy")

    copy_certificates(copy, certificate=files.certificate, key=files.key, authority=files.authority)

    check_certificates(copy, HOSTS)
    assert copy.key.stat().st_mode & 0o777 == 0o600
    assert not copy.authority_key.exists()


def test_a_file_that_is_not_there_is_named(files, tmp_path):
    (tmp_path / "copy").mkdir()
    copy = TlsFiles(directory=tmp_path / "copy")

    with pytest.raises(ConfigurationError, match="no-such-file"):
        copy_certificates(copy, certificate=files.certificate, key=tmp_path / "no-such-file", authority=files.authority)
