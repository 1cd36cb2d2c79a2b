"""A Flower grid whose sites are processes of their own, which die when a test says so, and come back.

As with Flower's SuperLink a message waits until its node has time for it. A node that is gone is not listed; what waits
for it, or comes for it later, is answered by an error in the SuperLink's own name.

Trust: tests only.
"""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from multiprocessing.connection import wait
from pathlib import Path
from typing import Self
from uuid import uuid4

from flwr.app import Message, RecordDict
from flwr.server.superlink.linkstate.utils import create_message_error_unavailable_res_message
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity
from site_process import RUN_ID, SiteProcess

from protocol.envelope import REQUEST_PARTS, ROUND_NUMBER, Request, unpack_envelope
from protocol.notes import UploadCall
from strategies.streaming_grid import StreamingGrid


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """One death of a site's process, and how long the site is away.

    Attributes:
        site: Roster position.
        round: The round of the request that it dies of.
        request: PREPARE or UPLOAD; the first such one that the site gets in that round.
        step: 0: it dies before it handles the request; n: before its n-th step on disk, or, when it takes fewer, before
            the reply leaves.
        away_messages: It is back after so many further messages, to whomever they are, or
        away_seconds: after so many seconds, whichever is first; with neither it is away for good.
        is_renumbered: Whether it comes back as a new node.
    """

    site: int
    round: int
    request: Request
    step: int
    away_messages: int | None = None
    away_seconds: float | None = None
    is_renumbered: bool = False


class ProcessGrid(Grid):
    """Carries messages to sites in processes; a context manager, which ends them.

    Args:
        vaults: Each site's vault, by roster position.
        deaths: What befalls the sites.

    Attributes:
        died: The deaths so far, in order.
        returned: The sites that came back, in order.
    """

    def __init__(self, vaults: Sequence[Path], deaths: Iterable[Death] = ()) -> None:
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = RUN_ID, 0, 0
        self.died: list[Death] = []
        self.returned: list[int] = []
        self._vaults = vaults
        self._deaths = list(deaths)
        self._numbers = count(100)
        self._nodes: dict[int, _Node] = {}
        self._absences: list[_Absence] = []
        self._messages = 0
        self._replies: dict[str, Message] = {}
        for site in range(len(vaults)):
            self._start(site, next(self._numbers))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for node in self._nodes.values():
            node.process.end()

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes that are up."""
        self._look_around()
        return list(self._nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages and return an id for each."""
        ids = []
        for message in messages:
            self._look_around()
            message_id = str(uuid4())
            message.metadata.__dict__["_message_id"] = message_id  # as Flower's own grid does
            ids.append(message_id)
            self._messages += 1
            node = self._nodes.get(message.metadata.dst_node_id)
            if node is None:
                self._answer_for_the_dead(message)
            else:
                node.messages.append(message)
                self._hand_next(node)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that have arrived."""
        self._look_around()
        return [self._replies.pop(message_id) for message_id in message_ids if message_id in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and wait for their replies."""
        return list(StreamingGrid(self).send_and_receive(messages, timeout=timeout))

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Make a message."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def set_run(self, run: object) -> None:
        """Do nothing: there is one run."""

    @property
    def run(self) -> object:
        """Nothing: no record of the run is kept."""
        return None

    def _start(self, site: int, number: int) -> None:
        process = SiteProcess(self._vaults[site], number)
        self._nodes[number] = _Node(site=site, number=number, process=process)

    def _look_around(self) -> None:
        """Take in what has arrived, find who is dead, and start who is due."""
        node_of = {node.process.connection: node for node in self._nodes.values()}
        for connection in wait(list(node_of), timeout=0):
            node = node_of[connection]
            try:
                reply = node.process.reply()
            except EOFError:
                self._bury(node)
                continue
            self._replies[node.messages.popleft().metadata.message_id] = reply
            node.is_busy = False
            self._hand_next(node)
        for absence in list(self._absences):
            if absence.is_over(self._messages):
                self._absences.remove(absence)
                self.returned.append(absence.death.site)
                number = next(self._numbers) if absence.death.is_renumbered else absence.number
                self._start(absence.death.site, number)

    def _hand_next(self, node: _Node) -> None:
        if node.is_busy or not node.messages:
            return
        message = node.messages[0]
        request_and_round = _request_and_round(message)
        for death in self._deaths:
            if death.site == node.site and (death.request, death.round) == request_and_round:
                self._deaths.remove(death)
                node.death = death
                break
        node.is_busy = True
        node.process.hand(message, dies_before=None if node.death is None else node.death.step)

    def _bury(self, node: _Node) -> None:
        exit_code = node.process.end()
        del self._nodes[node.number]
        if node.death is None or exit_code != -signal.SIGKILL:
            raise ChildProcessError(f"the process of site {node.site} ended by itself, exit code {exit_code}")
        self.died.append(node.death)
        self._absences.append(
            _Absence(death=node.death, number=node.number, messages=self._messages, since=time.monotonic())
        )
        for message in node.messages:
            self._answer_for_the_dead(message)

    def _answer_for_the_dead(self, message: Message) -> None:
        error = create_message_error_unavailable_res_message(message.metadata, "node_unavail")
        self._replies[message.metadata.message_id] = error


@dataclass
class _Node:
    """A site that is up, and the messages that it has not answered; it handles the first one if it is busy."""

    site: int
    number: int
    process: SiteProcess
    messages: deque[Message] = field(default_factory=deque)
    is_busy: bool = False
    death: Death | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Absence:
    """A site that is down since some message and moment."""

    death: Death
    number: int
    messages: int
    since: float

    def is_over(self, messages: int) -> bool:
        most, seconds = self.death.away_messages, self.death.away_seconds
        return (most is not None and messages - self.messages >= most) or (
            seconds is not None and time.monotonic() - self.since >= seconds
        )


def _request_and_round(message: Message) -> tuple[Request, int | None]:
    request = Request(message.metadata.message_type)
    parts = unpack_envelope(message.content, REQUEST_PARTS[request])
    if request is Request.PREPARE:
        return request, ROUND_NUMBER.unpack(parts["round"])[0]
    return request, UploadCall.from_bytes(parts["call"]).round if request is Request.UPLOAD else None
