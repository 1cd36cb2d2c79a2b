"""SECURITY.md claims nothing that no test stands for: each attack file is named in it, and each name is a file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ATTACKS = ROOT / "tests" / "attacks"
DOCUMENT = (ROOT / "SECURITY.md").read_text(encoding="utf-8")


def test_every_attack_file_is_in_the_document_and_every_name_there_is_a_file():
    named = set(re.findall(r"`(test_\w+\.py)`", DOCUMENT))

    assert named == {path.name for path in ATTACKS.glob("test_*.py")}


def test_every_other_test_that_is_named_is_there():
    others = re.findall(r"`(tests/[\w/]+\.py)`", DOCUMENT)

    assert others
    assert [name for name in others if not (ROOT / name).is_file()] == []


def test_every_row_of_the_attacks_names_a_test():
    (table,) = re.findall(r"\| attack \| answer \|.*?\n\n", DOCUMENT, flags=re.DOTALL)
    rows = table.strip().splitlines()[2:]

    assert len(rows) > 15
    assert [row for row in rows if not re.search(r"`test_\w+\.py`", row)] == []


@pytest.mark.parametrize("path", sorted(ATTACKS.glob("test_*.py")), ids=lambda path: path.stem)
def test_each_attack_is_shown_with_its_defence_off_and_on(path):
    names = re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), flags=re.MULTILINE)

    assert len(names) >= 2, "an attack that succeeds, and one that fails"


def test_commands_and_settings_in_the_document_exist():
    commands = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "scripts").rglob("*.py"))
    for command in set(re.findall(r"`cipherward site (\w+)`", DOCUMENT)):
        assert f"def {command}(" in commands
    terms = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "protocol").glob("*terms.py"))
    for setting in set(re.findall(r"`(?:crypto|privacy|federation)\.(\w+)`", DOCUMENT)):
        assert re.search(rf"^    {setting}: ", terms, flags=re.MULTILINE), setting
