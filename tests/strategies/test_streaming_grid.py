"""Replies arrive one at a time, as they come; the rest is the wrapped grid."""

from __future__ import annotations

import time

import pytest
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from scripts.simulation.in_process import InProcessGrid
from strategies.streaming_grid import StreamingGrid


class SlowGrid(Grid):
    """Answers each message after as many pulls as its node's number; node 99 never answers."""

    def __init__(self):
        self.pulls = {}
        self.nodes = {}
        self.given = []

    def push_messages(self, messages):
        for message in messages:
            node = message.metadata.dst_node_id
            self.nodes[str(node)] = message
            self.pulls[str(node)] = 0
        return list(self.nodes)

    def pull_messages(self, message_ids):
        ready = []
        for message_id in message_ids:
            assert message_id not in self.given, "asked for a reply that was given out"
            self.pulls[message_id] += 1
            if message_id != "99" and self.pulls[message_id] > int(message_id):
                self.given.append(message_id)
                ready.append(self.nodes[message_id])
        return ready

    def send_and_receive(self, messages, *, timeout=None):
        raise AssertionError("this is what the streaming grid replaces")

    def get_node_ids(self):
        return [1, 2]

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None):
        return (content, message_type, dst_node_id, group_id, ttl)

    def set_run(self, run):
        self.given.append(run)

    @property
    def run(self):
        return "the run"


@pytest.fixture(autouse=True)
def inside_a_task():
    InProcessGrid(None, {}, {})  # Flower makes messages only inside a task


def messages_to(*nodes):
    return [Message(RecordDict(), dst_node_id=node, message_type="query") for node in nodes]


def nodes_of(replies):
    return [reply.metadata.dst_node_id for reply in replies]


def test_replies_come_in_the_order_in_which_they_arrive():
    assert nodes_of(StreamingGrid(SlowGrid()).send_and_receive(messages_to(3, 0, 2))) == [0, 2, 3]


def test_a_reply_is_there_before_the_next_one_is_asked_for():
    slow = SlowGrid()
    replies = StreamingGrid(slow).send_and_receive(messages_to(0, 2))

    assert nodes_of([next(replies)]) == [0]
    assert slow.given == ["0"]
    assert nodes_of(replies) == [2]


def test_who_does_not_answer_is_left_out_when_the_time_is_up():
    started = time.monotonic()

    replies = StreamingGrid(SlowGrid()).send_and_receive(messages_to(99, 1), timeout=0.2)

    assert nodes_of(replies) == [1]
    assert 0.2 <= time.monotonic() - started < 5


def test_every_reply_that_is_there_is_taken_even_if_the_time_is_up():
    assert nodes_of(StreamingGrid(SlowGrid()).send_and_receive(messages_to(0, 99), timeout=0)) == [0]


def test_no_messages_are_no_replies():
    assert list(StreamingGrid(SlowGrid()).send_and_receive([], timeout=None)) == []


def test_all_else_is_the_wrapped_grid_s():
    slow = SlowGrid()
    grid = StreamingGrid(slow)

    assert list(grid.get_node_ids()) == [1, 2]
    assert grid.create_message("content", "query", 7, "group", 1.5) == ("content", "query", 7, "group", 1.5)
    assert grid.run == "the run"
    grid.set_run("another")
    assert slow.given == ["another"]
    assert list(grid.push_messages(messages_to(0))) == ["0"]
    assert nodes_of(grid.pull_messages(["0"])) == [0]
