"""Clients take turns at the workers, and no worker is lost with a task that gives up."""

from __future__ import annotations

import asyncio

import pytest

from server.prediction.problems import ProblemError
from server.prediction.turns import Turns


async def waiting(turns, *clients):
    """Return tasks that wait, in this order."""
    tasks = [asyncio.create_task(turns.take(client)) for client in clients]
    await asyncio.sleep(0)
    return tasks


def test_each_client_has_one_task_in_turn_and_its_own_in_order():
    async def play():
        turns, order = Turns(), []
        tasks = await waiting(turns, "a", "a", "a", "b", "c", "b")
        assert turns.waiting == 6
        for task, name in zip(tasks, ("a1", "a2", "a3", "b1", "c1", "b2"), strict=True):
            task.add_done_callback(lambda _, name=name: order.append(name))
        for _ in tasks:
            turns.give_back("worker")
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert turns.waiting == 0
        return order

    assert asyncio.run(play()) == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_one_client_has_a_quarter_of_the_places_and_all_clients_have_all():
    async def play():
        turns = Turns(8)
        tasks = await waiting(turns, "a", "a")
        with pytest.raises(ProblemError, match="OVER_SHARE"):
            await turns.take("a")
        tasks += await waiting(turns, *"bbccdd")
        with pytest.raises(ProblemError, match="BUSY"):
            await turns.take("e")
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert turns.waiting == 0

    asyncio.run(play())


@pytest.mark.parametrize("is_given_first", [False, True])
def test_a_worker_goes_on_to_the_next_if_who_waited_gives_up_in_this_moment(is_given_first):
    async def play():
        turns = Turns()
        first, second = await waiting(turns, "a", "b")
        if is_given_first:
            turns.give_back("worker")
        first.cancel()
        if not is_given_first:
            turns.give_back("worker")
        assert await second == "worker"
        assert first.cancelled()
        turns.give_back("worker")
        assert await turns.take("c") == "worker"

    asyncio.run(asyncio.wait_for(play(), 5))


def test_who_waits_too_long_is_refused_and_its_place_is_free():
    async def play():
        turns = Turns(queue_seconds=0.05)
        with pytest.raises(ProblemError, match="BUSY"):
            await turns.take("a")
        assert turns.waiting == 0

    asyncio.run(play())
