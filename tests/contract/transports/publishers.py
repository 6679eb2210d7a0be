"""A publisher of each transport, by hand: what it sends goes out at once, and it can break off anywhere."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import ClassVar, Final

import aiohttp

from services.common.errors import InvalidError
from services.common.media.mpegts import AccessUnit, Codec, Muxer
from services.ingest.transports.rtmp.chunks import ChunkWriter, Message
from services.ingest.transports.rtmp.units import TagWriter
from tests.contract.transports.http import ANSWER_S, Http
from tests.contract.transports.points import POINTS
from tests.contract.transports.steps import name_of
from tests.support.ingest import KEYS, STREAM, Ingest
from tests.support.rtc import Client
from tests.support.rtmp import Talker

PACE_S: Final = 0.01  # of a picture: four times as fast as its clock says


class Publisher(ABC):
    """One connection of one publisher. `refused` is what it was told when it was let go, empty before."""

    sound: ClassVar[Codec] = Codec.AAC
    clock_wraps: ClassVar[int] = 1 << 33  # ticks of 90 kHz after which the transport's clock begins again
    breaks_at: ClassVar[int] = POINTS  # so many places of its life
    breaks: ClassVar[bool] = True  # False: the transport has no connection whose end it could notice

    def __init__(self, ingest: Ingest) -> None:
        self._ingest = ingest
        self.refused = ""

    @staticmethod
    @abstractmethod
    def serves(work: object) -> bool:
        """Whether a coroutine is one that serves this transport's publishers."""

    @abstractmethod
    async def connect(self) -> None: ...

    @abstractmethod
    async def send(self, unit: AccessUnit) -> None:
        """Raises ConnectionError when the server closed the connection."""

    @abstractmethod
    async def garbage(self, data: bytes) -> None:
        """Put bytes where media belongs."""

    @abstractmethod
    async def finish(self) -> None:
        """Say that it is done, and wait for the answer."""

    @abstractmethod
    def vanish(self) -> None:
        """Break off without a word. Again is harmless."""

    async def send_all(self, units: Iterable[AccessUnit], pace_s: float = PACE_S) -> None:
        for unit in units:
            await self.send(unit)
            if unit.codec is Codec.H264:
                await asyncio.sleep(pace_s)


class TsPublisher(Publisher):
    """One endless POST of MPEG-TS."""

    @staticmethod
    def serves(work: object) -> bool:
        return name_of(work) == "RequestResponseCycle.run_asgi"

    def __init__(self, ingest: Ingest) -> None:
        super().__init__(ingest)
        url = ingest.http.base_url
        assert url.port is not None
        self._http = Http(url.host, url.port)
        self._muxer = Muxer(audio=self.sound)

    async def connect(self) -> None:
        await self._http.open()
        await self._http.begin("POST", f"/ts/{KEYS.publish(STREAM)}", "Transfer-Encoding: chunked")

    async def send(self, unit: AccessUnit) -> None:
        begins = unit.codec is Codec.H264 and unit.keyframe
        await self.garbage((self._muxer.begin_segment() if begins else b"") + self._muxer.write(unit))

    async def garbage(self, data: bytes) -> None:
        if self._http.answered:
            await self._listen()
            raise ConnectionResetError(self.refused)
        await self._http.chunk(data)

    async def finish(self) -> None:
        await self._http.write(b"0\r\n\r\n")
        await self._listen()
        self._http.abort()

    async def _listen(self) -> None:
        status, body = await self._http.answer()
        if status != 200:
            self.refused = body.decode() or str(status)

    def vanish(self) -> None:
        self._http.abort()


class TricklePublisher(Publisher):
    """A POST for each key frame's pictures, one after the other."""

    breaks = False

    @staticmethod
    def serves(work: object) -> bool:
        return name_of(work) == "PublicChannels._feed"

    def __init__(self, ingest: Ingest) -> None:
        super().__init__(ingest)
        scheme, _, rest = ingest.trickle_url.partition("://")
        assert scheme == "http"
        place, _, base = rest.partition("/")
        host, _, port = place.partition(":")
        self._http = Http(host, int(port))
        self._path = f"/{base}{KEYS.publish(STREAM)}"
        self._index = -1
        self._muxer = Muxer(audio=self.sound)

    async def connect(self) -> None:
        await self._http.open()

    async def send(self, unit: AccessUnit) -> None:
        if unit.codec is Codec.H264 and unit.keyframe:
            await self._end()
            await self._begin()
            await self._http.chunk(self._muxer.begin_segment())
        await self.garbage(self._muxer.write(unit))

    async def garbage(self, data: bytes) -> None:
        if self._index < 0:
            await self._begin()
        if self._http.answered:
            await self._listen()
            raise ConnectionResetError(self.refused)
        await self._http.chunk(data)

    async def _begin(self) -> None:
        self._index += 1
        headers = ("Content-Type: video/MP2T", "Transfer-Encoding: chunked")
        await self._http.begin("POST", f"{self._path}/{self._index}", *headers)

    async def _end(self) -> None:
        if self._index >= 0:
            await self._http.write(b"0\r\n\r\n")
            await self._listen()
            if self.refused:
                raise ConnectionResetError(self.refused)

    async def _listen(self) -> None:
        status, body = await self._http.answer()
        if status != 200:
            self.refused = body.decode() or str(status)

    async def finish(self) -> None:
        await self._end()
        await self._http.begin("DELETE", self._path)
        await self._listen()
        self._http.abort()

    def vanish(self) -> None:
        self._http.abort()


class RtmpPublisher(Publisher):
    """What an encoder says, with the numbers of its messages in our hands."""

    clock_wraps = (1 << 32) * 90  # milliseconds of 32 bits

    def __init__(self, ingest: Ingest) -> None:
        super().__init__(ingest)
        self._talker: Talker | None = None
        self._tags = TagWriter(stream=1)
        self._begin_ms: int | None = None

    @staticmethod
    def serves(work: object) -> bool:
        return name_of(work) == "Connection._publish"

    async def connect(self) -> None:
        self._talker = await Talker.open(self._ingest.rtmp_url)
        try:
            said = await self._talker.publish(KEYS.publish(STREAM))
        except EOFError:
            raise ConnectionResetError("the server closed the connection") from None
        if said["level"] == "error":
            self.refused = str(said["description"])
            raise ConnectionRefusedError(self.refused)

    async def send(self, unit: AccessUnit) -> None:
        if self._begin_ms is None:
            self._begin_ms = unit.dts // 90
        with suppress(InvalidError):  # what is damaged so that FLV has no way to say it
            await self._write(self._tags.write(unit), self._begin_ms)

    async def _write(self, messages: Sequence[Message], begin_ms: int) -> None:
        for message in messages:
            shifted = replace(message, timestamp=message.timestamp + begin_ms & 0xFFFFFFFF)
            await self.garbage(ChunkWriter().write(4, shifted))

    async def garbage(self, data: bytes) -> None:
        talker = self._talker
        assert talker is not None
        if talker.reader._buffer or talker.reader.at_eof():  # type: ignore[attr-defined]
            await self._listen()
            raise ConnectionResetError(self.refused)
        talker.writer.write(data)
        async with asyncio.timeout(ANSWER_S):
            await talker.writer.drain()

    async def finish(self) -> None:
        assert self._talker is not None
        self._talker.call("FCUnpublish", None, KEYS.publish(STREAM), transaction=4)
        self._talker.call("deleteStream", None, 1, transaction=5)
        await self._listen()
        self._talker.abort()

    async def _listen(self) -> None:
        assert self._talker is not None
        try:
            said = (await self._talker.hear("onStatus")).fields(1)
        except EOFError:
            raise ConnectionResetError("the server closed the connection") from None
        if said["level"] == "error":
            self.refused = str(said["description"])

    def vanish(self) -> None:
        if self._talker is not None:
            self._talker.abort()


class WhipPublisher(Publisher):
    """A WebRTC connection that encodes nothing. UDP: what is sent has been sent, whoever listens."""

    sound = Codec.OPUS
    clock_wraps = 1 << 32
    breaks_at = 8  # a client that hears nothing asks again and again

    def __init__(self, ingest: Ingest) -> None:
        super().__init__(ingest)
        self._http: aiohttp.ClientSession | None = None
        self._client: Client | None = None
        self._leaving: asyncio.Task[None] | None = None

    @staticmethod
    def serves(work: object) -> bool:
        return name_of(work) in {"RequestResponseCycle.run_asgi", "Peer.run"}

    async def connect(self) -> None:
        self._http = aiohttp.ClientSession()
        self._client = Client(self._http)
        try:
            await self._client.publish(f"{self._ingest.http.base_url}/whip/{KEYS.publish(STREAM)}")
        finally:
            self.refused = self._client.refused

    async def send(self, unit: AccessUnit) -> None:
        assert self._client is not None
        await self._client.send(unit)

    async def garbage(self, data: bytes) -> None:
        assert self._client is not None
        self._client.datagram(data[:1400])

    async def finish(self) -> None:
        assert self._client is not None
        assert self._http is not None
        await self._client.leave()
        await self._http.close()

    def vanish(self) -> None:
        """Say no more: the sockets close, the keys are forgotten."""
        if self._client is not None and self._leaving is None:
            self._client.cut_off()
            self._leaving = asyncio.ensure_future(self._forget())

    async def _forget(self) -> None:
        assert self._client is not None
        assert self._http is not None
        await self._http.close()
        with suppress(TimeoutError):  # aiortc waits for ever for an end that was cancelled
            await self._client.close()


async def leave(publisher: Publisher) -> None:
    """Say good-bye if it can still be heard."""
    with suppress(ConnectionError, TimeoutError):
        await publisher.finish()


PUBLISHERS: Final[tuple[type[Publisher], ...]] = (TsPublisher, TricklePublisher, RtmpPublisher, WhipPublisher)
