from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from scripts.environment import project_root
from scripts.supervisor import supervised

PATIENCE_SECONDS = 20.0

TREE = """
import os, signal, sys, time
pids, deaf = sys.argv[1], sys.argv[2] == "deaf"
def note():
    with open(pids, "a") as file:
        file.write(f"{os.getpid()}\\n")
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        if deaf:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        note()
        time.sleep(600)
    os._exit(0)
os.wait()
note()
time.sleep(600)
"""
"""A command whose grandchild has a session of its own and has lost its parent, as Ray's daemons do."""

LAUNCHER = """
import os, sys, time
from pathlib import Path
from scripts.supervisor import supervised
import scripts.cli, signal
signal.signal(signal.SIGTERM, scripts.cli._exit_on_signal)
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
home, end = Path(sys.argv[1]), sys.argv[2]
with supervised(sys.argv[3:], environment=os.environ, directory=home / "private", log=home / "log"):
    while len((home / "pids").read_text().splitlines() if (home / "pids").exists() else []) < 2:
        time.sleep(0.02)
    if end == "exception":
        raise RuntimeError("as a launcher with a bug would")
    if end == "waits":
        print("ready", flush=True)
        time.sleep(600)
"""


def wait_until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "file").write_text("gone with the run")
    yield tmp_path
    for pid in started(tmp_path):
        if psutil.pid_exists(pid):
            os.kill(pid, signal.SIGKILL)


def started(home: Path) -> list[int]:
    pids = home / "pids"
    return [int(line) for line in pids.read_text().split()] if pids.exists() else []


def launch(home: Path, end: str, hearing: str = "hears") -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(home), end, sys.executable, "-c", TREE, str(home / "pids"), hearing],
        cwd=project_root(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def is_all_gone(home: Path) -> bool:
    return not any(psutil.pid_exists(pid) for pid in started(home)) and not (home / "private").exists()


@pytest.mark.parametrize(("end", "exit_code"), [("normally", 0), ("exception", 1)])
def test_all_is_gone_when_the_context_is_left(home: Path, end: str, exit_code: int) -> None:
    with launch(home, end) as launcher:
        assert launcher.wait(PATIENCE_SECONDS) == exit_code
    assert len(started(home)) == 2
    assert is_all_gone(home)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_all_is_gone_when_the_launcher_is_asked_to_end(home: Path, number: signal.Signals) -> None:
    with launch(home, "waits") as launcher:
        assert launcher.stdout is not None
        assert launcher.stdout.readline() == b"ready\n"
        launcher.send_signal(number)
        assert launcher.wait(PATIENCE_SECONDS) != 0
    assert len(started(home)) == 2
    assert is_all_gone(home)


def test_all_is_gone_after_kill_9_even_what_ignores_sigterm(home: Path) -> None:
    with launch(home, "waits", "deaf") as launcher:
        assert launcher.stdout is not None
        assert launcher.stdout.readline() == b"ready\n"
        assert not is_all_gone(home)
        launcher.kill()
        launcher.wait(PATIENCE_SECONDS)
    assert len(started(home)) == 2
    assert wait_until(lambda: is_all_gone(home))


def test_the_orphans_of_a_command_that_ends_by_itself_are_ended(home: Path) -> None:
    orphaning = TREE.rsplit("time.sleep", 1)[0] + "sys.exit(3)"
    command = [sys.executable, "-c", orphaning, str(home / "pids"), "hears"]
    with supervised(command, environment=os.environ, directory=home / "private", log=home / "log") as process:
        assert process.wait(PATIENCE_SECONDS) == 3
        assert is_all_gone(home)


def test_what_the_command_prints_is_in_the_log(home: Path) -> None:
    command = [sys.executable, "-c", "import os, sys; print(os.getcwd()); print('aside', file=sys.stderr)"]
    with supervised(command, environment=os.environ, directory=home / "private", log=home / "log") as process:
        assert process.wait(PATIENCE_SECONDS) == 0
    assert sorted((home / "log").read_text().splitlines()) == sorted([str(home / "private"), "aside"])


def test_a_command_that_cannot_start_leaves_no_directory(home: Path) -> None:
    command = [str(home / "no such program")]
    with supervised(command, environment=os.environ, directory=home / "private", log=home / "log") as process:
        assert process.wait(PATIENCE_SECONDS) != 0
    assert is_all_gone(home)
    assert "no such program" in (home / "log").read_text()


def test_a_lock_on_what_is_held_lasts_as_long_as_the_last_process(home: Path) -> None:
    held = os.open(home / "lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(held, fcntl.LOCK_EX)
    command = [sys.executable, "-c", TREE, str(home / "pids"), "deaf"]
    with supervised(
        command, environment=os.environ, directory=home / "private", log=home / "log", held=[held]
    ) as process:
        os.close(held)  # as the end of the launcher does
        assert wait_until(lambda: len(started(home)) == 2)
        with (home / "lock").open() as another, pytest.raises(BlockingIOError):
            fcntl.flock(another, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert process.poll() is not None
    with (home / "lock").open() as another:
        fcntl.flock(another, fcntl.LOCK_EX | fcntl.LOCK_NB)
