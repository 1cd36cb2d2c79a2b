"""A federation on this machine has one keeper, which `down` finds."""

from __future__ import annotations

import os
import threading

import pytest

from protocol.errors import ConfigurationError
from scripts.event_lines import event_lines
from scripts.local.commands import down
from scripts.local.federation import LocalFederation


def test_a_federation_is_kept_by_one_process_that_down_finds(tmp_path):
    first, second = LocalFederation(directory=tmp_path), LocalFederation(directory=tmp_path)

    assert second.keeper() is None
    with first.kept():
        with pytest.raises(ConfigurationError, match="is up already"):
            second.keep(event_lines(is_json=False), threading.Event())
        assert second.keeper().pid == os.getpid()


def test_what_to_do_about_a_deleted_directory_is_told(tmp_path):
    with pytest.raises(ConfigurationError, match=f"holds no federation.* 'local keep --directory {tmp_path / 'gone'}"):
        down(directory=tmp_path / "gone")
