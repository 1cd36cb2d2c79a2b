from __future__ import annotations

from pathlib import Path

import make
import pytest

MADE = make.messages()


@pytest.mark.parametrize("name", MADE)
def test_a_golden_file_is_what_its_script_makes(name):
    assert (make.HERE / f"{name}.bin").read_bytes() == MADE[name][1]


def test_the_index_tells_what_every_golden_file_is():
    assert make.INDEX.read_text() == make.index(MADE)
    assert {path.stem for path in Path(make.HERE).glob("*.bin")} == MADE.keys()
