"""SEAL's bytes: taken apart and put together again, or refused when they are not what they were measured to be."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import tenseal.sealapi as seal

from clients.ckks import SecretKey, backend
from clients.seal_format import ScratchFile, SeededTemplate, split_seeded
from protocol.errors import BackendError
from protocol.parameters import CkksParameters

PARAMETERS = CkksParameters(ring_degree=2048, modulus_bits=32, sites=3)
DEGREE = PARAMETERS.ring_degree
HEADER = struct.Struct("<HBBBBHQ")


@pytest.fixture(scope="module")
def saved():
    """A seeded ciphertext as SEAL saves it."""
    engine = backend(PARAMETERS)
    plaintext = seal.Plaintext()
    engine.encoder.encode([1 + 2j] * (DEGREE // 2), engine.parms_id, PARAMETERS.scale, plaintext)
    key = SecretKey.from_seed(bytes(64), PARAMETERS)
    with ScratchFile() as scratch:
        seal.Encryptor(engine.context, key._key).encrypt_symmetric(plaintext).save(scratch.path)
        return scratch.read()


def with_header(saved, **changes):
    names = ("magic", "header_size", "major", "minor", "compression", "reserved", "size")
    fields = dict(zip(names, HEADER.unpack(saved[: HEADER.size]), strict=True)) | changes
    return HEADER.pack(*fields.values()) + saved[HEADER.size :]


def test_a_ciphertext_taken_apart_and_rebuilt_is_what_seal_loads(saved):
    engine = backend(PARAMETERS)
    template = SeededTemplate.of(saved, DEGREE)

    residues, seed = split_seeded(saved, DEGREE)
    rebuilt = template.build(residues, seed)

    assert residues.shape == (DEGREE,)
    assert residues.max() < PARAMETERS.modulus
    assert len(seed) == 64
    with ScratchFile() as ours, ScratchFile() as theirs, ScratchFile() as out:
        loaded = [engine.load(ours.write(rebuilt)), engine.load(theirs.write(saved))]
        contents = []
        for ciphertext in loaded:
            ciphertext.save(out.path)
            contents.append(out.read())
    assert contents[0] == contents[1]


def test_uncompressed_bytes_are_taken_apart_alike(saved):
    residues, seed = split_seeded(saved, DEGREE)
    rebuilt = SeededTemplate.of(saved, DEGREE).build(residues, seed)

    again, seed_again = split_seeded(rebuilt, DEGREE)

    assert np.array_equal(again, residues)
    assert seed_again == seed
    assert SeededTemplate.of(rebuilt, DEGREE) == SeededTemplate.of(saved, DEGREE)


@pytest.mark.parametrize("change", [{"magic": 0xA15F}, {"header_size": 24}, {"size": 17}, {"compression": 1}], ids=str)
def test_another_header_is_refused(saved, change):
    with pytest.raises(BackendError):
        split_seeded(with_header(saved, **change), DEGREE)
    with pytest.raises(BackendError):
        SeededTemplate.of(with_header(saved, **change), DEGREE)


def test_a_ciphertext_of_a_smaller_ring_is_refused(saved):
    with pytest.raises(BackendError, match="too few for N=4096"):
        SeededTemplate.of(saved, 4096)


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
