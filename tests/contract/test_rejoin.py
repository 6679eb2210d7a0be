"""A publisher by whatever way in: its session is elsewhere and goes on here, or it waits in the line."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import httpx
import pytest

from protos.ingest.v1 import bridge_pb2
from protos.sessions.v1 import sessions_pb2
from services.common.errors import ConflictError, ExhaustedError
from services.common.media.mpegts import CLOCK_HZ, Muxer
from services.common.trickle.publisher import Publisher
from tests.support.ingest import KEYS, STREAM, Ingest, endless, ingesting, paced, until
from tests.support.media import pictures
from tests.support.nats import nats_server
from tests.support.rtmp import Publishers
from tests.support.webrtc import client, moving_pictures

SESSION = "ses_elsewhere00"
POSITION = bridge_pb2.Position(
    in_pts=20 * CLOCK_HZ, out_pts=19 * CLOCK_HZ, session_ms=20_000, delivered_ms=19_000
)
PUBLISH = KEYS.publish(STREAM)


@pytest.fixture
async def ingest(tmp_path: Path) -> AsyncIterator[Ingest]:
    async with nats_server(tmp_path / "nats") as server, ingesting(server.url, tmp_path) as made:
        yield made


@asynccontextmanager
async def by_ts(ingest: Ingest) -> AsyncIterator[None]:
    publishing = asyncio.ensure_future(ingest.publish(endless()))
    try:
        yield
    finally:
        publishing.cancel()
        with suppress(asyncio.CancelledError, httpx.HTTPError):
            await publishing


@asynccontextmanager
async def by_rtmp(ingest: Ingest) -> AsyncIterator[None]:
    url = f"{ingest.rtmp_url}/{PUBLISH}"
    publisher = await Publishers({"url": url, "seconds": 60.0, "speed": 1.0}).start()
    try:
        yield
    finally:
        await publisher.kill()


@asynccontextmanager
async def by_trickle(ingest: Ingest) -> AsyncIterator[None]:
    async with aiohttp.ClientSession() as http, Publisher(http, ingest.trickle_url + PUBLISH) as to:
        muxer = Muxer()
        async with to.segment() as segment:
            await segment.write(muxer.begin_segment())
            for unit in pictures(25):
                await segment.write(muxer.write(unit))
        yield


@asynccontextmanager
async def by_whip(ingest: Ingest) -> AsyncIterator[None]:
    async with client() as publisher:
        publisher.publish(moving_pictures())
        connecting = asyncio.ensure_future(publisher.connect(ingest.http, f"/whip/{PUBLISH}"))
        try:
            yield
        finally:
            connecting.cancel()
            await asyncio.wait({connecting})


def short() -> AsyncIterator[bytes]:
    """What is sent before an answer is read: httpx reads none before."""
    return paced(pictures(25), times_faster=1000)


Way = Callable[[Ingest], AbstractAsyncContextManager[None]]
WAYS = pytest.mark.parametrize("way", [by_ts, by_rtmp, by_trickle, by_whip])


@WAYS
async def test_a_session_that_is_elsewhere_goes_on_here_on_its_clock(ingest: Ingest, way: Way) -> None:
    ingest.sessions.record.session = SESSION
    ingest.sessions.resume = POSITION
    async with way(ingest):
        session = await until(lambda: ingest.hub.of_stream(STREAM), 20)
        await until(lambda: session.frames_out > 5, 20)
        assert session.identity.session == SESSION
        assert session.epoch == 2
        report = session.report()
        assert report.session_ms >= POSITION.session_ms
        assert report.position.in_pts > POSITION.in_pts
        assert POSITION.out_pts < report.position.out_pts < POSITION.in_pts + 60 * CLOCK_HZ
        assert report.delivered_ms >= POSITION.delivered_ms
    assert not ingest.sessions.requests("StartSession", sessions_pb2.StartSessionRequest)
    (asked,) = ingest.sessions.requests("Rejoin", sessions_pb2.RejoinRequest)
    assert (asked.stream, asked.signalling) == (STREAM, ingest.core.settings.own_url)


async def test_a_publisher_whose_session_is_busy_elsewhere_is_refused_and_leaves_nothing(
    ingest: Ingest,
) -> None:
    ingest.sessions.record.session = SESSION
    busy = ConflictError("the stream has a publisher already", reason="STREAM_BUSY")
    ingest.sessions.fail("Rejoin", busy)
    answer = await ingest.publish(short())
    assert (answer.status_code, answer.json()["code"]) == (409, "SLUICE/STREAM_BUSY")
    assert len(ingest.hub) == 0


# A connection that breaks says nothing to trickle's server, whose publishers may be silent.
@pytest.mark.parametrize("way", [by_ts, by_rtmp, by_whip])
async def test_a_publisher_that_goes_away_in_the_line_leaves_it_at_once(ingest: Ingest, way: Way) -> None:
    ingest.sessions.room = asyncio.Event()
    async with way(ingest):
        await until(lambda: ingest.hub.of_stream(STREAM), 20)
        await until(lambda: ingest.sessions.requests("StartSession", sessions_pb2.StartSessionRequest), 15)
    await until(lambda: ingest.sessions.left_line, 15)
    await until(lambda: len(ingest.hub) == 0, 15)


async def test_the_line_is_longer_than_other_calls_may_take(tmp_path: Path) -> None:
    async with (
        nats_server(tmp_path / "nats") as server,
        ingesting(server.url, tmp_path, call_timeout_s=0.5) as ingest,
    ):
        ingest.sessions.room = asyncio.Event()
        async with by_ts(ingest):
            await until(
                lambda: ingest.sessions.requests("StartSession", sessions_pb2.StartSessionRequest), 15
            )
            await asyncio.sleep(1.0)
            assert not ingest.sessions.left_line
            ingest.sessions.room.set()
            await until(lambda: (session := ingest.hub.of_stream(STREAM)) and session.frames_out)


async def test_a_stream_that_waits_only_so_long_is_not_waited_for_longer(tmp_path: Path) -> None:
    async with (
        nats_server(tmp_path / "nats") as server,
        ingesting(server.url, tmp_path, call_timeout_s=0.5) as ingest,
    ):
        ingest.sessions.record.wishes.max_wait_ms = 200
        ingest.sessions.room = asyncio.Event()
        answer = await ingest.publish(short())
        assert answer.status_code == 504, "its bound and the time of a call were over"


async def test_what_other_bridges_see_is_known_within_a_second_or_left_out(ingest: Ingest) -> None:
    over = asyncio.Event()
    left = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await over.wait()
        writer.close()
        left.set()

    async with by_ts(ingest), await asyncio.start_server(silent, "127.0.0.1", 0) as frozen:
        session = await until(lambda: ingest.hub.of_stream(STREAM))
        await until(lambda: session.frames_out)
        places = {
            session.identity.session: ingest.core.publishing._bridge_address,
            "ses_dead": "127.0.0.1:1",
            "ses_frozen": f"127.0.0.1:{frozen.sockets[0].getsockname()[1]}",
            "ses_nobodys": "",
        }
        records = [sessions_pb2.Session(id=name, bridge=bridge) for name, bridge in places.items()]
        began_s = asyncio.get_running_loop().time()
        reports = await ingest.core.plane.reports(records)
        assert asyncio.get_running_loop().time() - began_s < 5
        assert list(reports) == [session.identity.session]
        assert reports[session.identity.session].frames_out > 0
        over.set()
        await left.wait()


async def test_every_way_in_says_the_place_in_the_line(ingest: Ingest) -> None:
    words = "no runner is free: 3rd in line, about 20 s"
    full = ExhaustedError("no runner is free", reason="NO_CAPACITY", position=3, expected_wait_ms=20_000)
    ingest.sessions.fail("StartSession", full, times=3)
    by_body = await ingest.publish(short())
    assert (by_body.status_code, by_body.headers["Retry-After"]) == (503, "20")
    assert by_body.json()["details"]["position"] == 3
    async with client() as publisher:
        publisher.publish(moving_pictures())
        by_offer = await publisher.connect(ingest.http, f"/whip/{PUBLISH}")
        assert (by_offer.status_code, by_offer.headers["Retry-After"]) == (503, "20")
        assert by_offer.json()["error"] == words
    said = await Publishers({"url": f"{ingest.rtmp_url}/{PUBLISH}", "seconds": 15.0, "speed": 1.0}).outcome()
    assert f"{words} (NO_CAPACITY)" in said.said
