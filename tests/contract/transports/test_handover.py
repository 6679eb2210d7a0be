"""What viewers of every transport have of a runner that takes over from another: nothing but its pictures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

from protos.ingest.v1 import bridge_pb2
from services.common.grpc_client import call
from services.common.media import h264
from services.common.trickle.connection import trickle_session
from services.ingest.bridge.session import BridgeSession
from tests.contract.transports.media import steps_between
from tests.contract.transports.table import able_to, each
from tests.contract.transports.test_viewers import decoded, playing, watched_by
from tests.contract.transports.viewers import VIEWERS, TsViewer, Viewer
from tests.support.ingest import Ingest, until
from tests.support.media import FRAME
from tests.support.transcoder import Transcoder

BIT_RATES = {2: 900_000, 3: 4_000_000}  # by epoch: each has another level, and so other parameter sets
LAST = 3


@asynccontextmanager
async def candidate(ingest: Ingest, session: BridgeSession, epoch: int) -> AsyncIterator[asyncio.Task[None]]:
    """A runner of another epoch, at work beside the block."""
    opened = await ingest.open(session.identity.session, epoch)
    runner = Transcoder(opened.channels, after_pts=session.out_pts, bit_rate=BIT_RATES[epoch])
    working = asyncio.ensure_future(runner.run())
    try:
        yield working
    finally:
        working.cancel()
        await asyncio.wait({working})


async def promote(ingest: Ingest, session: BridgeSession, epoch: int) -> None:
    request = bridge_pb2.PromoteRequest(session=session.identity.session, epoch=epoch)
    await call(ingest.bridge.Promote, request, bridge_pb2.PromoteResponse, timeout_s=5)


@asynccontextmanager
async def watching(ingest: Ingest, viewer: Viewer) -> AsyncIterator[BridgeSession]:
    """A stream that plays, and the viewer that sees it."""
    if able_to(type(viewer), "late"):
        async with playing(ingest) as session, watched_by(viewer):
            yield session
        return
    async with watched_by(viewer):
        await viewer.there.wait()
        async with playing(ingest) as session:
            yield session


@each(VIEWERS)
async def test_nobody_misses_a_picture_when_a_session_goes_from_one_runner_to_another_and_on(
    ingest: Ingest, kind: type[Viewer]
) -> None:
    viewer = kind(ingest)
    async with watching(ingest, viewer) as session:
        await until(lambda: len(viewer.pictures) > 10)
        for epoch in BIT_RATES:
            async with candidate(ingest, session, epoch):
                await promote(ingest, session, epoch)
                await until(lambda wanted=epoch: session.epoch == wanted)  # type: ignore[misc]
                handover = session.report().handover
                assert (handover.lost, handover.repeated) == (0, 0), handover
                seen = len(viewer.pictures)
                await until(lambda count=seen: len(viewer.pictures) > count + 30)  # type: ignore[misc]
                if epoch == LAST:
                    ingest.hub.close_all("the test goes on")
    assert steps_between(decoded(viewer)) == {FRAME}
    sets = {h264.parameter_sets(unit.data) for unit in viewer.pictures if unit.keyframe}
    assert len(sets) == 3, "of three encoders"


async def test_a_runner_whose_connections_break_is_seen_at_once_and_the_next_one_takes_over(
    ingest: Ingest,
) -> None:
    viewer = TsViewer(ingest)
    async with watching(ingest, viewer) as session:
        await until(lambda: len(viewer.pictures) > 10)
        report = session.report
        assert not report().output_broken
        ingest.sessions._tasks.cancel(f"runner/{session.identity.session}")
        await until(lambda: report().output_broken, 1)
        async with candidate(ingest, session, 2):
            await promote(ingest, session, 2)
            await until(lambda: session.epoch == 2)
            assert report().handover.freeze_ms > 0
            assert not report().output_broken
            seen = len(viewer.pictures)
            await until(lambda: len(viewer.pictures) > seen + 30)
            ingest.hub.close_all("the test goes on")
    stamps = decoded(viewer)
    assert stamps == sorted(set(stamps))


async def test_who_was_relieved_finds_its_channels_gone_and_nobody_gets_what_it_writes(
    ingest: Ingest,
) -> None:
    viewer = TsViewer(ingest)
    async with watching(ingest, viewer) as session:
        await until(lambda: session.frames_out > 10)
        old = (await ingest.open(session.identity.session, 1)).channels
        async with candidate(ingest, session, 2):
            await promote(ingest, session, 2)
            await until(lambda: session.epoch == 2)
            async with trickle_session() as http:
                for url in (old.out, old.events, old.data, old.state):
                    assert await status(http, f"{url}/0") == 404
                    assert await status(http, f"{url}/1000") == 404
            ingest.hub.close_all("the test goes on")
    assert not any(b"a woken zombie" in unit.data for unit in viewer.pictures)


async def status(http: aiohttp.ClientSession, url: str) -> int:
    async with http.post(url, data=b"a woken zombie") as answer:
        return answer.status
