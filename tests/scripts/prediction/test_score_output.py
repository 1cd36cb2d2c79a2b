"""Files of scores: whole or not there, for their owner alone, and in nobody's place."""

from __future__ import annotations

import os

import pytest

from protocol.errors import ConfigurationError
from scripts.prediction.score_output import check_output, write_private


def test_scores_are_their_owner_s_alone(tmp_path):
    write_private(tmp_path / "scores.csv", b"row,probability\n")

    assert (tmp_path / "scores.csv").read_bytes() == b"row,probability\n"
    assert (tmp_path / "scores.csv").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("target", ["there.csv", "nowhere.csv"])
def test_nothing_is_replaced_and_no_link_is_followed(tmp_path, target):
    (tmp_path / "there.csv").write_bytes(b"old")
    (tmp_path / "link.csv").symlink_to(target)

    for name in ("there.csv", "link.csv"):
        with pytest.raises(ConfigurationError, match="name another file"):
            write_private(tmp_path / name, b"new")
    assert (tmp_path / "there.csv").read_bytes() == b"old"
    assert not (tmp_path / "nowhere.csv").exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_is_interrupted_leaves_no_part_of_the_scores(tmp_path, monkeypatch, error):
    def interrupted(descriptor):
        raise error

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises((ConfigurationError, KeyboardInterrupt)):
        write_private(tmp_path / "scores.csv", b"row,probability\n")

    assert list(tmp_path.iterdir()) == []
    check_output(tmp_path / "scores.csv")
