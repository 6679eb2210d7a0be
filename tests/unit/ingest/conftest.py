from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest_asyncio


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
