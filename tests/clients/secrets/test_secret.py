"""Secret bytes do not show themselves, and do not travel."""

from __future__ import annotations

import copy
import logging
import pickle

import pytest

from clients.secrets.secret import SecretBytes
from protocol.errors import SecretMaterialError

RAW = b"thirty-two bytes that stay home."


@pytest.mark.parametrize("show", [repr, str, "{}".format, "%s".__mod__, "%r".__mod__, lambda secret: repr([secret])])
def test_no_way_of_printing_shows_the_bytes(show):
    shown = show(SecretBytes(RAW))

    assert "redacted" in shown
    assert RAW.decode() not in shown
    assert RAW.hex() not in shown


def test_a_log_line_does_not_show_the_bytes(caplog):
    logging.getLogger("test").error("the key is %s", SecretBytes(RAW))

    assert "redacted" in caplog.text
    assert RAW.decode() not in caplog.text


@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.copy, copy.deepcopy, lambda secret: pickle.dumps([secret])])
def test_secret_bytes_refuse_to_be_duplicated(duplicate):
    with pytest.raises(SecretMaterialError) as refusal:
        duplicate(SecretBytes(RAW))
    assert RAW.decode() not in str(refusal.value)


def test_secret_bytes_are_read_on_purpose_only():
    assert SecretBytes(RAW).reveal() == RAW
    with pytest.raises(TypeError):
        bytes(SecretBytes(RAW))


def test_equal_bytes_are_equal_and_nothing_else_is():
    assert SecretBytes(RAW) == SecretBytes(bytes(RAW))
    assert SecretBytes(RAW) != SecretBytes(RAW[:-1])
    assert SecretBytes(RAW) != SecretBytes(RAW.upper())
    assert SecretBytes(RAW) != RAW


def test_a_secret_has_no_hash_and_no_further_attributes():
    with pytest.raises(TypeError):
        hash(SecretBytes(RAW))
    with pytest.raises(AttributeError):
        SecretBytes(RAW).note = "x"
