"""WebRTC clients for tests: aiortc as it is, over loopback, with pictures that are encoded already."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from fractions import Fraction
from typing import Any, Final
from unittest.mock import patch

import av
import httpx
import numpy as np
import pylibsrtp
from aioice import stun
from aiortc import (
    MediaStreamTrack,
    RTCConfiguration,
    RTCPeerConnection,
    RTCRtpCodecCapability,
    RTCSessionDescription,
)
from aiortc.mediastreams import MediaStreamError
from aiortc.rtcrtpsender import RTCRtpSender
from av.frame import Frame

from services.common.media.mpegts import CLOCK_HZ, AccessUnit, Codec
from services.common.media.sound import AudioEncoder
from services.ingest.transports.webrtc import rtcp, rtp
from services.ingest.transports.webrtc.dtls import Certificate, Dtls
from tests.support.media import FPS, pictures

SDP: Final = {"content-type": "application/sdp"}
TICK: Final = Fraction(1, CLOCK_HZ)


class Playing(MediaStreamTrack):
    """A track of units that are encoded already, sent in their own time, over and over."""

    def __init__(self, kind: str, units: Sequence[AccessUnit], period: int) -> None:
        super().__init__()
        self.kind = kind
        self.sent = 0
        self.stopped = False  # sends nothing any more
        self._units = units
        self._period = period
        self._began_s: float | None = None

    async def recv(self) -> Any:
        loop = asyncio.get_running_loop()
        if self._began_s is None:
            self._began_s = loop.time()
        while self.stopped:
            await asyncio.sleep(0.05)
        rounds, index = divmod(self.sent, len(self._units))
        unit = self._units[index]
        pts = unit.pts + rounds * self._period
        self.sent += 1
        await asyncio.sleep(max(0.0, self._began_s + pts / CLOCK_HZ - loop.time()))
        packet = av.Packet(unit.data)
        packet.pts, packet.time_base = pts, TICK
        return packet


def moving_pictures(seconds: int = 2) -> Playing:
    """Pictures with a key frame each second."""
    units = pictures(FPS * seconds)
    return Playing("video", units, seconds * CLOCK_HZ)


class Drawn(MediaStreamTrack):
    """Raw pictures of 128 x 96, ten a second, for aiortc to encode."""

    kind = "video"

    def __init__(self) -> None:
        super().__init__()
        self._count = 0

    async def recv(self) -> av.VideoFrame:
        await asyncio.sleep(0.1)
        pixels = np.full((96, 128, 3), self._count * 10 % 256, np.uint8)
        frame = av.VideoFrame.from_ndarray(pixels, "rgb24").reformat(format="yuv420p")
        frame.pts, frame.time_base = self._count * CLOCK_HZ // 10, TICK
        self._count += 1
        return frame


def drawn_pictures() -> Drawn:
    return Drawn()


def tone() -> Playing:
    """A second of Opus."""
    times = np.arange(48_000, dtype=np.float32) / 48_000
    samples = np.broadcast_to(0.2 * np.sin(2 * np.pi * 440 * times), (2, 48_000)).astype(np.float32)
    units = AudioEncoder(Codec.OPUS).encode(samples, 0)
    units = [
        AccessUnit(each.codec, index * 1800, index * 1800, each.data, True)
        for index, each in enumerate(units)
    ]
    return Playing("audio", units, len(units) * 1800)


def codecs(kind: str, *names: str) -> list[RTCRtpCodecCapability]:
    found = RTCRtpSender.getCapabilities(kind).codecs
    wanted = {f"{kind}/{name}".lower() for name in (*names, "rtx")}
    return [each for each in found if each.mimeType.lower() in wanted]


class Client:
    """One connection of a client."""

    def __init__(self) -> None:
        self.pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.frames: dict[str, list[Frame]] = {"video": [], "audio": []}
        self.location = ""
        self._tasks: list[asyncio.Task[None]] = []
        self.pc.on("track", self._hear)

    def publish(self, *tracks: MediaStreamTrack, codec: str = "H264", direction: str = "sendonly") -> None:
        for track in tracks:
            made = self.pc.addTransceiver(track, direction=direction)
            if track.kind == "video":
                made.setCodecPreferences(codecs("video", codec))

    def watch(self, *kinds: str, codec: str = "H264") -> None:
        for kind in kinds:
            made = self.pc.addTransceiver(kind, direction="recvonly")
            if kind == "video":
                made.setCodecPreferences(codecs("video", codec))

    def _hear(self, track: MediaStreamTrack) -> None:
        self._tasks.append(asyncio.ensure_future(self._read(track)))

    async def _read(self, track: MediaStreamTrack) -> None:
        try:
            while True:
                frame = await track.recv()
                assert isinstance(frame, Frame)
                self.frames[track.kind].append(frame)
        except MediaStreamError:
            return

    async def offer(self) -> str:
        await self.pc.setLocalDescription(await self.pc.createOffer())
        return str(self.pc.localDescription.sdp)

    async def answered(self, sdp: str) -> None:
        await self.pc.setRemoteDescription(RTCSessionDescription(sdp, "answer"))

    async def connect(self, http: httpx.AsyncClient, path: str, **headers: str) -> httpx.Response:
        """Offer to a WHIP or WHEP endpoint; returns its answer."""
        answer = await http.post(path, content=await self.offer(), headers=SDP | headers)
        if answer.status_code == 201:
            self.location = answer.headers["location"]
            await self.answered(answer.text)
        return answer

    async def connected(self, within_s: float = 8.0) -> None:
        await self.until(lambda: self.pc.connectionState == "connected", within_s)

    async def until(self, look: Callable[[], bool], within_s: float = 8.0) -> None:
        async with asyncio.timeout(within_s):
            while not look():
                await asyncio.sleep(0.02)

    async def close(self) -> None:
        await self.pc.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def client() -> AsyncIterator[Client]:
    """A client that uses the loopback interface, which aiortc leaves out by itself."""
    with patch("aioice.ice.get_host_addresses", lambda use_ipv4, use_ipv6: ["127.0.0.1"]):
        made = Client()
        try:
            yield made
        finally:
            await made.close()


class Bare(asyncio.DatagramProtocol):
    """A client of our own parts, for what a browser would never send. It is the DTLS server."""

    def __init__(self) -> None:
        self.certificate = Certificate()
        self.opened = asyncio.Event()
        self.over: list[str] = []
        self.packets: list[rtp.Packet] = []  # of RTP, as they came
        self._ufrag, self._password = "bareclient", "p" * 24
        self._transport: asyncio.DatagramTransport | None = None
        self.dtls: Dtls | None = None

    def transport_lines(self) -> tuple[str, ...]:
        """What an offer says of this connection."""
        return (
            f"a=ice-ufrag:{self._ufrag}",
            f"a=ice-pwd:{self._password}",
            f"a=fingerprint:{self.certificate.fingerprint}",
            "a=setup:actpass",
        )

    async def connect(self, answer: str) -> None:
        lines = dict(line.removeprefix("a=").split(":", 1) for line in answer.splitlines() if ":" in line)
        algorithm, value = lines["fingerprint"].split()
        host, port = lines["candidate"].split()[4:6]
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, remote_addr=(host, int(port)))
        self.dtls = Dtls(
            self.certificate,
            [(algorithm, value)],
            client=False,
            send=self.send,
            opened=self.opened.set,
            data=lambda record: None,
            closed=self.over.append,
        )
        request = stun.Message(stun.Method.BINDING, stun.Class.REQUEST)
        request.attributes |= {
            "USERNAME": f"{lines['ice-ufrag']}:{self._ufrag}",
            "PRIORITY": 1,
            "USE-CANDIDATE": None,
        }
        request.add_message_integrity(lines["ice-pwd"].encode())
        self.send(bytes(request))
        await asyncio.wait_for(self.opened.wait(), 8)

    def datagram_received(self, data: bytes, addr: object) -> None:
        if self.dtls is None:
            return
        if 19 < data[0] < 64:
            self.dtls.receive(data)
        elif self.dtls.incoming is not None and data[0] > 127 and not rtcp.is_rtcp(data):
            found = rtp.parse(self.dtls.incoming.unprotect(data))
            assert found is not None
            self.packets.append(found)

    def send(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.sendto(data)

    def send_rtp(self, packet: bytes) -> None:
        assert self.dtls is not None
        assert self.dtls.outgoing is not None
        with suppress(pylibsrtp.Error):  # some of what is wrong it sends for nobody
            self.send(self.dtls.outgoing.protect(packet))

    def send_rtcp(self, packet: bytes) -> None:
        assert self.dtls is not None
        assert self.dtls.outgoing is not None
        self.send(self.dtls.outgoing.protect_rtcp(packet))

    def close(self) -> None:
        if self.dtls is not None:
            self.dtls.close()
        if self._transport is not None:
            self._transport.close()
