"""The suite's own tools can fail: a cancellation arrives where it was asked for, and a leak is told."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from tests.contract.transports import census as tools
from tests.contract.transports.census import census, nothing_left
from tests.contract.transports.points import points
from tests.contract.transports.publishers import PUBLISHERS
from tests.contract.transports.steps import named, watching
from tests.contract.transports.table import CANNOT
from tests.contract.transports.viewers import VIEWERS
from tests.support.ingest import STREAM, Ingest


async def five_steps(done: list[int]) -> None:
    for step in range(5):
        done.append(step)
        await asyncio.sleep(0)


async def test_a_task_is_cancelled_at_the_await_that_was_asked_for() -> None:
    loop = asyncio.get_running_loop()
    for point in range(1, 6):
        done: list[int] = []
        with watching(named("five_steps"), cancel_at=point) as steps:
            task = loop.create_task(five_steps(done))
            with suppress(asyncio.CancelledError):
                await task
        assert (task.cancelled(), len(done), steps.count) == (True, point, point)


async def test_a_task_that_was_not_chosen_is_left_alone() -> None:
    done: list[int] = []
    with watching(named("another"), cancel_at=1) as steps:
        await asyncio.get_running_loop().create_task(five_steps(done))
    assert (len(done), steps.count) == (5, 0)


def test_the_points_are_within_a_life_and_its_beginning_is_among_them() -> None:
    for count in (0, 1, 3, 20, 400):
        chosen = points(count)
        assert chosen == sorted(set(chosen))
        assert all(1 <= point <= count for point in chosen)
        assert chosen[:3] == list(range(1, min(count, 3) + 1))


def test_the_table_of_exceptions_is_about_transports_that_there_are() -> None:
    kinds = {kind.__name__ for kind in (*PUBLISHERS, *VIEWERS)}
    assert {name for name, _ in CANNOT} <= kinds
    assert all(CANNOT.values())


async def test_what_is_left_behind_is_told(ingest: Ingest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "SETTLED_S", 0.1)
    before = census(ingest)
    await nothing_left(ingest, before)
    seat = ingest.core.viewing.take(STREAM, "acme")
    reader, writer = await asyncio.open_connection(
        ingest.http.base_url.host, ingest.http.base_url.port, limit=1
    )
    task = asyncio.ensure_future(five_steps_slowly())
    await asyncio.sleep(0)
    with pytest.raises(AssertionError, match=r"left behind: 1 five_steps_slowly, 2 sockets, 1 viewers"):
        await nothing_left(ingest, before)
    task.cancel()
    seat.release()
    writer.transport.abort()
    assert reader is not None
    monkeypatch.undo()
    await nothing_left(ingest, before)


async def five_steps_slowly() -> None:
    await asyncio.sleep(60)
