"""A client of Scope's API as its documentation shows one, on aiortc."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from fractions import Fraction
from typing import Any

import av
import httpx
import numpy as np
from aiortc import (
    RTCConfiguration,
    RTCIceServer,
    RTCPeerConnection,
    RTCRtpSender,
    RTCSessionDescription,
    VideoStreamTrack,
)
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack

FPS = 15


class Camera(VideoStreamTrack):
    """A grey picture with a bright square that moves."""

    def __init__(self, width: int = 320, height: int = 240) -> None:
        super().__init__()
        self._size = (height, width)
        self._count = 0

    async def recv(self) -> av.VideoFrame:
        await asyncio.sleep(1 / FPS)
        rgb = np.full((*self._size, 3), 90, np.uint8)
        left = self._count * 4 % (self._size[1] - 40)
        rgb[40:80, left : left + 40] = (255, 240, 32)
        frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
        frame.pts, frame.time_base = self._count * 90_000 // FPS, Fraction(1, 90_000)
        self._count += 1
        return frame


class ScopeClient:
    """What the sample's page has: a connection, a data channel, a session's id, and what came."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http
        self.session_id = ""
        self.heard: list[dict[str, Any]] = []
        self.frames: list[np.ndarray] = []
        self.pc: RTCPeerConnection
        self._watching: asyncio.Task[None] | None = None

    async def connect(
        self,
        initial: dict[str, Any] | None = None,
        *,
        codec: str = "video/H264",
        camera: MediaStreamTrack | None = None,
    ) -> httpx.Response:
        """The sample's sequence, step by step."""
        answered = await self.http.get("/api/v1/webrtc/ice-servers")
        servers = [RTCIceServer(one["urls"]) for one in answered.json()["iceServers"]]
        self.pc = RTCPeerConnection(RTCConfiguration(iceServers=servers))
        self.channel = self.pc.createDataChannel("parameters", ordered=True)
        self.channel.on("message", lambda text: self.heard.append(json.loads(text)))
        self.pc.addTrack(camera or Camera())
        known = RTCRtpSender.getCapabilities("video").codecs
        (transceiver,) = self.pc.getTransceivers()
        transceiver.setCodecPreferences([one for one in known if one.mimeType == codec])
        self.pc.on("track", self._received)
        await self.pc.setLocalDescription(await self.pc.createOffer())
        local = self.pc.localDescription
        body = {"sdp": local.sdp, "type": local.type, "initialParameters": initial or {}}
        answer = await self.http.post("/api/v1/webrtc/offer", json=body)
        if answer.status_code != 200:
            return answer
        said = answer.json()
        self.session_id = said["sessionId"]
        await self.pc.setRemoteDescription(RTCSessionDescription(sdp=said["sdp"], type=said["type"]))
        candidate = next(line[2:] for line in local.sdp.splitlines() if line.startswith("a=candidate:"))
        patched = await self.trickle(candidate)
        assert patched.status_code == 204, patched.text
        return answer

    async def trickle(self, candidate: str) -> httpx.Response:
        one = {"candidate": candidate, "sdpMid": "0", "sdpMLineIndex": 0}
        return await self.http.patch(f"/api/v1/webrtc/offer/{self.session_id}", json={"candidates": [one]})

    def _received(self, track: MediaStreamTrack) -> None:
        self._watching = asyncio.ensure_future(self._watch(track))

    async def _watch(self, track: MediaStreamTrack) -> None:
        while True:
            try:
                frame = await track.recv()
            except MediaStreamError:
                return
            assert isinstance(frame, av.VideoFrame)
            self.frames.append(frame.to_ndarray(format="rgb24"))

    def say(self, message: dict[str, Any] | str) -> None:
        self.channel.send(message if isinstance(message, str) else json.dumps(message))

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [one for one in self.heard if one["type"] == kind]

    async def next(self, kind: str, count: int = 1, within_s: float = 10.0) -> dict[str, Any]:
        """The `count`th message of its kind, as soon as it was said."""
        try:
            async with asyncio.timeout(within_s):
                while len(self.of(kind)) < count:
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"no {kind} number {count} in {self.heard}") from None
        return self.of(kind)[count - 1]

    async def pictures(self, count: int, within_s: float = 15.0) -> None:
        """Wait until so many more have come."""
        wanted = len(self.frames) + count
        try:
            async with asyncio.timeout(within_s):
                while len(self.frames) < wanted:
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"{len(self.frames)} of {wanted} pictures; {self.heard}") from None

    async def close(self) -> None:
        await self.pc.close()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait({self._watching})


@asynccontextmanager
async def scope_client(http: httpx.AsyncClient) -> AsyncIterator[ScopeClient]:
    client = ScopeClient(http)
    client.pc = RTCPeerConnection()
    try:
        yield client
    finally:
        await client.close()
