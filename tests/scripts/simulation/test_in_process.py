"""The in-process grid behaves as Flower's own: messages out, replies in, each node with its own context."""

from __future__ import annotations

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity

from scripts.simulation.in_process import InProcessGrid


@pytest.fixture
def delivered():
    return []


@pytest.fixture
def grid(delivered):
    app = ClientApp()

    @app.query()
    def answer(message: Message, context: Context) -> Message:
        delivered.append(context.node_id)
        who = {
            "node": context.node_id,
            "name": context.node_config["name"],
            "run": context.run_config["name"],
            "task": TaskIdentity.node_id,
        }
        return Message(RecordDict({"who": ConfigRecord(who)}), reply_to=message)

    return InProcessGrid(app, {7: {"name": "seven"}, 8: {"name": "eight"}}, {"name": "the run"}, run_id=42)


def query(grid, *nodes):
    return [grid.create_message(RecordDict(), "query", node, "group") for node in nodes]


def test_each_node_answers_with_its_own_context(grid):
    replies = grid.send_and_receive(query(grid, 8, 7))

    assert [dict(reply.content["who"]) for reply in replies] == [
        {"node": 8, "name": "eight", "run": "the run", "task": 8},
        {"node": 7, "name": "seven", "run": "the run", "task": 7},
    ]
    assert [reply.metadata.src_node_id for reply in replies] == [8, 7]
    assert {reply.metadata.run_id for reply in replies} == {42}


def test_a_message_is_delivered_when_its_reply_is_pulled(grid, delivered):
    first, second = grid.push_messages(query(grid, 7, 8))
    assert delivered == []

    (reply,) = grid.pull_messages([second])

    assert delivered == [8]
    assert reply.metadata.reply_to_message_id == second
    assert first != second


def test_a_reply_is_pulled_once(grid):
    (message_id,) = grid.push_messages(query(grid, 7))
    list(grid.pull_messages([message_id]))

    with pytest.raises(KeyError):
        grid.pull_messages([message_id])


def test_all_nodes_are_connected(grid):
    grid.set_run(object())

    assert list(grid.get_node_ids()) == [7, 8]
    assert grid.run is None


def test_an_app_that_fails_does_not_leave_its_node_s_identity_behind(delivered):
    app = ClientApp()

    @app.query()
    def fail(message: Message, context: Context) -> Message:
        raise ZeroDivisionError

    grid = InProcessGrid(app, {7: {}}, {})
    with pytest.raises(ZeroDivisionError):
        grid.send_and_receive(query(grid, 7))
    assert TaskIdentity.node_id == 0
