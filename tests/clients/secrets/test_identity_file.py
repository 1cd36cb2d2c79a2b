"""An identity on disk: plain, or of no use to a thief without the passphrase."""

from __future__ import annotations

import hashlib

import pytest
from hostile import flipped

import clients.secrets.identity_file
from clients.secrets.identity import Identity
from clients.secrets.identity_file import (
    IDENTITY,
    PASSPHRASE_FILE_VARIABLE,
    is_encrypted,
    passphrase_from_file,
    read_identity,
    write_identity,
)
from clients.secrets.secret import SecretBytes
from clients.secrets.vault import Vault
from protocol.errors import ConfigurationError

PASSPHRASE = SecretBytes(b"correct horse battery staple")


@pytest.fixture
def vault(tmp_path):
    return Vault(tmp_path / "vault")


@pytest.fixture
def quick(monkeypatch):
    """Spend no seconds on key stretching where it is not what the test is about."""
    monkeypatch.setattr(clients.secrets.identity_file, "_SCRYPT_N", 2)


def test_without_a_passphrase_the_file_is_the_two_keys(vault):
    identity = Identity.generate()
    write_identity(vault, identity, None)

    assert vault.read(IDENTITY) == identity.to_secret().reveal()
    assert not is_encrypted(vault)
    assert read_identity(vault).to_secret() == identity.to_secret()
    assert read_identity(vault, PASSPHRASE).to_secret() == identity.to_secret()


def test_with_a_passphrase_the_file_holds_neither_key_and_opens_with_it_alone(vault):
    identity = Identity.generate()
    write_identity(vault, identity, PASSPHRASE)
    data, raw = vault.read(IDENTITY), identity.to_secret().reveal()

    assert is_encrypted(vault)
    assert raw[:32] not in data
    assert raw[32:] not in data
    assert PASSPHRASE.reveal() not in data
    assert data.startswith(b"cipherward identity 1: scrypt n=2^17 r=8 p=1, ChaCha20-Poly1305\n")
    assert vault.path(IDENTITY).stat().st_mode & 0o777 == 0o600
    assert read_identity(vault, PASSPHRASE).to_secret() == identity.to_secret()
    with pytest.raises(ConfigurationError, match="does not open") as refusal:
        read_identity(vault, SecretBytes(b"correct horse battery stable"))
    assert "battery" not in str(refusal.value)


def test_the_same_identity_is_never_encrypted_to_the_same_bytes(vault, quick):
    identity = Identity.generate()
    write_identity(vault, identity, PASSPHRASE)
    first = vault.read(IDENTITY)
    write_identity(vault, identity, PASSPHRASE)

    start = first.index(b"\n") + 1
    assert vault.read(IDENTITY)[start : start + 16] != first[start : start + 16]
    assert vault.read(IDENTITY)[start + 16 :] != first[start + 16 :]


def test_an_encrypted_identity_without_a_passphrase_says_what_to_do(vault, quick):
    write_identity(vault, Identity.generate(), PASSPHRASE)

    with pytest.raises(ConfigurationError, match=PASSPHRASE_FILE_VARIABLE):
        read_identity(vault)


def test_a_damaged_file_is_not_taken_for_a_wrong_passphrase(vault, quick):
    write_identity(vault, Identity.generate(), PASSPHRASE)
    data = vault.read(IDENTITY)

    for changed in [
        *(flipped(data, bit) for bit in range(0, 8 * len(data), 7)),
        data[:-1],
        data[:64],
        data[:30],
        data + b"\0",
    ]:
        vault.write_secret(IDENTITY, SecretBytes(changed))
        with pytest.raises(ConfigurationError, match="is damaged") as refusal:
            read_identity(vault, PASSPHRASE)
        assert len(str(refusal.value)) < 100


def test_the_header_is_authenticated(vault, quick, monkeypatch):
    write_identity(vault, Identity.generate(), PASSPHRASE)
    header = clients.secrets.identity_file._HEADER
    other = header.replace(b"2^17", b"2^01")
    monkeypatch.setattr(clients.secrets.identity_file, "_HEADER", other)
    content = vault.read(IDENTITY)[:-32].replace(header, other)
    vault.write_secret(IDENTITY, SecretBytes(content + hashlib.sha256(content).digest()))

    with pytest.raises(ConfigurationError, match="does not open"):
        read_identity(vault, PASSPHRASE)


def test_a_file_that_asks_for_other_work_is_not_even_tried(vault, quick):
    write_identity(vault, Identity.generate(), PASSPHRASE)
    content = vault.read(IDENTITY)[:-32].replace(b"n=2^17", b"n=2^30")
    vault.write_secret(IDENTITY, SecretBytes(content + hashlib.sha256(content).digest()))

    with pytest.raises(ConfigurationError, match="is damaged"):
        read_identity(vault, PASSPHRASE)


@pytest.mark.parametrize("passphrase", [b"", b"swordfish", b"elevenchars"])
def test_a_short_passphrase_is_refused_without_being_repeated(vault, passphrase):
    with pytest.raises(ConfigurationError, match="shorter than 12") as refusal:
        write_identity(vault, Identity.generate(), SecretBytes(passphrase))
    assert not vault.has(IDENTITY)
    assert not passphrase or passphrase.decode() not in str(refusal.value)


def test_an_identity_that_others_may_read_is_refused(vault, quick):
    write_identity(vault, Identity.generate(), PASSPHRASE)
    vault.path(IDENTITY).chmod(0o644)

    for look in (is_encrypted, lambda vault: read_identity(vault, PASSPHRASE)):
        with pytest.raises(ConfigurationError, match="may be read by others"):
            look(vault)


def test_a_service_gives_its_passphrase_in_a_file(tmp_path, monkeypatch):
    monkeypatch.delenv(PASSPHRASE_FILE_VARIABLE, raising=False)
    assert passphrase_from_file() is None

    path = tmp_path / "passphrase"
    monkeypatch.setenv(PASSPHRASE_FILE_VARIABLE, str(path))
    with pytest.raises(ConfigurationError, match="No such file"):
        passphrase_from_file()

    path.write_bytes(PASSPHRASE.reveal() + b"\r\n")
    path.chmod(0o604)
    with pytest.raises(ConfigurationError, match="may be read by everybody"):
        passphrase_from_file()

    path.chmod(0o440)
    assert passphrase_from_file() == PASSPHRASE
