from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest_asyncio
import uvloop

from tests.contract.trickle.wire import Served, serving


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Sockets are driven by the loop that services run on; the unit tests run on asyncio's own."""
    return {"uvloop": uvloop.new_event_loop}


@pytest_asyncio.fixture(autouse=True)
async def no_task_outlives_its_test() -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    this = {asyncio.current_task()}
    for _ in range(50):
        if asyncio.all_tasks() <= before | this:
            return
        await asyncio.sleep(0.01)
    assert asyncio.all_tasks() <= before | this


@pytest_asyncio.fixture
async def served() -> AsyncIterator[Served]:
    async with serving() as served:
        yield served
