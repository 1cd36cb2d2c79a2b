"""Do the homomorphic work in processes of their own, so that no request can block, crash or outlast another.

Each worker is a pool of one process, with channels that it shares with nobody: a process that is killed, whatever it
was doing, takes its own task along and nothing else. Whose turn it is, `Turns` knows.

Trust: runs at the provider. What a task raises reaches the log by type and place only, for a text might quote the data.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import multiprocessing
import re
from collections.abc import Callable
from concurrent.futures import BrokenExecutor
from typing import Any, Final, TypeVar

from pebble import ProcessExpired, ProcessPool

from protocol.errors import ProtocolError
from server.prediction.problems import Cause, ProblemError
from server.prediction.turns import Turns

TASK_SECONDS: Final = 60.0
"""Longest time for one task, without waiting; then its process is killed."""

_TASKS_PER_PROCESS: Final = 1000
"""Then a process makes room for a new one, so that no leak adds up."""

GRACE_SECONDS: Final = 10.0
"""A process that cannot even start its task has so much longer."""

_CONTEXT: Final = multiprocessing.get_context("spawn")  # no lock, descriptor or random state of the service in a worker
_FRAME: Final = re.compile(r'^ *File "(.*)", line (\d+)', re.MULTILINE)
_logger = logging.getLogger(__name__)
Answer = TypeVar("Answer")


class Workers:
    """Processes that take one task at a time each.

    Args:
        count: How many.
        module: Imported by each process when it starts, because that takes longer than a task.
        task_seconds: Longest time for a task.

    Attributes:
        lost: Processes that ended in a task, or had to be ended.
    """

    def __init__(self, count: int, *, module: str, task_seconds: float = TASK_SECONDS) -> None:
        self._module = module
        self._task_seconds = task_seconds
        self._turns: Turns[ProcessPool] = Turns()
        self._pools = {self._start() for _ in range(count)}
        for pool in self._pools:
            self._turns.give_back(pool)
        self._ending: set[asyncio.Future[None]] = set()
        self.lost = 0

    @property
    def waiting(self) -> int:
        """Tasks that wait for a worker now."""
        return self._turns.waiting

    async def run(
        self,
        client: str,
        function: Callable[..., Answer],
        /,
        *arguments: Any,
        before: Callable[[], None] | None = None,
        **named: Any,
    ) -> Answer:
        """Return what a module's function returns in a worker; function, arguments and answer travel by pickle.

        Args:
            client: Whose task it is.
            function: What to do, with its arguments.
            arguments: Of the function.
            before: Called when a worker is there; if it raises, nothing is done.
            named: Of the function.

        Raises:
            ProblemError: OVER_SHARE, BUSY, OVER_TIME, WORKER_LOST, REFUSED_BODY for a ProtocolError, INTERNAL for all
                others.
        """
        pool = await self._turns.take(client)
        try:
            if before is not None:
                before()
            if not pool.active:  # its process has died since the last task
                pool = self._replace(pool)
            return await self._run_in(pool, function, *arguments, **named)
        except _WorkerGoneError as error:
            pool = self._replace(pool)
            raise ProblemError(error.cause) from None
        finally:
            self._turns.give_back(pool)

    async def warm_up(self) -> None:
        """Wait until every process has started and imported what it needs."""
        await asyncio.gather(*(self._run_in(pool, _nothing) for pool in self._pools))

    async def close(self) -> None:
        """End all processes."""
        await asyncio.gather(*self._ending, *(asyncio.to_thread(_end, pool) for pool in self._pools))

    async def _run_in(
        self, pool: ProcessPool, function: Callable[..., Answer], *arguments: Any, **named: Any
    ) -> Answer:
        future = pool.schedule(function, args=arguments, kwargs=named, timeout=self._task_seconds)
        try:
            # a process that cannot even start its task has no time limit of its own
            async with asyncio.timeout(self._task_seconds + GRACE_SECONDS):
                return await asyncio.wrap_future(future)
        except ProtocolError as error:
            _logger.info("a body was refused: %s", type(error).__name__)
            raise ProblemError(Cause.REFUSED_BODY) from None
        except TimeoutError:
            _logger.warning("a task took more than %g s; its process is ended", self._task_seconds)
            raise _WorkerGoneError(Cause.OVER_TIME) from None
        except (ProcessExpired, BrokenExecutor):
            _logger.warning("a worker's process ended in its task; another one is started")
            raise _WorkerGoneError(Cause.WORKER_LOST) from None
        except Exception as error:
            _logger.error("a task failed: %s", _place(error))  # noqa: TRY400 - the text might quote the data
            raise ProblemError(Cause.INTERNAL) from None

    def _start(self) -> ProcessPool:
        return ProcessPool(
            max_workers=1,
            max_tasks=_TASKS_PER_PROCESS,
            initializer=importlib.import_module,
            initargs=(self._module,),
            context=_CONTEXT,
        )

    def _replace(self, pool: ProcessPool) -> ProcessPool:
        self._pools.discard(pool)
        # what does not end when asked to takes seconds, which nobody has to wait for
        ending = asyncio.get_running_loop().run_in_executor(None, _end, pool)
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)
        self.lost += 1
        new = self._start()
        self._pools.add(new)
        return new


class _WorkerGoneError(Exception):
    """A task whose process is of no further use."""

    def __init__(self, cause: Cause) -> None:
        self.cause = cause
        super().__init__(cause.name)


def _nothing() -> None:
    """Take no time."""


def _end(pool: ProcessPool) -> None:
    pool.stop()  # type: ignore[no-untyped-call]  # pebble has no hints there
    pool.join()


def _place(error: BaseException) -> str:
    frames = _FRAME.findall(str(error.__cause__))  # the worker's traceback, which travels as text
    return type(error).__name__ + "".join(f' at "{file}", line {line}' for file, line in frames[-1:])
