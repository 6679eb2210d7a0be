"""What every transport owes its publishers, whatever its protocol; `table.py` says where one cannot."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextlib import suppress

import pytest

from services.common.media.mpegts import AccessUnit
from services.ingest.bridge.session import BridgeSession
from services.ingest.transports.webrtc import peer
from tests.contract.transports.census import bugs, nothing_left, usual
from tests.contract.transports.media import program, steps_between, stills_shown
from tests.contract.transports.points import LONG, POINTS, points
from tests.contract.transports.publishers import PUBLISHERS, Publisher, leave
from tests.contract.transports.steps import named, watching
from tests.contract.transports.table import able_to, each
from tests.support.ingest import STREAM, Ingest, until
from tests.support.media import FRAME, shown, units_of


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer, "SILENCE_S", 1.2)  # below the grace, as it is outside


async def live(ingest: Ingest) -> BridgeSession:
    return await until(lambda: ingest.hub.of_stream(STREAM))


async def ended(session: BridgeSession, within_s: float = 8.0) -> str:
    async with asyncio.timeout(within_s):
        return (await asyncio.shield(session.closed)).reason


async def whole_life(publisher: Publisher, units: Sequence[AccessUnit]) -> None:
    """Connect, publish, finish."""
    await publisher.connect()
    await publisher.send_all(units)
    await publisher.finish()


async def warmed_up(ingest: Ingest, kind: type[Publisher]) -> None:
    """Publish once, so that what a process keeps for all its clients is there."""
    await whole_life(kind(ingest), program(10, kind.sound))
    await until(lambda: not len(ingest.hub))


@each(PUBLISHERS)
async def test_pictures_and_sound_come_out_in_order_and_none_is_missing(
    ingest: Ingest, kind: type[Publisher]
) -> None:
    watching_it = asyncio.ensure_future(ingest.watch())
    await whole_life(kind(ingest), program(75, kind.sound))
    seen = await watching_it
    assert steps_between(shown(seen)) == {FRAME}
    assert len(shown(seen)) == 75
    heard = [unit.pts for unit in units_of(seen) if unit.codec is kind.sound]
    assert heard == sorted(set(heard))
    assert len(heard) > 100, "three seconds of sound, but for what came before the first picture was back"


@each(PUBLISHERS)
async def test_a_clock_that_begins_again_goes_on_where_it_was(ingest: Ingest, kind: type[Publisher]) -> None:
    watching_it = asyncio.ensure_future(ingest.watch())
    units = program(75, kind.sound, start=kind.clock_wraps - 30 * FRAME)
    await whole_life(kind(ingest), units)
    seen = shown(await watching_it)
    assert len(seen) == 75
    assert steps_between(seen) == {FRAME}


@each(PUBLISHERS)
async def test_an_orderly_end_ends_the_session_when_everything_came_back(
    ingest: Ingest, kind: type[Publisher]
) -> None:
    publisher = kind(ingest)
    await publisher.connect()
    publishing = asyncio.ensure_future(publisher.send_all(program(30, kind.sound)))
    session = await live(ingest)
    await publishing
    await publisher.finish()
    assert await ended(session) == "input_ended"
    assert session.report().drained
    assert publisher.refused == ""


@each(PUBLISHERS)
async def test_a_publisher_that_vanished_is_waited_for_and_then_given_up(
    ingest: Ingest, kind: type[Publisher]
) -> None:
    publisher = kind(ingest)
    await publisher.connect()
    await publisher.send_all(program(30, kind.sound))
    session = await live(ingest)
    publisher.vanish()
    if kind.breaks:
        await until(lambda: not session.connected, 2.0)
    assert not session.closed.done(), "its grace has begun"
    assert await ended(session) == "publisher_gone"


@each(PUBLISHERS)
async def test_one_that_comes_back_within_its_grace_goes_on_with_its_session(
    ingest: Ingest, kind: type[Publisher]
) -> None:
    watching_it = asyncio.ensure_future(ingest.watch())
    first, second, before = kind(ingest), kind(ingest), stills_shown()
    await first.connect()
    await first.send_all(program(30, kind.sound))
    session = await live(ingest)
    first.vanish()
    if kind.breaks:
        await until(lambda: not session.connected, 2.0)
    await whole_life(second, program(30, kind.sound, start=77_000_000))
    assert await ended(session) == "input_ended"
    seen = shown(await watching_it)
    assert len(seen) - (stills_shown() - before) == 60, "those who watch are told when it takes its time"
    assert min(steps_between(seen)) > 0


@each(PUBLISHERS, "second")
async def test_a_second_publisher_is_refused_and_the_first_goes_on(
    ingest: Ingest, kind: type[Publisher]
) -> None:
    watching_it = asyncio.ensure_future(ingest.watch())
    first, second = kind(ingest), kind(ingest)
    await first.connect()
    publishing = asyncio.ensure_future(first.send_all(program(75, kind.sound)))
    await live(ingest)
    with suppress(ConnectionError):
        await whole_life(second, program(75, kind.sound))
    second.vanish()
    assert "publisher already" in second.refused
    await publishing
    await first.finish()
    assert len(shown(await watching_it)) == 75


@each(PUBLISHERS)
async def test_the_publisher_is_told_why_when_the_platform_ends_its_session(
    ingest: Ingest, kind: type[Publisher]
) -> None:
    publisher = kind(ingest)
    await publisher.connect()
    publishing = asyncio.ensure_future(publisher.send_all(program(500, kind.sound)))
    session = await live(ingest)
    await until(lambda: session.frames_out > 5)
    session.close("credit_exhausted", "the credit is used up")
    with pytest.raises(ConnectionError):
        await publishing
    if able_to(kind, "tells"):
        assert "the credit is used up" in publisher.refused
    publisher.vanish()


@LONG
@each(PUBLISHERS)
async def test_nothing_is_left_wherever_a_publisher_breaks_off(ingest: Ingest, kind: type[Publisher]) -> None:
    await warmed_up(ingest, kind)
    before, known = await usual(ingest), bugs()
    units = program(12, kind.sound)
    with watching(named("whole_life")) as whole:
        await asyncio.get_running_loop().create_task(whole_life(kind(ingest), units))
    await nothing_left(ingest, before)
    assert whole.count > 5
    for point in points(whole.count, kind.breaks_at):
        publisher = kind(ingest)
        with watching(named("whole_life"), cancel_at=point):
            life = asyncio.get_running_loop().create_task(whole_life(publisher, units))
            with suppress(asyncio.CancelledError, ConnectionError):
                await life
        publisher.vanish()
        ingest.hub.close_all("the test goes on")
        await nothing_left(ingest, before)
    assert bugs() == known


@LONG
@each(PUBLISHERS)
async def test_nothing_is_left_wherever_the_transport_is_cancelled(
    ingest: Ingest, kind: type[Publisher]
) -> None:
    await warmed_up(ingest, kind)
    before, known = await usual(ingest), bugs()
    units = program(12, kind.sound)
    with watching(kind.serves) as whole:
        await whole_life(kind(ingest), units)
    await nothing_left(ingest, before)
    assert whole.count > 0, "nothing that serves this transport was found"
    for point in points(whole.count, kind.breaks_at):
        publisher = kind(ingest)
        with watching(kind.serves, cancel_at=point):
            with suppress(ConnectionError, TimeoutError):
                async with asyncio.timeout(2):
                    await whole_life(publisher, units)
            publisher.vanish()
            ingest.hub.close_all("the test goes on")
            await nothing_left(ingest, before)
    assert bugs() == known
    await warmed_up(ingest, kind)


@LONG
@each(PUBLISHERS)
async def test_garbage_at_any_byte_harms_nobody_else(ingest: Ingest, kind: type[Publisher]) -> None:
    await warmed_up(ingest, kind)
    before, known = await usual(ingest), bugs()
    dice = random.Random(kind.__name__)
    units = program(12, kind.sound)
    for _ in range(POINTS):
        publisher = kind(ingest)
        with suppress(ConnectionError):
            await publisher.connect()
            for unit in units[: dice.randrange(len(units))]:
                await publisher.send(unit)
            for _ in range(dice.randrange(1, 5)):
                await publisher.garbage(dice.randbytes(dice.choice((1, 7, 188, 1316, 20_000))))
            await publisher.send_all(damaged(units, dice), 0.001)
            await leave(publisher)
        publisher.vanish()
        ingest.hub.close_all("the test goes on")
        await nothing_left(ingest, before)
    assert bugs() == known
    watching_it = asyncio.ensure_future(ingest.watch())
    await whole_life(kind(ingest), program(25, kind.sound))
    assert len(shown(await watching_it)) == 25


def damaged(units: Sequence[AccessUnit], dice: random.Random) -> list[AccessUnit]:
    """The same units with bytes that fell over, and a few that came twice."""
    found = []
    for unit in units:
        data = bytearray(unit.data)
        for _ in range(dice.randrange(3)):
            data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        found += [AccessUnit(unit.codec, unit.pts, unit.dts, bytes(data), keyframe=unit.keyframe)]
    return found + [dice.choice(found) for _ in range(3)]
