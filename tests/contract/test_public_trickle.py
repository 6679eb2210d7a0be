"""The public trickle listener: streams published and watched by key, channels of tenants' own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path

import aiohttp
import pytest

from protos.inference.v1 import runner_pb2
from services.common.errors import (
    ConflictError,
    ExhaustedError,
    PaymentRequiredError,
    SluiceError,
    UnauthenticatedError,
)
from services.common.media.clock import ORIGIN_TICKS
from services.common.media.mpegts import CLOCK_HZ, AccessUnit, Muxer
from services.common.trickle.connection import trickle_session
from services.common.trickle.protocol import CLOSED, LATEST, SEQ
from services.common.trickle.publisher import Publisher
from services.common.trickle.subscriber import Subscriber
from services.ingest.auth import Authenticator, Caller
from tests.support.ingest import KEYS, STREAM, Ingest, ingesting, until
from tests.support.media import FRAME, pictures, shown
from tests.support.nats import NatsServer, nats_server

KEY = KEYS.publish(STREAM)
PLAYBACK = KEYS.playback(STREAM)


@pytest.fixture
async def nats(tmp_path: Path) -> AsyncIterator[NatsServer]:
    async with nats_server(tmp_path / "nats") as server:
        yield server


@pytest.fixture(autouse=True)
def known_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    async def who(self: Authenticator, key: str) -> Caller:
        if key != "sk_good":
            raise UnauthenticatedError("the API key is not valid", reason="KEY_INVALID")
        return Caller("acme", "key_1")

    monkeypatch.setattr(Authenticator, "who", who)


@pytest.fixture
async def ingest(nats: NatsServer, tmp_path: Path) -> AsyncIterator[Ingest]:
    async with ingesting(nats.url, tmp_path, first_picture_s=1, publisher_grace_s=3) as found:
        yield found


@asynccontextmanager
async def publisher(ingest: Ingest, key: str = KEY, start: int = 0) -> AsyncIterator[Publisher]:
    async with trickle_session() as http, Publisher(http, ingest.trickle_url + key, start=start) as found:
        yield found


async def send(to: Publisher, units: Sequence[AccessUnit], *, fps: float = 100) -> None:
    """A segment for each key frame, at a pace that a ring of a few segments keeps."""
    muxer = Muxer()
    starts = [place for place, unit in enumerate(units) if unit.keyframe]
    for begin, end in zip(starts, [*starts[1:], len(units)], strict=True):
        async with to.segment() as segment:
            await segment.write(muxer.begin_segment())
            for unit in units[begin:end]:
                await segment.write(muxer.write(unit))
                await asyncio.sleep(1 / fps)


async def watch(ingest: Ingest) -> bytes:
    """All of a stream's output, by a client of the protocol."""
    seen = b""
    async with trickle_session() as http:
        while True:
            async with http.get(f"{ingest.trickle_url}{PLAYBACK}/0") as first:
                if first.status == 404:
                    continue  # nobody has published in time
            break
        async with Subscriber(http, ingest.trickle_url + PLAYBACK, start=0) as subscriber:
            async for segment in subscriber:
                async for data in segment:
                    seen += data
    return seen


async def test_a_stream_is_published_and_watched_by_trickle(ingest: Ingest) -> None:
    watching = asyncio.ensure_future(watch(ingest))
    async with publisher(ingest) as to:
        await send(to, pictures(75))
        await to.close()
    async with asyncio.timeout(15):
        seen = await watching
    assert shown(seen) == [ORIGIN_TICKS + n * FRAME for n in range(75)]
    assert ingest.sessions.reports[-1].drained


async def test_a_publisher_that_parks_long_before_its_first_picture_is_waited_for(ingest: Ingest) -> None:
    async with publisher(ingest) as to:
        await asyncio.sleep(1.5)  # longer than a publisher that began may take to its first picture
        assert ingest.hub.of_stream(STREAM) is None, "nothing is held for it"
        await send(to, pictures(25))
        assert await ingest.session()


async def test_a_publisher_that_starts_again_at_0_goes_on_with_its_session(ingest: Ingest) -> None:
    async with publisher(ingest) as to:
        await send(to, pictures(50))
        session = await ingest.session()
    async with publisher(ingest) as to:  # the first one left without a word
        await send(to, pictures(50, start=987_654_321))
        live = ingest.hub.of_stream(STREAM)
        assert live is not None
        assert live.identity.session == session
        await until(lambda: live.frames_in == 100)
        seconds = (live.outputs.in_pts - ORIGIN_TICKS) / CLOCK_HZ
        assert seconds < 20, "its clock is the session's, not the other publisher's"
        await to.close()


async def test_a_publisher_goes_on_where_it_left_with_a_reset(ingest: Ingest) -> None:
    async with publisher(ingest) as to:
        await send(to, pictures(50))
        await ingest.session()
    async with publisher(ingest, start=-1) as to:
        await send(to, pictures(25, start=987_654_321))
        live = ingest.hub.of_stream(STREAM)
        assert live is not None
        await until(lambda: live.frames_in == 75)


@pytest.mark.parametrize(
    ("refusal", "kind"),
    [
        (PaymentRequiredError("no credit", reason="INSUFFICIENT_CREDIT"), 402),
        (ExhaustedError("no runner is free", reason="NO_CAPACITY", retry_after_s=3), 503),
    ],
)
async def test_a_publisher_hears_why_its_stream_did_not_start(
    ingest: Ingest, refusal: SluiceError, kind: int
) -> None:
    ingest.sessions.fail("StartSession", refusal)
    muxer, units = Muxer(), pictures(50)

    async def body() -> AsyncIterator[bytes]:
        yield muxer.begin_segment()
        for unit in units:
            yield muxer.write(unit)
            await asyncio.sleep(0.1)

    url = f"{ingest.trickle_url}{KEY}/0"
    async with aiohttp.ClientSession() as http, http.post(url, data=body()) as answer:
        assert answer.status == kind
        assert refusal.message in await answer.text()


async def test_what_is_no_video_is_refused_in_words_and_holds_nothing(ingest: Ingest) -> None:
    async with aiohttp.ClientSession() as http:
        for index, body in enumerate((b"<html>" * 100_000, b"\x00" * 100)):
            async with http.post(f"{ingest.trickle_url}{KEY}/{index}", data=body):
                pass  # a segment that ended is confirmed: what it held is looked at then
        await asyncio.sleep(1.5)
        async with http.post(f"{ingest.trickle_url}{KEY}/2", data=b"more") as answer:
            assert answer.status == 400
            assert "no picture" in await answer.text()
    assert ingest.hub.of_stream(STREAM) is None
    assert "StartSession" not in [name for name, _ in ingest.sessions.calls]


async def test_a_second_publisher_by_another_way_is_told_that_there_is_one(ingest: Ingest) -> None:
    async with publisher(ingest) as to:
        await send(to, pictures(25))
        await ingest.session()

        async def body() -> AsyncIterator[bytes]:
            muxer = Muxer()
            yield muxer.begin_segment() + b"".join(map(muxer.write, pictures(25)))

        assert (await ingest.publish(body())).status_code == 409


async def test_a_stopped_stream_tells_its_publisher_and_ends_its_viewers(ingest: Ingest) -> None:
    async with publisher(ingest) as to, trickle_session() as http:
        await send(to, pictures(25))
        session = await ingest.session()
        async with http.get(f"{ingest.trickle_url}{PLAYBACK}/0") as answer:
            assert answer.status == 200
            await ingest.close(session, "stopped")
        with pytest.raises(ConflictError):
            await send(to, pictures(50))
        async with http.get(f"{ingest.trickle_url}{PLAYBACK}/40") as answer:
            assert (answer.status, answer.headers[CLOSED]) == (200, "terminated")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", f"{KEY}/0", 403),
        ("POST", f"{PLAYBACK}/0", 403),
        ("POST", "stk_aaaaaaaa-aaaaaaaaaaaaaaaaaaaaaaaa/0", 404),
        ("GET", "pbk_aaaaaaaa-aaaaaaaaaaaaaaaaaaaaaaaa/0", 404),
        ("POST", f"{KEYS.publish('str_bbbbbbbb')}/0", 404),
        ("GET", f"{KEYS.playback('str_bbbbbbbb')}/0", 404),
        ("POST", "_changes/0", 404),
        ("GET", "nothing/0", 404),
        ("DELETE", KEY, 400),
    ],
)
async def test_a_key_is_good_for_what_it_is_for(ingest: Ingest, method: str, path: str, status: int) -> None:
    async with aiohttp.ClientSession() as http, http.request(method, ingest.trickle_url + path) as answer:
        assert answer.status == status, await answer.text()


async def test_a_complete_stream_cannot_be_held_back_by_trickle_and_says_so(ingest: Ingest) -> None:
    ingest.sessions.record.delivery = runner_pb2.DELIVERY_COMPLETE
    url = f"{ingest.trickle_url}{KEY}/0"
    async with aiohttp.ClientSession() as http, http.post(url, data=b"x") as answer:
        assert answer.status == 400
        assert "/ts" in await answer.text()


async def test_a_channel_is_made_by_a_post_with_a_key_and_told_on_the_changefeed(ingest: Ingest) -> None:
    good = {"Authorization": "Bearer sk_good"}
    async with aiohttp.ClientSession() as http:
        async with http.post(ingest.trickle_url + "notes") as answer:
            assert answer.status == 401
        async with http.post(ingest.trickle_url + "notes", headers={"Authorization": "Bearer no"}) as answer:
            assert answer.status == 401
        made = {**good, "Expect-Content": "application/json"}
        async with http.post(ingest.trickle_url + "notes", headers=made) as answer:
            assert answer.status == 200
        async with http.post(ingest.trickle_url + "notes/0", data=b'{"a":1}') as answer:
            assert (answer.status, answer.headers[SEQ]) == (200, "0")
        async with http.get(ingest.trickle_url + "notes/-2") as answer:
            assert (answer.content_type, await answer.text()) == ("application/json", '{"a":1}')
            assert answer.headers[LATEST] == "1"
        async with http.get(ingest.trickle_url + "_changes/1") as answer:
            assert json.loads(await answer.text()) == {"added": ["notes"]}
        async with http.delete(ingest.trickle_url + "notes") as answer:
            assert answer.status == 200
        async with http.get(ingest.trickle_url + "_changes/2") as answer:
            assert json.loads(await answer.text()) == {"removed": ["notes"]}


async def test_where_a_setting_allows_it_whoever_writes_makes_a_channel(
    nats: NatsServer, tmp_path: Path
) -> None:
    async with (
        ingesting(nats.url, tmp_path, channel_creation="anybody") as ingest,
        aiohttp.ClientSession() as http,
    ):
        async with http.post(ingest.trickle_url + "free/0", data=b"bytes") as answer:
            assert answer.status == 200
        async with http.get(ingest.trickle_url + "free/0") as answer:
            assert await answer.read() == b"bytes"
        for number in range(24):
            async with http.post(f"{ingest.trickle_url}n{number}") as answer:
                assert answer.status == 200
        async with http.post(ingest.trickle_url + "too-many") as answer:
            assert answer.status == 429


async def test_only_the_api_makes_channels_where_that_is_the_setting(
    nats: NatsServer, tmp_path: Path
) -> None:
    async with ingesting(nats.url, tmp_path, channel_creation="api") as ingest:
        async with aiohttp.ClientSession() as http:
            headers = {"Authorization": "Bearer sk_good"}
            async with http.post(ingest.trickle_url + "notes", headers=headers) as answer:
                assert answer.status == 404
        made = await ingest.http.post(
            "/v1/channels", json={"name": "notes"}, headers={"Authorization": "Bearer sk_good"}
        )
        assert made.status_code == 201


async def test_a_channel_of_the_api_is_limited_in_a_segments_bytes(ingest: Ingest) -> None:
    key = {"Authorization": "Bearer sk_good"}
    made = (await ingest.http.post("/v1/channels", json={"name": "notes"}, headers=key)).json()
    alias = made["write_url"].rpartition("/")[2]
    async with aiohttp.ClientSession() as http:
        async with http.post(f"{ingest.trickle_url}{alias}/0", data=BytesIO(bytes(3 * 2**20))) as answer:
            assert answer.status == 413
        async with http.post(f"{ingest.trickle_url}{alias}/1", data=BytesIO(bytes(1 * 2**20))) as answer:
            assert answer.status == 200
