"""What viewers of every transport see while the publisher is away: that it is, and then the stream again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from services.common.media.codec import DecodedFrame, VideoDecoder
from services.common.media.mpegts import CLOCK_HZ, Codec
from services.ingest.bridge.presence import Publisher as Presence
from services.ingest.bridge.session import BridgeSession
from services.ingest.faces import ts as face
from services.ingest.placeholder import AWAY, draw
from tests.contract.transports.media import program, stills_shown
from tests.contract.transports.publishers import TsPublisher
from tests.contract.transports.table import each
from tests.contract.transports.test_viewers import watched_by
from tests.contract.transports.viewers import VIEWERS, Viewer
from tests.support.ingest import STREAM, Ingest, ingesting, until
from tests.support.media import FRAME, SIZE
from tests.support.nats import nats_server

PICTURES = 75
PACE_S = FRAME / CLOCK_HZ


@pytest_asyncio.fixture
async def ingest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Ingest]:
    """An edge that waits for those who take what comes at its own pace."""
    monkeypatch.setattr(face, "DRAIN_S", 0.1)
    async with (
        nats_server(tmp_path / "nats") as nats,
        ingesting(
            nats.url,
            tmp_path,
            silent_after_s=0.5,
            publisher_grace_s=6,
            viewer_wait_s=5,
            hls_target_s=1,
            rtmp_push_private=True,
        ) as found,
    ):
        yield found


@asynccontextmanager
async def published(ingest: Ingest, start: int) -> AsyncIterator[TsPublisher]:
    """A publisher at its own pace that has sent everything and is there yet; it vanishes with the block."""
    publisher = TsPublisher(ingest)
    await publisher.connect()
    try:
        await publisher.send_all(program(PICTURES, Codec.AAC, start=start), PACE_S)
        yield publisher
    finally:
        publisher.vanish()


def frames_of(viewer: Viewer) -> list[DecodedFrame]:
    decoder = VideoDecoder()
    frames = [frame for unit in viewer.pictures for frame in decoder.decode(unit.data, unit.pts)]
    frames += decoder.flush()
    assert decoder.errors == 0
    return frames


def is_still(frame: DecodedFrame) -> bool:
    """Whether there are letters in it; the stream's pictures are of one colour each."""
    rgb = frame.rgb().astype(int)
    if np.ptp(rgb[:, :, 0]) < 60:
        return False
    assert np.abs(rgb - draw(*SIZE, AWAY)).mean() < 12, "those of another still"
    return True


def live_session(ingest: Ingest) -> BridgeSession | None:
    session = ingest.hub.of_stream(STREAM)
    return session if session is not None and session.frames_out else None


@each(VIEWERS)
async def test_a_still_says_that_the_publisher_is_away_until_it_is_back(
    ingest: Ingest, kind: type[Viewer]
) -> None:
    viewer, before = kind(ingest), stills_shown()
    async with watched_by(viewer) as life:
        await viewer.there.wait()
        async with published(ingest, 0):
            session = await until(lambda: live_session(ingest))
            await until(lambda: session.frames_out == PICTURES)
        delivered_ms = session.usage.meter.delivered_ms
        await until(lambda: session.publisher() is Presence.SILENT)
        await until(lambda: stills_shown() - before >= 3)
        assert session.frames_out == PICTURES
        assert session.usage.meter.delivered_ms == delivered_ms
        assert session.report().stalled_ms == 0
        async with published(ingest, 77_000_000) as again:
            await until(lambda: session.frames_out >= 2 * PICTURES)
            await again.finish()
        with suppress(TimeoutError):  # whose life goes on over sessions has seen what there was
            async with asyncio.timeout(2):
                await life
    frames = frames_of(viewer)
    assert all(after.pts > before.pts for before, after in pairwise(frames))
    kinds = [(still, len(list(those))) for still, those in groupby(frames, is_still)]
    assert [still for still, _ in kinds] == [False, True, False], kinds
    (_, first), (_, stills), (_, second) = kinds
    assert first > PICTURES / 2
    assert stills >= 2
    assert second == PICTURES
    assert session.frames_out == 2 * PICTURES
