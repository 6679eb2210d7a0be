"""A channel's address, and what goes on there when it moves."""

from __future__ import annotations

import asyncio

import pytest

from services.inference.address import Address

pytestmark = pytest.mark.looptime


async def test_work_begins_anew_where_the_channel_has_moved() -> None:
    address = Address("old")
    begun: list[str] = []

    async def work(url: str) -> None:
        begun.append(url)
        await asyncio.sleep(10)

    working = asyncio.create_task(address.at_each(work))
    await asyncio.sleep(1)
    address.move("new")
    await asyncio.sleep(1)
    assert begun == ["old", "new"]
    await working
    assert begun == ["old", "new"]


async def test_a_channel_that_moves_twice_at_once_is_used_at_the_last_place() -> None:
    address = Address("old")
    begun: list[str] = []

    async def work(url: str) -> None:
        begun.append(url)
        await asyncio.sleep(10)

    working = asyncio.create_task(address.at_each(work))
    await asyncio.sleep(1)
    address.move("between")
    address.move("new")
    await working
    assert begun == ["old", "new"]


async def test_work_that_is_over_does_not_begin_again() -> None:
    address = Address("old")
    begun: list[str] = []

    async def work(url: str) -> None:
        begun.append(url)

    await address.at_each(work)
    address.move("new")
    await asyncio.sleep(1)
    assert begun == ["old"]


async def test_a_time_out_of_the_work_itself_is_its_own() -> None:
    async def work(_: str) -> None:
        async with asyncio.timeout(1):
            await asyncio.sleep(10)

    with pytest.raises(TimeoutError):
        await Address("old").at_each(work)


async def test_a_cancellation_ends_the_work_for_good() -> None:
    address = Address("old")
    working = asyncio.create_task(address.at_each(lambda _: asyncio.sleep(10)))
    await asyncio.sleep(1)
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
