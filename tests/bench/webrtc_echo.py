"""The alternative that the WebRTC benchmarks compare with: an echo that decodes and encodes with aiortc.

It is how Scope and ComfyStream move pictures: aiortc decodes what the browser sends, the picture becomes an
RGB array and a picture again, aiortc encodes it. There is no model between, and no process.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import aioice.ice
from aiohttp import web
from aiortc import RTCConfiguration, RTCPeerConnection, RTCRtpSender, RTCSessionDescription
from aiortc.mediastreams import MediaStreamTrack
from av.video.frame import VideoFrame

CLOSE_S: Final = 5.0
CROSS_ORIGIN: Final = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Headers": "*",
    "Access-Control-Allow-Methods": "*",
    "Access-Control-Expose-Headers": "*",
}


@contextmanager
def echoing() -> Iterator[tuple[str, int]]:
    """Run an echo in a process of its own; yields its URL and its process id."""
    command = [sys.executable, "-m", "tests.bench.webrtc_echo"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            url = process.stdout.readline().strip()
            assert url, "the echo did not start"
            yield url, process.pid
        finally:
            process.stdin.close()
            try:
                process.wait(CLOSE_S)
            except subprocess.TimeoutExpired:
                process.kill()


class ThroughRgb(MediaStreamTrack):
    """The pictures of `source` as a model without effect returns them."""

    kind = "video"

    def __init__(self, source: MediaStreamTrack) -> None:
        super().__init__()
        self._source = source

    async def recv(self) -> VideoFrame:
        taken = await self._source.recv()
        assert isinstance(taken, VideoFrame)
        made = VideoFrame.from_ndarray(taken.to_ndarray(format="rgb24"), format="rgb24")
        made.pts, made.time_base = taken.pts, taken.time_base
        return made


class Echo:
    """`POST /` with an offer that sends and receives; the client leaves by closing."""

    def __init__(self) -> None:
        self._peers: set[RTCPeerConnection] = set()

    async def offer(self, request: web.Request) -> web.Response:
        peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self._peers.add(peer)

        @peer.on("connectionstatechange")
        async def changed() -> None:
            if peer.connectionState in {"failed", "closed"}:
                await self._close(peer)

        video = peer.addTransceiver("video", "sendrecv")
        known = RTCRtpSender.getCapabilities("video").codecs
        video.setCodecPreferences([codec for codec in known if codec.mimeType in {"video/H264", "video/rtx"}])

        @peer.on("track")
        def received(track: MediaStreamTrack) -> None:
            if track.kind == "video":
                video.sender.replaceTrack(ThroughRgb(track))
            else:
                peer.addTrack(track)

        await peer.setRemoteDescription(RTCSessionDescription(await request.text(), "offer"))
        await peer.setLocalDescription(await peer.createAnswer())
        return web.Response(
            status=201, text=peer.localDescription.sdp, content_type="application/sdp", headers=CROSS_ORIGIN
        )

    async def close(self) -> None:
        for peer in list(self._peers):
            await self._close(peer)

    async def _close(self, peer: RTCPeerConnection) -> None:
        if peer in self._peers:
            self._peers.remove(peer)
            async with asyncio.timeout(CLOSE_S):
                await peer.close()

    async def allow(self, request: web.Request) -> web.Response:
        return web.Response(status=204, headers=CROSS_ORIGIN)


async def serve() -> None:
    """Serve on a free port, whose URL is the first line of the output, until the input ends."""
    # aioice leaves 127.0.0.1 out, and a benchmark must not need a network.
    aioice.ice.get_host_addresses = lambda use_ipv4, use_ipv6: ["127.0.0.1"]
    echo = Echo()
    app = web.Application()
    app.add_routes([web.post("/", echo.offer), web.options("/", echo.allow)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    sys.stdout.write(f"http://127.0.0.1:{runner.addresses[0][1]}/\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)
    await echo.close()
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(serve())
