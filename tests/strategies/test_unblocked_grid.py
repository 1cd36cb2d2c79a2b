"""A reply that stops half-way, or that is no message, holds up nobody else's."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest

from strategies.unblocked_grid import UnblockedGrid
from strategies.wrapped_grid import WrappedGrid


class HaltingGrid(WrappedGrid):
    """Gives each id as its own reply; the ids that are to halt have begun to come, and go on when they are told to."""

    def __init__(self, *halting):
        super().__init__(None)
        self.goes_on = {name: threading.Event() for name in halting}
        self.pulled = []

    def pull_messages(self, message_ids):
        (name,) = message_ids
        self.pulled.append(name)
        if name == "not there":
            return []
        if name in self.goes_on:
            assert self.goes_on[name].wait(30)
        return [name]


class RaisingGrid(WrappedGrid):
    """Raises when it pulls."""

    def __init__(self, error):
        super().__init__(None)
        self.error = error

    def pull_messages(self, message_ids):
        raise self.error


def until_whole(grid, name):
    deadline = time.monotonic() + 10
    while not (replies := grid.pull_messages([name])):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return replies


def test_what_has_arrived_is_returned_and_what_has_not_is_not():
    assert UnblockedGrid(HaltingGrid()).pull_messages(["a", "not there", "b"]) == ["a", "b"]


def test_nobody_waits_for_a_reply_that_does_not_go_on_and_it_is_pulled_once():
    halting = HaltingGrid("slow")
    grid = UnblockedGrid(halting, patience_seconds=0.05)

    for _ in range(3):
        assert grid.pull_messages(["slow", "a"]) == ["a"]

    assert halting.pulled.count("slow") == 1


def test_a_reply_that_goes_on_is_returned_when_it_is_whole():
    halting = HaltingGrid("slow")
    grid = UnblockedGrid(halting, patience_seconds=0.05)
    assert grid.pull_messages(["slow"]) == []

    halting.goes_on["slow"].set()

    assert until_whole(grid, "slow") == ["slow"]
    assert halting.pulled == ["slow"]


def test_while_four_are_slow_nothing_more_is_taken_into_memory():
    halting = HaltingGrid("1", "2", "3", "4")
    grid = UnblockedGrid(halting, patience_seconds=0.05)
    assert grid.pull_messages(["1", "2", "3", "4", "a"]) == []
    assert halting.pulled == ["1", "2", "3", "4"]

    halting.goes_on["3"].set()

    assert until_whole(grid, "3") == ["3"]
    assert grid.pull_messages(["a"]) == ["a"]


def test_one_node_is_slow_with_one_reply_at_a_time():
    class Sending(HaltingGrid):
        def push_messages(self, messages):
            return ["1", "2", "3"]

    halting = Sending("1", "2", "3")
    grid = UnblockedGrid(halting, patience_seconds=0.05)
    grid.push_messages([SimpleNamespace(metadata=SimpleNamespace(dst_node_id=7))] * 3)

    assert grid.pull_messages(["1", "2", "3", "a"]) == ["a"]
    assert halting.pulled == ["1", "a"]

    halting.goes_on["1"].set()
    assert until_whole(grid, "1") == ["1"]
    assert grid.pull_messages(["2"]) == []
    assert halting.pulled == ["1", "a", "2"]


@pytest.mark.parametrize("error", [ValueError("of a parser"), KeyError("x"), RecursionError()])
def test_a_reply_that_is_no_message_is_passed_over_without_its_text(error, caplog):
    assert UnblockedGrid(RaisingGrid(error)).pull_messages(["a"]) == []

    assert type(error).__name__ in caplog.text
    assert "of a parser" not in caplog.text


@pytest.mark.parametrize("error", [ConnectionRefusedError("no SuperLink"), KeyboardInterrupt()])
def test_what_is_not_the_node_s_doing_is_raised(error):
    with pytest.raises(type(error)):
        UnblockedGrid(RaisingGrid(error)).pull_messages(["a"])
