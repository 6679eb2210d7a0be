"""A viewer of each transport: what came is in `units`; it can stop taking, and break off anywhere."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import ClassVar, Final

import aiohttp
from prometheus_client import REGISTRY

from services.common.media import h264
from services.common.media.mpegts import AccessUnit, Codec, Demuxer
from services.common.trickle.connection import trickle_session
from services.common.trickle.subscriber import Subscriber
from services.ingest.placeholder import stills
from tests.contract.transports.http import ANSWER_S, Http
from tests.contract.transports.points import POINTS
from tests.contract.transports.push_target import Target
from tests.contract.transports.steps import asked_of, name_of
from tests.support.hls import read
from tests.support.ingest import KEYS, STREAM, Ingest
from tests.support.media import SIZE
from tests.support.rtc import Client

RETRY_S: Final = 0.05
WAITS: Final = [list(h264.nal_units(still)) for still in stills(*SIZE)]


class Viewer(ABC):
    """One viewer. `run` is its life; cancelling that is how it leaves, and `vanish` makes it abrupt."""

    breaks_at: ClassVar[int] = POINTS  # so many places of its life
    lost: ClassVar[tuple[str, str, str]]  # the counter, label and value that grow when it is late

    def __init__(self, ingest: Ingest) -> None:
        self._ingest = ingest
        self._flowing = asyncio.Event()
        self._flowing.set()
        self.units: list[AccessUnit] = []
        self.there = asyncio.Event()  # it waits for the stream, or watches it already

    @staticmethod
    @abstractmethod
    def serves(work: object) -> bool:
        """Whether a coroutine is one that serves this transport's viewers."""

    @property
    def pictures(self) -> list[AccessUnit]:
        return [unit for unit in self.units if unit.codec is Codec.H264]

    @abstractmethod
    async def run(self) -> None:
        """Watch to the end, from before there is a publisher if need be."""

    @abstractmethod
    def vanish(self) -> None:
        """Break off without a word. Again is harmless."""

    @abstractmethod
    async def garbage(self, data: bytes) -> None:
        """Say what nobody asked for."""

    def pause(self) -> None:
        """Take nothing more."""
        self._flowing.clear()

    def resume(self) -> None:
        self._flowing.set()

    @classmethod
    def counted(cls) -> float:
        name, label, value = cls.lost
        return REGISTRY.get_sample_value(name, {label: value}) or 0.0


class TsViewer(Viewer):
    """One endless GET."""

    lost = ("sluice_viewers_total", "outcome", "stalled")

    @staticmethod
    def serves(work: object) -> bool:
        return name_of(work) == "RequestResponseCycle.run_asgi"

    def __init__(self, ingest: Ingest) -> None:
        super().__init__(ingest)
        url = ingest.http.base_url
        assert url.port is not None
        self._http = Http(url.host, url.port)

    async def run(self) -> None:
        await self._http.open()
        await self._http.begin("GET", f"/ts/{KEYS.playback(STREAM)}")
        self.there.set()
        demuxer = Demuxer()
        async for data in self._body():
            await self._flowing.wait()
            self.units += demuxer.feed(data)
        self.units += demuxer.end_segment()
        self._http.abort()

    async def _body(self) -> AsyncIterator[bytes]:
        status, _ = await self._http.answer()
        if status != 200:
            raise ConnectionRefusedError(status)
        async for data in self._http.chunks():
            yield data

    def vanish(self) -> None:
        self._http.abort()

    async def garbage(self, data: bytes) -> None:
        await self._http.write(data)


class TrickleViewer(Viewer):
    """A GET for each segment, the next one parked."""

    lost = ("sluice_trickle_dropped_total", "reason", "lagged")

    @staticmethod
    def serves(work: object) -> bool:
        return asked_of(work).startswith("/trickle/")

    def __init__(self, ingest: Ingest) -> None:
        super().__init__(ingest)
        self._session: aiohttp.ClientSession | None = None
        self._url = ingest.trickle_url + KEYS.playback(STREAM)

    async def run(self) -> None:
        demuxer = Demuxer()
        async with trickle_session() as self._session:
            self.there.set()
            while not await self._there(self._session):
                await asyncio.sleep(RETRY_S)
            async with Subscriber(self._session, self._url, start=0) as subscriber:
                async for segment in subscriber:
                    async for data in segment:
                        await self._flowing.wait()
                        self.units += demuxer.feed(data)
                    self.units += demuxer.end_segment()

    async def _there(self, http: aiohttp.ClientSession) -> bool:
        async with http.get(f"{self._url}/0") as answer:
            return answer.status != 404  # nobody has published in time

    def vanish(self) -> None:
        """A client has no connection of its own: cancelling `run` closes its sockets with what is in them."""

    async def garbage(self, data: bytes) -> None:
        place = self._url.removeprefix("http://").partition("/")[0]
        host, _, port = place.partition(":")
        connection = Http(host, int(port))
        await connection.open()
        await connection.begin("GET", f"/trickle/{KEYS.playback(STREAM)}/0")
        await connection.write(data)
        connection.abort()


class HlsViewer(Viewer):
    """A player that takes whole segments, asks for the next playlist when it is due, and is in no hurry."""

    breaks_at = 6  # a player that left is known by its silence, which takes time

    @staticmethod
    def serves(work: object) -> bool:
        return name_of(work) in {"RequestResponseCycle.run_asgi", "Packagers._live_of"}

    def __init__(self, ingest: Ingest) -> None:
        super().__init__(ingest)
        self._base = f"{ingest.http.base_url}/hls/{KEYS.playback(STREAM)}/"
        self._taken = -1  # the last segment, by its number

    async def run(self) -> None:
        demuxer = Demuxer()
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(ANSWER_S)) as http:
            self.there.set()
            place = (await self._get(http, "index.m3u8")).decode().splitlines()[-1]
            playlist = read((await self._get(http, place)).decode())
            while True:
                for segment in playlist.segments:
                    if segment.number > self._taken:
                        self._taken = segment.number
                        await self._flowing.wait()
                        self.units += demuxer.feed(await self._get(http, segment.uri))
                        self.units += demuxer.end_segment()
                if playlist.ended:
                    return
                playlist = read((await self._get(http, f"{place}&_HLS_msn={self._taken + 1}")).decode())

    async def _get(self, http: aiohttp.ClientSession, place: str) -> bytes:
        while True:
            async with http.get(self._base + place) as answer:
                if answer.status == 200:
                    return await answer.read()
                if answer.status not in {404, 503}:
                    raise ConnectionRefusedError(answer.status)
            await asyncio.sleep(RETRY_S)

    def vanish(self) -> None:
        """A player has no connection of its own: cancelling `run` closes its sockets with what is in them."""

    async def garbage(self, data: bytes) -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(ANSWER_S)) as http:
            for place in ("index.m3u8", "live.m3u8", "1.ts"):
                asked = {"_HLS_msn": data[:8].hex(), "_HLS_part": str(len(data)), "viewer": data[:40].hex()}
                async with http.get(self._base + place, params=asked) as answer:
                    assert answer.status < 500, await answer.text()


class WhepViewer(Viewer):
    """A WebRTC connection that decodes nothing. The still that is shown while a stream waits is left out."""

    breaks_at = 8

    @staticmethod
    def serves(work: object) -> bool:
        return name_of(work) in {"RequestResponseCycle.run_asgi", "Peer.run"}

    def __init__(self, ingest: Ingest) -> None:
        super().__init__(ingest)
        self._client: Client | None = None
        self._waits = True
        self._leaving: asyncio.Task[None] | None = None

    async def run(self) -> None:
        async with aiohttp.ClientSession() as http:
            self._client = Client(http)
            await self._client.watch(f"{self._ingest.http.base_url}/whep/{KEYS.playback(STREAM)}", self._take)
            self.there.set()
            while self._client.peer.connectionState == "connected":
                await asyncio.sleep(RETRY_S)

    def _take(self, unit: AccessUnit) -> None:
        if unit.codec is Codec.H264 and unit.keyframe:
            self._waits = h264.picture_size(unit.data) != SIZE or list(h264.nal_units(unit.data)) in WAITS
        if not self._waits:
            self.units.append(unit)

    def vanish(self) -> None:
        """As a page that is closed."""
        if self._client is not None and self._leaving is None:
            self._leaving = asyncio.ensure_future(self._close(self._client))

    async def _close(self, client: Client) -> None:
        with suppress(TimeoutError):  # aiortc waits for ever for an end that was cancelled
            await client.close()

    async def garbage(self, data: bytes) -> None:
        assert self._client is not None
        self._client.datagram(data[:1400])


class PushedViewer(Viewer):
    """A server that the platform pushes the stream to: it is called, and does not call."""

    lost = ("sluice_frame_drop_total", "stage", "tap")
    breaks_at = 8

    @staticmethod
    def serves(work: object) -> bool:
        return name_of(work) == "RtmpPush.run"

    def __init__(self, ingest: Ingest) -> None:
        super().__init__(ingest)
        self._over = asyncio.Event()
        self._targets: list[Target] = []
        self._server: asyncio.Server | None = None

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._called, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self._ingest.sessions.record.output_rtmp_url = f"rtmp://127.0.0.1:{port}/live/key"
        self.there.set()
        await self._over.wait()

    def _called(self) -> Target:
        self._targets.append(Target(self.units.append, self._over.set))
        return self._targets[-1]

    def _transports(self) -> list[asyncio.Transport]:
        found = [target.transport for target in self._targets if target.transport is not None]
        return [transport for transport in found if not transport.is_closing()]

    def pause(self) -> None:
        for transport in self._transports():
            transport.pause_reading()

    def resume(self) -> None:
        for transport in self._transports():
            transport.resume_reading()

    def vanish(self) -> None:
        if self._server is not None:
            self._server.close()
        for transport in self._transports():
            transport.abort()

    async def garbage(self, data: bytes) -> None:
        for transport in self._transports():
            transport.write(data)


VIEWERS: Final[tuple[type[Viewer], ...]] = (TsViewer, TrickleViewer, HlsViewer, WhepViewer, PushedViewer)
