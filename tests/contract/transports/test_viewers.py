"""What every transport owes its viewers, whatever its protocol; `table.py` says where one cannot."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    nullcontext,
    suppress,
)
from dataclasses import replace
from itertools import count

from services.common.media.codec import VideoDecoder
from services.common.media.mpegts import AccessUnit, Codec
from services.ingest.bridge.session import BridgeSession
from tests.contract.transports.census import Census, bugs, nothing_left, usual
from tests.contract.transports.media import program, steps_between
from tests.contract.transports.points import LONG, points
from tests.contract.transports.publishers import TsPublisher
from tests.contract.transports.steps import named, watching
from tests.contract.transports.table import able_to, each
from tests.contract.transports.viewers import VIEWERS, TsViewer, Viewer
from tests.support.ingest import STREAM, Ingest, until
from tests.support.media import FRAME, pictures

END_S = 5.0
PADDING = b"\x00\x00\x00\x01\x0c" + b"\xff" * 100_000 + b"\x80"  # H.264 §7.3.2.7: filler data


@asynccontextmanager
async def watched_by(viewer: Viewer) -> AsyncIterator[asyncio.Task[None]]:
    """Let it watch beside the block; it has left when the block is over."""
    life = asyncio.get_running_loop().create_task(viewer.run())
    try:
        yield life
    finally:
        life.cancel()
        try:
            with suppress(asyncio.CancelledError, ConnectionError):
                await life
        finally:
            viewer.vanish()


@asynccontextmanager
async def published(
    ingest: Ingest, units: Sequence[AccessUnit], pace_s: float = 0.01
) -> AsyncIterator[BridgeSession]:
    """A publisher that sends beside the block and is done in order when the block is over."""
    publisher = TsPublisher(ingest)
    await publisher.connect()
    sending = asyncio.ensure_future(publisher.send_all(units, pace_s))
    try:
        yield await until(lambda: ingest.hub.of_stream(STREAM))
        await sending
        await publisher.finish()
    finally:
        sending.cancel()
        with suppress(asyncio.CancelledError, ConnectionError):
            await sending
        publisher.vanish()


@asynccontextmanager
async def playing(ingest: Ingest) -> AsyncIterator[BridgeSession]:
    """A publisher that sends for as long as the block lasts; pictures come out already."""
    publisher = TsPublisher(ingest)
    await publisher.connect()

    async def send() -> None:
        for second in count():
            await publisher.send_all(pictures(25, start=second * 25 * FRAME), 0.02)

    sending = asyncio.ensure_future(send())
    try:
        session = await until(lambda: ingest.hub.of_stream(STREAM))
        await until(lambda: session.frames_out)
        yield session
    finally:
        sending.cancel()
        with suppress(asyncio.CancelledError, ConnectionError):
            await sending
        publisher.vanish()


def stage(ingest: Ingest, kind: type[Viewer]) -> AbstractAsyncContextManager[object]:
    """A stream that plays, for viewers who can come to it."""
    return playing(ingest) if able_to(kind, "late") else nullcontext()


@asynccontextmanager
async def live(ingest: Ingest, viewer: Viewer) -> AsyncIterator[asyncio.Task[None]]:
    """A viewer of the stream that plays; of one that begins when it is there, if it cannot come later."""
    async with watched_by(viewer) as life:
        if able_to(type(viewer), "late"):
            yield life
            return
        there = asyncio.ensure_future(viewer.there.wait())
        await asyncio.wait({there, life}, return_when=asyncio.FIRST_COMPLETED)
        there.cancel()
        async with playing(ingest):
            yield life
    ingest.hub.close_all("the test goes on")


async def warmed_up(ingest: Ingest, kind: type[Viewer]) -> Census:
    """What there is when a viewer has come and gone."""
    async with live(ingest, viewer := kind(ingest)):
        await until(lambda: len(viewer.pictures) > 2)
    await until(lambda: not ingest.core.viewing.of(STREAM))
    if not able_to(kind, "late"):
        await until(lambda: not len(ingest.hub))
    return await usual(ingest)


def companion(kind: type[Viewer]) -> type[Viewer]:
    """A second viewer of the same stream: of the same kind, if there can be two."""
    return kind if able_to(kind, "several") else TsViewer


def decoded(viewer: Viewer) -> list[int]:
    """The times of what a decoder shows; the first picture is one that it can begin with."""
    decoder = VideoDecoder()
    assert viewer.pictures[0].keyframe
    frames = [frame for unit in viewer.pictures for frame in decoder.decode(unit.data, unit.pts)]
    assert decoder.errors == 0
    return [frame.pts for frame in [*frames, *decoder.flush()]]


@each(VIEWERS)
async def test_pictures_and_sound_come_in_order_to_one_who_was_there_before(
    ingest: Ingest, kind: type[Viewer]
) -> None:
    viewer = kind(ingest)
    async with watched_by(viewer) as life:
        await viewer.there.wait()
        async with published(ingest, program(100, Codec.AAC)):
            pass
        await over(viewer, life, 100)
    assert steps_between(decoded(viewer)) == {FRAME}
    heard = [unit.pts for unit in viewer.units if unit.codec in {Codec.AAC, Codec.OPUS}]
    assert heard == sorted(set(heard))
    assert len(heard) > 60


async def over(viewer: Viewer, life: asyncio.Task[None], sent: int) -> None:
    """The end has come, or, for those that wait for the stream's next session, all pictures."""
    if able_to(type(viewer), "end"):
        async with asyncio.timeout(END_S):
            await life
        assert len(viewer.pictures) == sent or not able_to(type(viewer), "first")
        assert len(viewer.pictures) >= sent - 50
    else:
        await until(lambda: len(viewer.pictures) >= sent)


@each(VIEWERS, "late")
async def test_one_who_comes_later_begins_with_a_key_frame(ingest: Ingest, kind: type[Viewer]) -> None:
    viewer = kind(ingest)
    async with published(ingest, program(150, Codec.AAC)) as session:
        await until(lambda: session.frames_out > 30)
        async with watched_by(viewer):
            await until(lambda: len(viewer.pictures) > 30)
    assert steps_between(decoded(viewer)) == {FRAME}


@each(VIEWERS, "end")
async def test_the_end_of_the_session_is_the_viewers_end(ingest: Ingest, kind: type[Viewer]) -> None:
    viewer = kind(ingest)
    async with watched_by(viewer) as life:
        async with published(ingest, program(30, Codec.AAC)):
            await until(lambda: viewer.pictures)
            assert not life.done()
        async with asyncio.timeout(END_S):
            await life


@each(VIEWERS)
async def test_one_who_leaves_is_not_missed_and_holds_no_seat(ingest: Ingest, kind: type[Viewer]) -> None:
    staying, leaving = companion(kind)(ingest), kind(ingest)
    seats = [able_to(type(viewer), "seat") for viewer in (staying, leaving)]
    async with watched_by(staying) as life, AsyncExitStack() as until_it_leaves:
        await until_it_leaves.enter_async_context(watched_by(leaving))
        await asyncio.gather(staying.there.wait(), leaving.there.wait())
        async with published(ingest, program(150, Codec.AAC)) as session:
            await until(lambda: len(leaving.pictures) > 10)
            await until(lambda: ingest.core.viewing.of(session.identity.stream) == sum(seats))
            await until_it_leaves.aclose()
            await until(lambda: ingest.core.viewing.of(session.identity.stream) == seats[0])
        await over(staying, life, 150)
    assert steps_between(decoded(staying)) == {FRAME}


@LONG
@each(VIEWERS, "slow")
async def test_a_slow_one_loses_pictures_that_are_counted_and_nobody_else_does(
    ingest: Ingest, kind: type[Viewer]
) -> None:
    units = [replace(unit, data=unit.data + PADDING) for unit in pictures(250)]
    slow, quick = kind(ingest), companion(kind)(ingest)
    lost = kind.counted()
    async with watched_by(quick) as life, watched_by(slow):
        await asyncio.gather(quick.there.wait(), slow.there.wait())
        begun_s = asyncio.get_running_loop().time()
        async with published(ingest, units, 0.02) as session:
            await until(lambda: slow.pictures)
            slow.pause()
            await until(lambda: session.frames_out > 200, 15)
            slow.resume()
            await until(lambda: kind.counted() > lost)
        assert asyncio.get_running_loop().time() - begun_s < 15, "the publisher was held by a viewer"
        await over(quick, life, 250)
    assert len(slow.pictures) < 250
    assert steps_between(decoded(quick)) == {FRAME}


@LONG
@each(VIEWERS)
async def test_nothing_is_left_wherever_a_viewer_breaks_off(ingest: Ingest, kind: type[Viewer]) -> None:
    async with stage(ingest, kind):
        before, known = await warmed_up(ingest, kind), bugs()
        life_of = named(kind.run.__qualname__)
        with watching(life_of) as whole:
            async with live(ingest, viewer := kind(ingest)):
                await until(lambda: len(viewer.pictures) > 5)
        await nothing_left(ingest, before)
        for point in points(whole.count, kind.breaks_at):
            with watching(life_of, cancel_at=point):
                async with live(ingest, kind(ingest)) as life:
                    await asyncio.wait({life}, timeout=1.0)
            await nothing_left(ingest, before)
        assert bugs() == known


@LONG
@each(VIEWERS)
async def test_nothing_is_left_wherever_the_transport_is_cancelled(
    ingest: Ingest, kind: type[Viewer]
) -> None:
    async with stage(ingest, kind):
        before, known = await warmed_up(ingest, kind), bugs()
        with watching(kind.serves) as whole:
            async with live(ingest, viewer := kind(ingest)):
                await until(lambda: len(viewer.pictures) > 5)
            await nothing_left(ingest, before)
        assert whole.count > 0, "nothing that serves this transport was found"
        for point in points(whole.count, kind.breaks_at):
            with watching(kind.serves, cancel_at=point) as steps:
                async with live(ingest, kind(ingest)) as life:
                    with suppress(TimeoutError):
                        await until(lambda: steps.count >= point or life.done(), 1.0)  # noqa: B023
                await nothing_left(ingest, before)
        assert bugs() == known
        async with live(ingest, viewer := kind(ingest)):
            await until(lambda: len(viewer.pictures) > 2)


@LONG
@each(VIEWERS)
async def test_garbage_from_a_viewer_harms_nobody_else(ingest: Ingest, kind: type[Viewer]) -> None:
    known = bugs()
    dice = random.Random(kind.__name__)
    staying, rude = companion(kind)(ingest), kind(ingest)
    async with watched_by(staying) as life, watched_by(rude):
        await asyncio.gather(staying.there.wait(), rude.there.wait())
        async with published(ingest, program(150, Codec.AAC), 0.02):
            await until(lambda: rude.pictures)
            for _ in range(8):
                with suppress(ConnectionError):
                    await rude.garbage(dice.randbytes(dice.choice((1, 7, 188, 20_000))))
                await asyncio.sleep(0.05)
        await over(staying, life, 150)
    assert steps_between(decoded(staying)) == {FRAME}
    assert bugs() == known
