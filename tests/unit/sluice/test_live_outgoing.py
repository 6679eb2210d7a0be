from __future__ import annotations

import asyncio

from services.common.media.mpegts import AccessUnit
from sluice.live.outgoing import AHEAD, LATE, Outgoing
from tests.support.media import pictures


async def put_all(outgoing: Outgoing, units: list[AccessUnit]) -> list[bool]:
    return [await outgoing.put(unit) for unit in units]


async def rest(outgoing: Outgoing) -> list[AccessUnit]:
    found = []
    while (unit := await outgoing.get()) is not None:
        found.append(unit)
    return found


async def test_an_input_that_can_wait_waits_and_loses_nothing() -> None:
    outgoing = Outgoing(waits=True)
    units = pictures(AHEAD + 20)
    putting = asyncio.ensure_future(put_all(outgoing, units))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not putting.done()
    first = [await outgoing.get() for _ in range(20)]
    assert all(await putting)
    outgoing.end()
    assert first + await rest(outgoing) == units
    assert outgoing.dropped == 0


async def test_an_input_that_cannot_loses_everything_up_to_the_next_key_frame_and_counts_it() -> None:
    outgoing = Outgoing(waits=False)
    units = pictures(LATE + 50, every=50)
    told = await put_all(outgoing, units)
    assert False in told, "a key frame is wanted"
    outgoing.end()
    kept = await rest(outgoing)
    assert kept[0].keyframe
    assert kept == units[len(units) - len(kept) :]
    assert outgoing.dropped == len(units) - len(kept)


async def test_what_waits_ends_when_it_is_stopped() -> None:
    outgoing = Outgoing(waits=True)
    getting = asyncio.ensure_future(outgoing.get())
    await asyncio.sleep(0)
    outgoing.stop()
    assert await getting is None
    full = Outgoing(waits=True)
    putting = asyncio.ensure_future(put_all(full, pictures(AHEAD + 1)))
    await asyncio.sleep(0)
    full.stop()
    await putting
