from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from scripts.environment import project_root

PYTHON = """#!/usr/bin/env bash
# Stands for Python: makes a virtual environment, and installs by noting that it was asked to.
case "$1 $2" in
"-c "*) exit 0 ;;
"-m venv")
    home="${@: -1}"
    rm -rf "$home"
    mkdir -p "$home/bin"
    cp "$0" "$home/bin/python"
    echo "#!$home/bin/python" > "$home/bin/pip"
    echo "venv" >> "$JOURNAL"
    ;;
"-m pip")
    echo "install ${@: -1}" >> "$JOURNAL"
    sleep 0.3
    if [[ -n "${BROKEN_INDEX:-}" ]]; then echo "no such index" >&2; exit 1; fi
    printf '#!/usr/bin/env bash\\necho cipherward "$@"\\n' > "$(dirname "$0")/cipherward"
    chmod +x "$(dirname "$0")/cipherward"
    ;;
esac
"""


class Checkout:
    """A copy of the bootstrap scripts, with a Python that installs nothing."""

    def __init__(self, home: Path) -> None:
        self.root = home / "a checkout"
        self.programs = home / "programs"
        self.journal = home / "journal"
        (self.root / "scripts").mkdir(parents=True)
        for name in ("bootstrap.sh", "run", "test", "check", "bench"):
            shutil.copy(project_root() / "scripts" / name, self.root / "scripts" / name)
        (self.root / "pyproject.toml").write_text("[project]\n")
        self.programs.mkdir()
        (self.programs / "python3.11").write_text(PYTHON)
        (self.programs / "python3.11").chmod(0o755)

    def start(self, script: str, *arguments: str, broken_index: bool = False) -> subprocess.Popen[str]:
        environment = {"PATH": f"{self.programs}{os.pathsep}{os.environ['PATH']}", "JOURNAL": str(self.journal)}
        if broken_index:
            environment["BROKEN_INDEX"] = "yes"
        return subprocess.Popen(
            [self.root / "scripts" / script, *arguments],
            cwd="/",
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, script: str, *arguments: str, broken_index: bool = False) -> tuple[int, str, str]:
        with self.start(script, *arguments, broken_index=broken_index) as process:
            out, err = process.communicate(timeout=30)
        return process.returncode, out, err

    def installs(self) -> list[str]:
        lines = self.journal.read_text().splitlines() if self.journal.exists() else []
        return [line.removeprefix(f"install {self.root}") for line in lines if line.startswith("install")]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_the_first_start_installs_and_passes_arguments_on(checkout: Checkout) -> None:
    code, out, err = checkout.run("run", "strategy.rounds=3", "a b")
    assert (code, out) == (0, "cipherward run strategy.rounds=3 a b\n")
    assert err.count("\n") == 1
    assert "few minutes" in err
    assert checkout.installs() == [""]


@pytest.mark.parametrize("script", ["run", "test", "check", "bench"])
def test_later_starts_install_nothing_and_say_nothing(checkout: Checkout, script: str) -> None:
    checkout.run(script)
    assert checkout.run(script, "x") == (0, f"cipherward {script} x\n", "")
    assert len(checkout.installs()) == 1


def test_a_changed_pyproject_installs_again(checkout: Checkout) -> None:
    checkout.run("run")
    (checkout.root / "pyproject.toml").write_text("[project]\nname = 'other'\n")
    checkout.run("run")
    assert checkout.installs() == ["", ""]


def test_tests_need_the_development_extra_and_runs_are_content_with_it(checkout: Checkout) -> None:
    for script in ("run", "test", "check", "run", "bench"):
        assert checkout.run(script)[0] == 0
    assert checkout.installs() == ["", "[dev]"]


def test_a_failed_install_shows_why_and_is_tried_again(checkout: Checkout) -> None:
    code, out, err = checkout.run("run", broken_index=True)
    assert code != 0
    assert out == ""
    assert "no such index" in err
    assert checkout.run("run")[0] == 0
    assert checkout.installs() == ["", ""]


def test_an_install_that_was_interrupted_is_made_again(checkout: Checkout) -> None:
    checkout.run("run")
    with checkout.start("test") as interrupted:
        while len(checkout.installs()) < 2:
            assert interrupted.poll() is None
        os.killpg(interrupted.pid, signal.SIGKILL)
    code, out, _ = checkout.run("test")
    assert (code, out) == (0, "cipherward test\n")
    assert checkout.installs() == ["", "[dev]", "[dev]"]


def test_an_environment_without_pip_is_made_anew(checkout: Checkout) -> None:
    checkout.run("run")
    (checkout.root / ".venv" / "bin" / "pip").unlink()
    assert checkout.run("run")[0] == 0
    assert checkout.journal.read_text().count("venv\n") == 2


def test_a_moved_checkout_does_not_run_the_old_one(checkout: Checkout, tmp_path: Path) -> None:
    checkout.run("run")
    checkout.root = checkout.root.rename(tmp_path / "moved")
    assert checkout.run("run")[:2] == (0, "cipherward run\n")
    assert checkout.journal.read_text().count("venv\n") == 2


@pytest.mark.skipif(shutil.which("flock") is None, reason="two starts wait for each other where there is flock")
def test_two_starts_at_once_install_once(checkout: Checkout) -> None:
    with checkout.start("run") as first, checkout.start("run") as second:
        assert first.communicate(timeout=30)[0] == second.communicate(timeout=30)[0] == "cipherward run\n"
    assert checkout.installs() == [""]


def test_without_a_fitting_python_it_says_so(checkout: Checkout) -> None:
    for name in ("python3.11", "python3", "python3.12", "python3.13"):
        (checkout.programs / name).write_text("#!/usr/bin/env bash\nexit 1\n")
        (checkout.programs / name).chmod(0o755)
    code, _, err = checkout.run("run")
    assert code != 0
    assert "needs Python 3.11" in err
