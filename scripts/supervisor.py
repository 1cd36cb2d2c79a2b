"""Run a command so that nothing of it outlives the process that wanted it.

The supervisor is a small process between a launcher and the command. Its standard input is a pipe whose other end only
the launcher holds, so the end of the launcher, even by `kill -9`, is the end of that pipe; the supervisor then ends the
command with everything that it started, and removes its directory. Ray's daemons start sessions of their own and lose
their parents, which is why neither process groups nor parent ids are enough.

Trust: handles processes only; opens no file of a run.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

import psutil

TERMINATE_SECONDS: Final = 5.0
KILL_SECONDS: Final = 5.0
TICK_SECONDS: Final = 0.5
_PR_SET_CHILD_SUBREAPER: Final = 36


@contextlib.contextmanager
def supervised(
    command: Sequence[str], *, environment: Mapping[str, str], directory: Path, log: Path, held: Sequence[int] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command beside the caller; on leaving the context, however that happens, nothing of it is left.

    Args:
        command: Program and arguments.
        environment: The command's whole environment.
        directory: The command's working directory, removed at the end.
        log: File that gets what the command prints.
        held: File descriptors that stay open until nothing of the command is left; a lock on one lasts as long.

    Yields:
        The supervisor's process, which ends when the command ends.
    """
    # By file and with -P: a package named `scripts` in the caller's directory must not be taken for this one.
    supervisor = [sys.executable, "-P", str(Path(__file__).resolve()), "--directory", str(directory), "--"]
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*supervisor, *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
            pass_fds=held,
        )
    try:
        yield process
    finally:
        if process.stdin is not None:
            process.stdin.close()
        process.wait()


class ProcessTree:
    """A command and all that it started, directly or not."""

    def __init__(self, command: Sequence[str], directory: Path) -> None:
        self._command = subprocess.Popen(command, stdin=subprocess.DEVNULL, cwd=directory)
        self._seen: set[psutil.Process] = set()
        self.exit_code: int | None = None

    def watch(self) -> None:
        """Reap what has ended and remember what lives; `exit_code` is set once the command has ended."""
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG)) != (0, 0):
                if ended[0] == self._command.pid:
                    self.exit_code = self._command.returncode = os.waitstatus_to_exitcode(ended[1])
        # Remembered because, where orphans cannot be adopted, they are found only while their parents live.
        self._seen.update(psutil.Process().children(recursive=True))
        self._seen = {process for process in self._seen if process.is_running()}

    def end(self) -> None:
        """Ask everything to end, then make it."""
        for request, patience in ((signal.SIGTERM, TERMINATE_SECONDS), (signal.SIGKILL, KILL_SECONDS)):
            deadline = time.monotonic() + patience
            asked: set[psutil.Process] = set()
            self.watch()
            while self._seen and time.monotonic() < deadline:
                for process in self._seen - asked:
                    with contextlib.suppress(psutil.Error):
                        process.send_signal(request)
                    asked.add(process)
                time.sleep(0.02)
                self.watch()


def supervise(command: Sequence[str], directory: Path) -> int:
    """Run a command until it ends or standard input is closed; then end the rest and remove the directory.

    Returns:
        The command's exit code, or 1 when it had to be ended.
    """
    _adopt_orphans()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _stop)
    tree: ProcessTree | None = None
    try:
        tree = ProcessTree(command, directory)
        while tree.exit_code is None and not _is_stdin_closed(TICK_SECONDS):
            tree.watch()
        return 1 if tree.exit_code is None else tree.exit_code
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        if tree is not None:
            tree.end()
        shutil.rmtree(directory, ignore_errors=True)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    del frame
    sys.exit(128 + number)


def _is_stdin_closed(patience: float) -> bool:
    ready, _, _ = select.select([sys.stdin.fileno()], [], [], patience)
    return bool(ready) and not os.read(sys.stdin.fileno(), 1024)


def _adopt_orphans() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def main() -> NoReturn:
    """Supervise the command after `--`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, required=True, help="working directory, removed at the end")
    parser.add_argument("command", nargs="+", help="after --: the program and its arguments")
    arguments = parser.parse_args()
    sys.exit(supervise(arguments.command, arguments.directory))


if __name__ == "__main__":
    main()
