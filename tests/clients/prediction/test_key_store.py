"""Prediction keys in a vault: made, replaced, deleted, found by the id that an answer names."""

from __future__ import annotations

import stat

import pytest

from clients.prediction.key_store import KEYS, KeyStore
from clients.secrets.identity_file import IDENTITY
from clients.secrets.vault import Vault
from protocol.errors import ConfigurationError
from protocol.prediction.messages import PublicKey, key_id
from protocol.prediction.parameters import LINEAR, QUADRATIC


@pytest.fixture
def store(vault) -> KeyStore:
    return KeyStore(vault)


def log(vault):
    return vault.path("events.jsonl").read_bytes()


def test_the_secret_is_32_bytes_that_only_their_owner_reads(vault, store):
    path = vault.path(f"{KEYS}/1/key.secret")

    assert len(path.read_bytes()) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_public_key_stays_the_one_that_was_given_away(store):
    first = store.current().public_key(LINEAR)

    assert store.current().public_key(LINEAR) == first
    PublicKey.from_bytes(first, LINEAR)
    assert list(store.current().given_away()) == [(LINEAR, first)]


def test_one_secret_serves_all_parameter_sets(store):
    key = store.current()

    PublicKey.from_bytes(key.public_key(QUADRATIC), QUADRATIC)
    assert store.find(key_id(key.public_key(QUADRATIC))) == (key, QUADRATIC)
    assert store.find(key_id(key.public_key(LINEAR))) == (key, LINEAR)


def test_a_second_first_key_is_refused(store):
    with pytest.raises(ConfigurationError, match="keys rotate"):
        store.create()


def test_a_vault_without_a_key_says_how_to_make_one(tmp_path):
    store = KeyStore(Vault(tmp_path / "other"))

    for needs_one in (store.current, store.rotate):
        with pytest.raises(ConfigurationError, match="keys create"):
            needs_one()


def test_rotation_leaves_the_old_key_readable_until_it_is_deleted(store):
    old = store.current()
    identifier = key_id(old.public_key(LINEAR))

    new = store.rotate()

    assert (old.number, new.number) == (1, 2)
    assert store.current() == new
    assert store.find(identifier)[0] == old
    store.delete(old)
    assert store.stored_keys() == [new]
    with pytest.raises(ConfigurationError, match="deleted"):
        store.find(identifier)


def test_the_number_of_a_key_that_is_left_is_not_given_again(store):
    store.rotate()
    store.delete(store.numbered(1))

    assert store.rotate().number == 3


def test_the_key_in_use_is_not_deleted_while_an_older_one_would_take_its_place(store):
    new = store.rotate()

    with pytest.raises(ConfigurationError, match="key 1 would be again"):
        store.delete(new)

    assert store.current() == new
    for key in store.stored_keys():
        store.delete(key)
    assert store.stored_keys() == []


def test_no_number_is_given_twice(store):
    store.delete(store.current())
    assert store.create().number == 2
    store.rotate()
    for key in store.stored_keys():
        store.delete(key)
    assert store.create().number == 4


def test_deleting_a_key_leaves_no_file_of_it_and_nothing_else_is_touched(vault, store):
    store.current().public_key(LINEAR)
    before = vault.read(IDENTITY)

    store.delete(store.current())

    assert [path for path in vault.path(KEYS).rglob("*") if not path.is_dir()] == []
    assert vault.read(IDENTITY) == before


def test_an_unknown_number_is_refused(store):
    with pytest.raises(ConfigurationError, match="keys list"):
        store.numbered(7)


def test_the_log_tells_what_was_done_and_no_secret(vault, store):
    secret = vault.path(f"{KEYS}/1/key.secret").read_bytes()
    store.current().public_key(LINEAR)
    store.rotate()
    store.delete(store.numbered(1))

    text = log(vault)
    for event in (b"created", b"public prediction key made", b"rotated", b"deleted"):
        assert event in text
    assert secret not in text
    assert secret.hex().encode() not in text


@pytest.mark.parametrize("harm", [lambda path: path.write_bytes(b"short"), lambda path: path.chmod(0o644)])
def test_a_damaged_or_open_secret_is_refused(vault, store, harm):
    harm(vault.path(f"{KEYS}/1/key.secret"))

    with pytest.raises(ConfigurationError, match=r"damaged|others"):
        store.current().secret_key(LINEAR)
