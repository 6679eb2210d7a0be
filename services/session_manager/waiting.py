"""Waiting for one of several things, and for what may be dead: whatever is waited for no more is ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Final, TypeVar

import structlog

from services.common.errors import ConflictError, DeadlineExceededError, NotFoundError, UnavailableError

log = structlog.get_logger()
T = TypeVar("T")

Aside = Callable[[str, Coroutine[object, object, None]], None]  # does what nobody waits for, under a key
CANCEL_AGAIN_S: Final = 1.0  # `asyncio.wait_for` of Python 3.11 may swallow a cancellation


async def race(*works: Coroutine[object, object, T]) -> T:
    """Return what the first of `works` returns, or raise what it raises; the others are cancelled.

    Of several that are done the first in order counts, also if it finished in spite of its cancellation.
    """
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        while pending := [task for task in tasks if not task.done()]:
            for task in pending:
                task.cancel()
            await asyncio.wait(pending, timeout=CANCEL_AGAIN_S)
    finished = [task for task in tasks if not task.cancelled()]
    for task in finished:
        task.exception()  # looked at, so that asyncio does not complain of the second one's
    return finished[0].result()


async def within(silence_s: float, reports: AsyncIterator[T]) -> AsyncIterator[T]:
    """Yield `reports`. Raises DeadlineExceededError when the next one, due every second, does not come.

    A process that hangs keeps its connections: gRPC answers pings from a thread of its own. One silence is no
    evidence, for it was perhaps this process that stood still: the caller asks anew.
    """
    while True:
        try:
            async with asyncio.timeout(silence_s):
                report = await anext(reports)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise DeadlineExceededError(f"no report for {silence_s:g} s", reason="SILENT") from None
        yield report


async def tolerant(step: Awaitable[T]) -> T | None:
    """Await `step`; one that cannot be reached has nothing to free that its own death did not free.

    A dead ingest pod has closed its channels, and a dead runner its slot; the router's key is freed after.
    """
    try:
        return await step
    except (UnavailableError, DeadlineExceededError, NotFoundError, ConflictError) as error:
        log.info("not reached while freeing", reason=error.reason)
        return None
