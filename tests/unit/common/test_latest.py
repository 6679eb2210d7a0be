"""Mailboxes: what is dropped, what is counted, who is woken."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.latest import Batches, DropOldest, Latest


async def test_a_slow_reader_sees_only_the_newest() -> None:
    latest = Latest("a")
    assert await latest.newer_than(-1) == (0, "a")
    for value in "bcd":
        latest.set(value)
    assert await latest.newer_than(0) == (3, "d")


async def test_a_set_wakes_everybody_who_waits() -> None:
    latest = Latest(0)
    waiting = [asyncio.create_task(latest.newer_than(0)) for _ in range(3)]
    await asyncio.sleep(0)
    latest.set(1)
    latest.set(2)
    assert await asyncio.gather(*waiting) == [(2, 2)] * 3


@pytest.mark.looptime
async def test_without_a_set_nobody_is_woken() -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(Latest(0).newer_than(0), 60)


@given(capacity=st.integers(1, 5), steps=st.lists(st.one_of(st.integers(), st.none()), max_size=60))
def test_drop_oldest_is_a_list_that_forgets_its_head(capacity: int, steps: list[int | None]) -> None:
    """A number is put; None gets, where there is something to get."""

    async def check() -> None:
        queue: DropOldest[int] = DropOldest(capacity)
        model: list[int] = []
        dropped = 0
        for step in steps:
            if step is not None:
                queue.put(step)
                model.append(step)
                dropped += len(model) > capacity
                del model[:-capacity]
            elif model:
                assert await asyncio.wait_for(queue.get(), 1) == model.pop(0)
            assert len(queue) == len(model)
            assert queue.dropped == dropped
        assert [await queue.get() for _ in range(len(queue))] == model

    asyncio.run(check())


async def test_a_get_waits_for_a_put() -> None:
    queue: DropOldest[str] = DropOldest(1)
    getting = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    assert not getting.done()
    queue.put("a")
    assert await getting == "a"


async def test_every_item_goes_to_one_getter() -> None:
    queue: DropOldest[int] = DropOldest(10)
    getting = [asyncio.create_task(queue.get()) for _ in range(3)]
    await asyncio.sleep(0)
    for number in range(3):
        queue.put(number)
    assert sorted(await asyncio.gather(*getting)) == [0, 1, 2]


async def test_who_takes_batches_gets_all_there_is_in_order() -> None:
    batches: Batches[int] = Batches(10)
    taking = asyncio.create_task(batches.take())
    await asyncio.sleep(0)
    assert not taking.done()
    for number in range(3):
        await batches.put(number)
    assert await taking == [0, 1, 2]


async def test_who_puts_into_full_batches_waits_until_they_are_taken() -> None:
    batches: Batches[int] = Batches(2)
    putting = [asyncio.create_task(batches.put(number)) for number in range(5)]
    await asyncio.sleep(0)
    assert [task.done() for task in putting] == [True, True, False, False, False]
    taken: list[int] = []
    while len(taken) < 5:
        batch = await asyncio.wait_for(batches.take(), 1)
        assert 0 < len(batch) <= 2
        taken += batch
        await asyncio.sleep(0)
    assert sorted(taken) == [0, 1, 2, 3, 4]
    assert all(task.done() for task in putting)


async def test_a_take_that_is_cancelled_loses_nothing() -> None:
    batches: Batches[int] = Batches(2)
    taking = asyncio.create_task(batches.take())
    await asyncio.sleep(0)
    await batches.put(1)
    taking.cancel()
    await asyncio.wait([taking])
    assert taking.cancelled()
    assert await batches.take() == [1]
