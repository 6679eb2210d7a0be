"""WebRTC clients without codecs: aiortc sends units as they are, and hands over what it receives undecoded.

They reach servers on this machine only. Nothing lost is asked for again: between two sockets of one machine
there is no loss that is not the point of a test.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from fractions import Fraction
from typing import Any, Final
from unittest import mock

import aiohttp
import aioice.ice
from aiortc import (
    RTCConfiguration,
    RTCPeerConnection,
    RTCRtpReceiver,
    RTCRtpSender,
    RTCRtpTransceiver,
    RTCSessionDescription,
    rtcrtpsender,
)
from aiortc.codecs import depayload
from aiortc.mediastreams import MediaStreamTrack
from aiortc.rtcrtpparameters import RTCRtpCodecParameters
from aiortc.rtcrtpreceiver import StreamStatistics
from aiortc.rtp import RtpPacket
from av.packet import Packet

from services.common.media import h264
from services.common.media.mpegts import CLOCK_HZ, AccessUnit, Codec

Take = Callable[[AccessUnit], None]
CONNECT_S: Final = 10.0
QUEUE: Final = 1000  # units that wait to be sent
CLOCK: Final = Fraction(1, CLOCK_HZ)
TICKS_PER_SAMPLE: Final = Fraction(CLOCK_HZ, 48_000)
CODECS: Final = {
    "H264": RTCRtpCodecParameters("video/H264", 90_000, payloadType=0),
    "opus": RTCRtpCodecParameters("audio/opus", 48_000, 2, payloadType=0),
}


class Unencoded(MediaStreamTrack):
    """What is put in goes out, as it is and in its order."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self._queue: asyncio.Queue[AccessUnit] = asyncio.Queue(QUEUE)

    async def recv(self) -> Packet[Any]:
        unit = await self._queue.get()
        packet = Packet(unit.data)
        packet.pts, packet.time_base = unit.pts, CLOCK
        return packet

    async def put(self, unit: AccessUnit) -> None:
        await self._queue.put(unit)


class Units:
    """One receiver's packets as access units; a picture of which a packet is missing is left out."""

    def __init__(self, codec: Codec, reports: dict[int, StreamStatistics], take: Take) -> None:
        self._codec = codec
        self._reports = reports  # aiortc's: what it tells the sender once a second
        self._take = take
        self._parts: list[bytes] = []
        self._next: int | None = None
        self._whole = True
        self._time: int | None = None
        self.packets = 0
        self.lost = 0

    async def receive(self, packet: RtpPacket, arrival_time_ms: int) -> None:
        """In the place of aiortc's jitter buffer and decoder."""
        if not packet.payload:
            return  # a probe
        self.packets += 1
        if packet.ssrc not in self._reports:
            self._reports[packet.ssrc] = StreamStatistics(48_000 if self._codec is Codec.OPUS else CLOCK_HZ)
        self._reports[packet.ssrc].add(packet)
        if self._next is not None and packet.sequence_number != self._next:
            gap = packet.sequence_number - self._next & 0xFFFF
            if gap > 0x7FFF:
                return  # again, or late
            self.lost += gap
            self._whole = False
        self._next = packet.sequence_number + 1 & 0xFFFF
        if self._codec is Codec.OPUS:
            self._finish(packet, packet.payload, TICKS_PER_SAMPLE)
            return
        self._parts.append(depayload(CODECS["H264"], packet.payload))
        if packet.marker:
            data, self._parts = b"".join(self._parts), []
            if self._whole:
                self._finish(packet, data, Fraction(1))
            self._whole = True

    def _finish(self, packet: RtpPacket, data: bytes, ticks: Fraction) -> None:
        step = (
            0 if self._time is None else (packet.timestamp - self._time + (1 << 31) & 0xFFFFFFFF) - (1 << 31)
        )
        self._time = packet.timestamp if self._time is None else self._time + step
        pts = round(self._time * ticks)
        keyframe = self._codec is Codec.OPUS or h264.is_keyframe(data)
        self._take(AccessUnit(self._codec, pts, pts, data, keyframe=keyframe))


class Client:
    """One connection. `publish` or `watch`; `leave` in order, `close` as pages do, or be `cut_off`."""

    def __init__(self, http: aiohttp.ClientSession) -> None:
        self._http = http
        self.peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.resource = ""
        self.refused = ""
        self.receiving: dict[str, Units] = {}
        self.tracks = {kind: Unencoded(kind) for kind in ("video", "audio")}

    async def publish(self, url: str) -> None:
        """Raises ConnectionRefusedError."""
        for track in self.tracks.values():
            _prefer_h264(self.peer.addTransceiver(track, "sendonly"), RTCRtpSender)
        # The clock begins at 0, and not anywhere, so that a test knows where it wraps.
        with mock.patch.object(rtcrtpsender, "random32", return_value=0):
            await self._connect(url)

    async def watch(self, url: str, take: Take) -> None:
        """Raises ConnectionRefusedError."""
        for kind in self.tracks:
            transceiver = self.peer.addTransceiver(kind, "recvonly")
            _prefer_h264(transceiver, RTCRtpReceiver)
            self._receive(transceiver, take)
        await self._connect(url)

    async def echo(self, url: str, take: Take) -> None:
        """Send, and take what comes back. Raises ConnectionRefusedError."""
        for track in self.tracks.values():
            transceiver = self.peer.addTransceiver(track, "sendrecv")
            _prefer_h264(transceiver, RTCRtpSender)
            self._receive(transceiver, take)
        await self._connect(url)

    def _receive(self, transceiver: RTCRtpTransceiver, take: Take) -> None:
        codec = Codec.H264 if transceiver.kind == "video" else Codec.OPUS
        receiver: Any = transceiver.receiver
        reports = receiver._RTCRtpReceiver__remote_streams
        units = self.receiving[transceiver.kind] = Units(codec, reports, take)
        receiver._handle_rtp_packet = units.receive

    async def _connect(self, url: str) -> None:
        # aioice leaves 127.0.0.1 out, and a test must not need a network.
        with mock.patch.object(aioice.ice, "get_host_addresses", return_value=["127.0.0.1"]):
            await self.peer.setLocalDescription(await self.peer.createOffer())
        headers = {"Content-Type": "application/sdp"}
        async with self._http.post(url, data=self.peer.localDescription.sdp, headers=headers) as answer:
            body = await answer.text()
            if answer.status != 201:
                self.refused = body
                raise ConnectionRefusedError(f"HTTP {answer.status}: {body}")
            self.resource = answer.headers.get("Location", "")
        await self.peer.setRemoteDescription(RTCSessionDescription(body, "answer"))
        async with asyncio.timeout(CONNECT_S):
            while self.peer.connectionState != "connected":
                if self.peer.connectionState in {"failed", "closed"}:
                    raise ConnectionResetError("the connection failed")
                await asyncio.sleep(0.005)

    async def send(self, unit: AccessUnit) -> None:
        """Raises ConnectionResetError when the server has closed the connection."""
        if self.peer.connectionState != "connected":
            raise ConnectionResetError("the server closed the connection")
        await self.tracks["video" if unit.codec is Codec.H264 else "audio"].put(unit)

    async def leave(self) -> None:
        """End the resource, and close."""
        async with self._http.delete(self.resource):
            pass
        await self.close()

    async def close(self) -> None:
        """Close; the other side is told by DTLS, unless this one was cut off."""
        with suppress(asyncio.InvalidStateError):  # aiortc's, when it was cancelled while it connected
            async with asyncio.timeout(CONNECT_S):
                await self.peer.close()

    def cut_off(self) -> None:
        """Send nothing more, whatever there is to say."""
        for protocol in self._protocols():
            if not isinstance(protocol.transport, _Mute):
                protocol.transport = _Mute(protocol.transport)

    def datagram(self, data: bytes) -> None:
        """Send bytes from where the media comes from."""
        for protocol in self._protocols():
            for pair in protocol.receiver._nominated.values():
                protocol.transport.sendto(data, pair.remote_addr)

    def _protocols(self) -> list[Any]:
        connections = {
            transceiver.sender.transport.transport._connection for transceiver in self.peer.getTransceivers()
        }
        return [protocol for connection in connections for protocol in connection._protocols]


class _Mute:
    """A socket that sends nothing."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport

    def sendto(self, data: bytes, address: object) -> None:
        """Say nothing."""

    def close(self) -> None:
        self._transport.close()


def _prefer_h264(transceiver: RTCRtpTransceiver, of: type[RTCRtpSender] | type[RTCRtpReceiver]) -> None:
    if transceiver.kind == "video":
        capabilities = of.getCapabilities("video")
        assert capabilities is not None
        codecs = capabilities.codecs
        kept: Sequence[Any] = [codec for codec in codecs if codec.mimeType in {"video/H264", "video/rtx"}]
        transceiver.setCodecPreferences(list(kept))
