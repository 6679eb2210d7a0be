"""HLS out of an ingest process with real HTTP; the session-manager and the runner are played."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import pytest

from services.common.media.mpegts import CLOCK_HZ, AccessUnit, Codec
from services.common.media.sound import RATE, AudioEncoder
from tests.support.hls import Playlist, check, read
from tests.support.ingest import KEYS, STREAM, Ingest, ingesting, until
from tests.support.media import FRAME, pictures, shown, ts, units_of
from tests.support.nats import NatsServer, nats_server

PLAYBACK = KEYS.playback(STREAM)
BASE = f"/hls/{PLAYBACK}"


@pytest.fixture
async def nats(tmp_path: Path) -> AsyncIterator[NatsServer]:
    async with nats_server(tmp_path / "nats") as server:
        yield server


@pytest.fixture
async def ingest(nats: NatsServer, tmp_path: Path) -> AsyncIterator[Ingest]:
    async with ingesting(nats.url, tmp_path, hls_wait_s=3, hls_target_s=1) as found:
        yield found


def tone(seconds: float, codec: Codec) -> list[AccessUnit]:
    """A tone of 440 Hz from time 0 on."""
    at = np.arange(round(seconds * RATE)) / RATE
    wave = (0.3 * np.sin(2 * np.pi * 440 * at)).astype(np.float32)
    return AudioEncoder(codec).encode(np.stack([wave, wave]), 0)


def decoded(data: bytes, kind: str) -> list[av.VideoFrame | av.AudioFrame]:
    """Every frame that a player makes of the `kind` of stream in `data`, read alone."""
    with av.open(io.BytesIO(data), "r", format="mpegts") as container:
        frames = list(container.decode(**{kind: 0}))
    return [frame for frame in frames if isinstance(frame, av.VideoFrame | av.AudioFrame)]


def clip(seconds: float, codec: Codec | None = None) -> list[AccessUnit]:
    heard = [] if codec is None else [unit for unit in tone(seconds, codec) if unit.pts >= 0]
    units = [*pictures(round(seconds * 25)), *heard]
    return sorted(units, key=lambda unit: (unit.pts, unit.codec is not Codec.H264))


async def body(
    units: Sequence[AccessUnit], *, times_faster: float = 1.0, stays: bool = False
) -> AsyncIterator[bytes]:
    """`units` at their pace, as a transport stream; a publisher that `stays` does not end."""
    audio = next((unit.codec for unit in units if unit.codec is not Codec.H264), None)
    data = ts(units, audio=audio)
    size = 188 * 7
    seconds = units[-1].pts / CLOCK_HZ / times_faster
    for place in range(0, len(data), size):
        yield data[place : place + size]
        await asyncio.sleep(seconds * size / len(data))
    if stays:
        await asyncio.Event().wait()


async def ignored(work: Any) -> None:
    with suppress(httpx.HTTPError):
        await work


def publish(ingest: Ingest, units: Sequence[AccessUnit], **how: Any) -> None:
    ingest.background.start("publisher", ignored(ingest.publish(body(units, **how))))


class Player:
    """A player that was told its playlist by the index."""

    def __init__(self, ingest: Ingest) -> None:
        self._ingest = ingest
        self.uri = ""
        self.files: dict[str, bytes] = {}
        self.segments: dict[int, bytes] = {}
        self.discontinuities: set[int] = set()

    async def open(self) -> httpx.Response:
        async with asyncio.timeout(8):
            while True:
                answer = await self.get("index.m3u8")
                if answer.status_code != 404:
                    break
        assert answer.status_code == 200, answer.text
        self.uri = answer.text.splitlines()[-1]
        return answer

    async def get(self, name: str, **query: Any) -> httpx.Response:
        return await self._ingest.http.get(f"{BASE}/{name}", params=query or None)

    async def playlist(self, **query: Any) -> Playlist:
        path, _, viewer = self.uri.partition("?viewer=")
        answer = await self.get(path, viewer=viewer, **query)
        assert answer.status_code == 200, answer.text
        found = read(answer.text)
        check(found)
        return found

    async def file(self, uri: str) -> bytes:
        if uri not in self.files:
            answer = await self.get(uri)
            assert answer.status_code == 200, (uri, answer.text)
            self.files[uri] = answer.content
        return self.files[uri]

    async def play(self) -> Playlist:
        """Fetch every segment until the end, by reloading as a player without low latency does."""
        while True:
            listed = await self.playlist()
            for segment in listed.segments:
                self.segments[segment.number] = await self.file(segment.uri)
                if segment.discontinuity:
                    self.discontinuities.add(segment.number)
            if listed.ended:
                return listed
            await asyncio.sleep(0.2)


async def test_every_segment_decodes_alone_and_together_they_are_the_stream(ingest: Ingest) -> None:
    publish(ingest, clip(6.0, Codec.AAC), times_faster=2)
    player = Player(ingest)
    index = await player.open()
    assert 'CODECS="avc1.42' in index.text
    assert "mp4a.40.2" in index.text
    assert "RESOLUTION=64x48" in index.text
    listed = await player.play()
    assert listed.ended
    numbers = sorted(player.segments)
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), "none is missing"
    whole = b""
    for number in numbers:
        data = player.segments[number]
        whole += data
        frames = decoded(data, "video")
        assert isinstance(frames[0], av.VideoFrame)
        assert frames[0].key_frame
        assert decoded(data, "audio")
    seen = shown(whole)
    assert len(seen) > 75
    assert {later - earlier for earlier, later in pairwise(seen)} == {FRAME}
    heard = [unit.pts for unit in units_of(whole) if unit.codec is Codec.AAC]
    assert all(0 < later - earlier < 2500 for earlier, later in pairwise(heard))
    assert not player.discontinuities


async def test_opus_is_heard_as_aac(ingest: Ingest) -> None:
    publish(ingest, clip(5.0, Codec.OPUS), times_faster=2)
    player = Player(ingest)
    assert "mp4a.40.2" in (await player.open()).text
    await player.play()
    whole = b"".join(player.segments[number] for number in sorted(player.segments))
    heard = np.concatenate([frame.to_ndarray()[0] for frame in decoded(whole, "audio")])
    loudest = np.argmax(np.abs(np.fft.rfft(heard[RATE // 2 : RATE // 2 + RATE])))
    assert abs(int(loudest) - 440) <= 1
    assert len(heard) > 2 * RATE


async def test_a_reader_of_parts_gets_the_same_sooner(ingest: Ingest) -> None:
    publish(ingest, clip(5.0))
    player = Player(ingest)
    await player.open()
    loop = asyncio.get_running_loop()
    parts: dict[tuple[int, int], bytes] = {}
    while_it_grew = 0
    listed = await player.playlist()
    while not listed.ended:
        number, part = listed.newest
        hinted = asyncio.ensure_future(player.get(listed.hint))
        asked_s = loop.time()
        listed = await player.playlist(_HLS_msn=number, _HLS_part=part)
        assert listed.ended or listed.newest > (number, part)
        assert loop.time() - asked_s < 3
        answer = await hinted
        if answer.status_code == 200:
            parts[number, part] = answer.content
            while_it_grew += "content-length" not in answer.headers
    assert len(parts) >= 10
    assert while_it_grew > len(parts) / 2
    for segment in listed.segments[:-1]:
        found = [parts[key] for key in sorted(parts) if key[0] == segment.number]
        if (segment.number, 0) in parts and len(found) >= 5:
            assert b"".join(found) == await player.file(segment.uri)


async def test_ffmpegs_own_player_plays_it_to_the_end(ingest: Ingest) -> None:
    publish(ingest, clip(6.0, Codec.AAC), times_faster=1.5)
    await Player(ingest).open()
    url = f"{str(ingest.http.base_url).rstrip('/')}{BASE}/index.m3u8"

    def watch() -> tuple[int, int, list[int]]:
        with av.open(url, "r", timeout=(5, 10)) as container:
            video, audio = container.streams.video[0], container.streams.audio[0]
            frames = list(container.decode(video, audio))
        pictures_ = [frame for frame in frames if isinstance(frame, av.VideoFrame)]
        times = [frame.pts for frame in pictures_ if frame.pts is not None]
        return len(pictures_), len(frames) - len(pictures_), times

    seen, heard, times = await asyncio.to_thread(watch)
    assert seen >= 60
    assert heard >= 90
    assert times == sorted(times)


async def test_nothing_to_play_is_said_after_a_while_and_when_to_ask_again(
    nats: NatsServer, tmp_path: Path
) -> None:
    async with ingesting(nats.url, tmp_path, hls_wait_s=0.5) as ingest:
        for name in ("index.m3u8", "live.m3u8"):
            answer = await ingest.http.get(f"{BASE}/{name}")
            assert answer.status_code == 404
            assert answer.elapsed.total_seconds() >= 0.5
            assert answer.json()["code"].endswith("/NOT_LIVE")
            assert int(answer.headers["Retry-After"]) >= 1
        assert (await ingest.http.get(f"{BASE}/a-1.ts")).status_code == 404


GARBAGE = [
    ("live.m3u8?_HLS_msn=x", 400),
    ("live.m3u8?_HLS_msn=-1", 400),
    ("live.m3u8?_HLS_msn=99999999999999", 400),
    ("live.m3u8?_HLS_msn=1&_HLS_part=1.5", 400),
    ("live.m3u8?_HLS_part=1", 400),
    ("live.m3u8?viewer=%00", 400),
    (f"live.m3u8?viewer={'x' * 100}", 400),
    ("live.m3u8?_HLS_skip=YES&_HLS_msn=1", 200),
    ("x.ts", 404),
    ("a-1.ts", 404),
    ("a-1.2.3.ts", 404),
    (f"a-{'9' * 300}.ts", 404),
    ("other.m3u8", 404),
]


async def test_garbage_is_refused_and_changes_nothing(nats: NatsServer, tmp_path: Path) -> None:
    async with playing(nats, tmp_path) as (ingest, player):
        for path, status in GARBAGE:
            answer = await ingest.http.get(f"{BASE}/{path}")
            assert answer.status_code == status, (path, answer.text)
        assert (await player.playlist()).segments


@asynccontextmanager
async def playing(nats: NatsServer, tmp_path: Path, **facts: Any) -> AsyncIterator[tuple[Ingest, Player]]:
    """A stream of some seconds, whose publisher stays, and a player that has begun."""
    async with ingesting(nats.url, tmp_path, **{"hls_wait_s": 3, "hls_target_s": 1, **facts}) as ingest:
        publish(ingest, clip(2.4), times_faster=4, stays=True)
        player = Player(ingest)
        await player.open()
        yield ingest, player


async def test_a_wrong_key_watches_nothing(ingest: Ingest) -> None:
    assert (await ingest.http.get(f"/hls/{KEYS.publish(STREAM)}/index.m3u8")).status_code == 403
    assert (await ingest.http.get("/hls/pbk_x-y/index.m3u8")).status_code == 404
    other = KEYS.playback("str_unknown")
    assert (await ingest.http.get(f"/hls/{other}/live.m3u8")).status_code == 404


async def test_answers_say_how_long_they_are_good_and_head_says_the_same(
    nats: NatsServer, tmp_path: Path
) -> None:
    async with playing(nats, tmp_path) as (ingest, player):
        segment = (await player.playlist()).segments[0].uri
        for name, caching, kind in (
            ("index.m3u8", "no-store", "application/vnd.apple.mpegurl"),
            ("live.m3u8", "no-cache", "application/vnd.apple.mpegurl"),
            (segment, "public, max-age=60, immutable", "video/mp2t"),
        ):
            origin = {"Origin": "https://player.example"}
            got = await ingest.http.get(f"{BASE}/{name}", headers=origin)
            head = await ingest.http.head(f"{BASE}/{name}", headers=origin)
            for answer in (got, head):
                assert answer.status_code == 200
                assert answer.headers["Cache-Control"] == caching
                assert answer.headers["Content-Type"].startswith(kind)
                assert answer.headers["Access-Control-Allow-Origin"] == "*"
            assert got.content
            assert not head.content
            if name == segment:  # the others have grown since
                assert head.headers["Content-Length"] == str(len(got.content))


async def test_a_stream_that_stands_still_answers_503_instead_of_waiting_for_ever(
    nats: NatsServer, tmp_path: Path
) -> None:
    async with playing(nats, tmp_path) as (ingest, player):
        session = await ingest.session()
        await until(lambda: ingest.hub.session(session).frames_out == 60 or None)
        ingest.hub.session(session).pause(paused=True)  # or a still would stand in for what does not come
        await asyncio.sleep(1.6)  # the last part is shown as it is
        number, part = (await player.playlist()).newest
        asked_s = asyncio.get_running_loop().time()
        answer = await player.get("live.m3u8", _HLS_msn=number, _HLS_part=part)
        assert answer.status_code == 503
        assert answer.headers["Retry-After"]
        assert 2.5 < asyncio.get_running_loop().time() - asked_s < 10


async def test_viewers_are_counted_by_what_they_ask_and_forgotten_when_they_are_quiet(
    nats: NatsServer, tmp_path: Path
) -> None:
    async with playing(nats, tmp_path, max_viewers=2) as (ingest, first):
        for _ in range(3):
            await first.playlist()
        assert ingest.core.viewing.of(STREAM) == 1
        second = Player(ingest)
        await second.open()
        await second.playlist()
        assert ingest.core.viewing.of(STREAM) == 2
        third = await ingest.http.get(f"{BASE}/live.m3u8", params={"viewer": "third"})
        assert third.status_code == 429
        assert third.json()["code"].endswith("/TOO_MANY_VIEWERS")
        await until(lambda: ingest.core.viewing.of(STREAM) == 0 or None, within_s=9)


async def test_a_stream_that_nobody_asks_for_is_not_packaged(nats: NatsServer, tmp_path: Path) -> None:
    async with playing(nats, tmp_path, hls_idle_s=0.7) as (ingest, player):
        await player.playlist()
        assert len(ingest.core.hls) == 1
        await until(lambda: len(ingest.core.hls) == 0 or None)
        assert ingest.core.viewing.of(STREAM) == 0
        assert ingest.hub.of_stream(STREAM) is not None, "the stream goes on"


async def test_players_that_vanish_or_take_nothing_hold_nothing_up(nats: NatsServer, tmp_path: Path) -> None:
    async with ingesting(nats.url, tmp_path, hls_wait_s=3, hls_target_s=1, max_viewers=5) as ingest:
        publish(ingest, clip(8.0), times_faster=1.5)
        player = Player(ingest)
        await player.open()
        host, port = ingest.http.base_url.host, ingest.http.base_url.port
        listed = await player.playlist()
        number, _ = listed.newest
        writers = []
        for _ in range(20):  # they ask, and neither read nor stay
            _, writer = await asyncio.open_connection(host, port)
            path = f"{BASE}/live.m3u8?viewer=gone&_HLS_msn={number + 1}&_HLS_part=3"
            writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            writers.append(writer)
        packager = ingest.core.hls.found(STREAM)
        assert packager is not None
        await until(lambda: packager._waiting == 10 or None)  # two for each viewer, and no more
        refused = await player.get("live.m3u8", viewer="gone", _HLS_msn=number + 1, _HLS_part=3)
        assert refused.status_code == 429
        assert refused.json()["code"].endswith("/TOO_MANY_WAITING")
        for writer in writers:
            writer.transport.abort()
        assert (await player.play()).ended
        assert len(player.segments) >= 5
        assert packager._waiting == 0


async def test_the_next_session_continues_the_playlist(nats: NatsServer, tmp_path: Path) -> None:
    async with ingesting(nats.url, tmp_path, hls_wait_s=3, hls_target_s=1) as ingest:
        publish(ingest, clip(3.0), times_faster=2)
        player = Player(ingest)
        await player.open()
        before = await player.play()
        assert before.ended
        await until(lambda: len(ingest.hub) == 0 or None)
        publish(ingest, clip(3.0), times_faster=2)
        again = Player(ingest)
        await again.open()
        after = await again.play()
        assert after.segments[-1].number > before.segments[-1].number
        assert before.segments[-1].number + 1 in again.discontinuities
        assert before.segments[-1].uri in {segment.uri for segment in after.segments}
