from __future__ import annotations

import os
from pathlib import Path

import pytest

from protocol.scratch_file import ScratchFile


@pytest.fixture(params=["in memory", "in a directory"])
def scratch(request, monkeypatch, tmp_path):
    if request.param == "in a directory":
        monkeypatch.delattr(os, "memfd_create", raising=False)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return ScratchFile()


def test_a_scratch_file_holds_what_was_written_last(scratch):
    with scratch:
        path = scratch.write(b"a longer content")
        assert Path(path).read_bytes() == b"a longer content"
        scratch.write(b"short")
        assert scratch.read() == b"short"
        Path(path).write_bytes(b"what SEAL saved")
        assert scratch.read() == b"what SEAL saved"


def test_a_closed_scratch_file_is_gone(scratch, tmp_path):
    scratch.write(b"content")
    scratch.close()

    assert not list(tmp_path.iterdir())
    with pytest.raises(OSError, match="Bad file descriptor"):
        scratch.read()


def test_on_a_disk_a_scratch_file_is_its_owner_s_alone(monkeypatch, tmp_path):
    monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with ScratchFile() as scratch:
        assert Path(scratch.path).stat().st_mode & 0o777 == 0o600
        assert Path(scratch.path).parent.stat().st_mode & 0o777 == 0o700
