"""Of several things that are waited for one counts, and the others are over when it does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from services.common.errors import ConflictError, DeadlineExceededError, NotFoundError
from services.session_manager.waiting import race, tolerant, within


async def after(seconds: float, value: str) -> str:
    await asyncio.sleep(seconds)
    return value


@pytest.mark.looptime
async def test_the_first_one_counts_and_the_others_are_over() -> None:
    over: list[str] = []

    async def slow() -> str:
        try:
            return await after(60, "slow")
        finally:
            over.append("slow")

    assert await race(slow(), after(1, "quick")) == "quick"
    assert over == ["slow"]


@pytest.mark.looptime
async def test_of_several_that_are_done_the_first_in_order_counts() -> None:
    assert await race(after(1, "first"), after(1, "second")) == "first"


@pytest.mark.looptime
async def test_a_failure_counts_as_an_answer() -> None:
    async def fails() -> str:
        raise NotFoundError("gone")

    with pytest.raises(NotFoundError):
        await race(after(60, "never"), fails())


@pytest.mark.looptime
async def test_one_that_swallows_its_cancellation_is_cancelled_again() -> None:
    async def stubborn() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.Event().wait()
        raise AssertionError

    assert await race(stubborn(), after(1, "quick")) == "quick"


@pytest.mark.looptime
async def test_one_that_finishes_in_spite_of_its_cancellation_counts() -> None:
    async def granted() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "granted"
        raise AssertionError

    assert await race(granted(), after(1, "quick")) == "granted"


@pytest.mark.looptime
async def test_a_race_that_is_cancelled_ends_all_of_it() -> None:
    running = asyncio.ensure_future(race(after(60, "one"), after(60, "two")))
    await asyncio.sleep(1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


@pytest.mark.looptime
async def test_reports_that_stop_are_a_silence() -> None:
    async def reports() -> AsyncIterator[int]:
        yield 1
        await asyncio.Event().wait()

    heard = within(3.0, reports())
    assert await anext(heard) == 1
    with pytest.raises(DeadlineExceededError):
        await anext(heard)


async def test_what_cannot_be_reached_is_tolerated() -> None:
    async def refuses() -> str:
        raise ConflictError("no")

    assert await tolerant(refuses()) is None
    assert await tolerant(after(0, "yes")) == "yes"
