"""Which pictures of a stream that goes on are only decoded."""

from __future__ import annotations

import asyncio

import pytest

from services.common.media.mpegts import CLOCK_HZ
from services.inference.catching_up import BEHIND, IDLE_S, LONGEST_S, CatchingUp

FRAME = CLOCK_HZ // 30
pytestmark = pytest.mark.looptime


async def judged(catching_up: CatchingUp, pictures: list[int]) -> list[int]:
    """Those that are shown, if the first that is ends the catching up."""
    for place, pts in enumerate(pictures):
        if not await catching_up.only_to_decode(pts):
            return pictures[place:]
    return []


async def test_what_waited_is_decoded_up_to_a_fifth_of_a_second_before_its_end() -> None:
    catching_up = CatchingUp(lambda: False)
    pictures = [90_000 + n * FRAME for n in range(60)]
    for pts in pictures:
        catching_up.arrived(pts)
    assert await judged(catching_up, pictures) == [pts for pts in pictures if pictures[-1] - pts <= BEHIND]


async def test_what_waited_may_take_its_time_to_come() -> None:
    catching_up = CatchingUp(lambda: False)
    pictures = [90_000 + n * FRAME for n in range(60)]
    catching_up.arrived(pictures[0])
    judging = asyncio.create_task(judged(catching_up, pictures))
    for first in range(1, 60, 10):  # in pieces, as sockets hand them out
        await asyncio.sleep(IDLE_S / 2)
        for pts in pictures[first : first + 10]:
            catching_up.arrived(pts)
    assert await judging == [pts for pts in pictures if pictures[-1] - pts <= BEHIND]


async def test_a_stream_that_was_live_already_waits_for_nothing_more() -> None:
    catching_up = CatchingUp(lambda: False)
    catching_up.arrived(90_000)
    began_s = asyncio.get_running_loop().time()
    assert not await catching_up.only_to_decode(90_000)
    assert asyncio.get_running_loop().time() - began_s <= IDLE_S * 1.1


async def test_a_fast_camera_is_told_from_what_waited() -> None:
    catching_up = CatchingUp(lambda: False)
    pictures = [90_000 + n * (CLOCK_HZ // 100) for n in range(100)]
    began_s = asyncio.get_running_loop().time()

    async def film() -> None:
        for pts in pictures:
            catching_up.arrived(pts)
            await asyncio.sleep(0.01)

    filming = asyncio.create_task(film())
    await asyncio.sleep(0.001)
    assert not await catching_up.only_to_decode(pictures[0])
    assert asyncio.get_running_loop().time() - began_s < 0.05
    await filming


async def test_nobody_waits_for_long_whatever_comes() -> None:
    catching_up = CatchingUp(lambda: False)
    pts = 90_000

    async def crawl() -> None:
        nonlocal pts
        while True:
            catching_up.arrived(pts)
            pts += 1
            await asyncio.sleep(0.001)

    crawling = asyncio.create_task(crawl())
    await asyncio.sleep(0.0005)
    began_s = asyncio.get_running_loop().time()
    assert not await catching_up.only_to_decode(90_000)
    assert asyncio.get_running_loop().time() - began_s <= 1.1 * LONGEST_S
    crawling.cancel()
    await asyncio.wait({crawling})


async def test_a_reader_that_waits_for_room_is_not_at_the_end() -> None:
    full = True
    catching_up = CatchingUp(lambda: full)
    catching_up.arrived(90_000)
    judging = asyncio.create_task(catching_up.only_to_decode(90_000))
    await asyncio.sleep(4 * IDLE_S)
    assert not judging.done()
    full = False
    for n in range(1, 30):
        catching_up.arrived(90_000 + n * FRAME)
    assert await judging
