"""Codecs that cannot pass through, converted in a thread, one unit after the other.

Bounded: when the thread is late, what waits is dropped up to the next key frame, counted.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from fractions import Fraction
from functools import partial
from typing import Final, Protocol

import av
from av.stream import Stream
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType

from services.common.frame_drops import FRAME_DROPS
from services.common.media import h264
from services.common.media.codec import TICK, bit_rate_for
from services.common.media.mpegts import AccessUnit, Codec
from services.common.media.sound import AudioDecoder, AudioEncoder
from services.ingest.transports.webrtc import vpx_rtp

WAITING_UNITS: Final = 30  # a second of pictures
DECODERS: Final = {"H264": "h264", "VP8": "vp8", "VP9": "vp9"}
ENCODERS: Final = {"H264": "libx264", "VP8": "libvpx"}
FPS: Final = 30
# As few frames of delay as there can be: none.
OPTIONS: Final = {
    "H264": {
        "preset": "superfast",
        "tune": "zerolatency",
        "profile": "baseline",
        "forced-idr": "1",
        "sc_threshold": "0",
    },
    "VP8": {
        "deadline": "realtime",
        "cpu-used": "8",
        "lag-in-frames": "0",
        "error-resilient": "1",
        "static-thresh": "1",
    },
}


class Converter(Protocol):
    """Turns one unit into those that it becomes; called in a thread, never twice at once."""

    def convert(self, data: bytes, pts: int, *, keyframe: bool) -> list[AccessUnit]: ...


class VideoConverter:
    """Pictures from one codec to another of the same size. `Codec.OTHER` stands for VP8 in what comes out."""

    def __init__(self, source: str, target: str) -> None:
        self.errors = 0
        self._target = target
        decoder = av.CodecContext.create(DECODERS[source], "r")
        assert isinstance(decoder, VideoCodecContext)
        self._decoder = decoder
        self._decoder.thread_count = 1  # frame threads would each hold back a picture
        self._encoder: VideoCodecContext | None = None
        self._size = (0, 0)

    def convert(self, data: bytes, pts: int, *, keyframe: bool) -> list[AccessUnit]:
        """The units of one picture; with `keyframe` the first of them can be decoded by itself."""
        packet = av.Packet(data)
        packet.pts, packet.time_base = pts, TICK
        try:
            frames = self._decoder.decode(packet)
        except av.FFmpegError:
            self.errors += 1
            return []
        units: list[AccessUnit] = []
        for frame in frames:
            assert isinstance(frame, av.VideoFrame)
            units += self._encode(frame, pts, keyframe=keyframe)
        return units

    def _encode(self, frame: av.VideoFrame, pts: int, *, keyframe: bool) -> list[AccessUnit]:
        width, height = frame.width & ~1, frame.height & ~1  # 4:2:0 has even sides
        if self._encoder is None or self._size != (width, height):
            self._encoder, self._size = self._open(width, height), (width, height)
        if frame.format.name != "yuv420p" or (frame.width, frame.height) != (width, height):
            frame = frame.reformat(width, height, "yuv420p")
        frame.pts, frame.time_base = pts, TICK
        frame.pict_type = PictureType.I if keyframe else PictureType.NONE
        return list(self._units(self._encoder.encode(frame)))

    def _open(self, width: int, height: int) -> VideoCodecContext:
        context = av.CodecContext.create(ENCODERS[self._target], "w")
        assert isinstance(context, VideoCodecContext)
        context.width, context.height, context.pix_fmt = width, height, "yuv420p"
        context.time_base, context.framerate = TICK, Fraction(FPS)
        context.bit_rate = bit_rate_for(width, height, FPS)
        context.thread_count = 1
        context.max_b_frames = 0
        context.gop_size = 1 << 30
        context.options = dict(OPTIONS[self._target])
        return context

    def _units(self, packets: list[av.Packet[Stream]]) -> Iterator[AccessUnit]:
        for packet in packets:
            data, pts = bytes(packet), packet.pts
            assert pts is not None
            if self._target == "H264":
                yield AccessUnit(Codec.H264, pts, pts, data, h264.is_keyframe(data))
            else:
                yield AccessUnit(Codec.OTHER, pts, pts, data, vpx_rtp.vp8_is_keyframe(data))


class SoundConverter:
    """AAC to Opus."""

    def __init__(self) -> None:
        self._decoder = AudioDecoder(Codec.AAC)
        self._encoder = AudioEncoder(Codec.OPUS)

    def convert(self, data: bytes, pts: int, *, keyframe: bool) -> list[AccessUnit]:
        return [
            unit
            for sound in self._decoder.decode(data, pts)
            for unit in self._encoder.encode(sound.samples, sound.pts)
        ]


class Conversion:
    """One converter at work in `executor`; `deliver` gets what comes out, on the event loop."""

    def __init__(
        self,
        converter: Converter,
        executor: Executor,
        *,
        deliver: Callable[[AccessUnit], None],
        ask_keyframe: Callable[[], None],
    ) -> None:
        self._converter = converter
        self._executor = executor
        self._deliver = deliver
        self._ask_keyframe = ask_keyframe
        self._waiting: deque[tuple[bytes, int, bool]] = deque()
        self._begun = False
        self._skipping = True  # up to a key frame: nothing before it can be decoded
        self._keyframe = True  # the next picture that goes out is to be one
        self._ready = asyncio.Event()

    def want_keyframe(self) -> None:
        """Make the next picture one that can be decoded by itself."""
        self._keyframe = True

    def put(self, data: bytes, pts: int, *, keyframe: bool) -> None:
        """Take one unit; never waits."""
        if len(self._waiting) >= WAITING_UNITS:
            FRAME_DROPS.labels("webrtc_conversion").inc(len(self._waiting))
            self._waiting.clear()
            self._skipping = True
            self._ask_keyframe()
        if self._skipping and not keyframe:
            if self._begun:
                FRAME_DROPS.labels("webrtc_conversion").inc()
            return
        self._begun, self._skipping = True, False
        self._waiting.append((data, pts, self._keyframe or keyframe))
        self._keyframe = False
        self._ready.set()

    async def run(self) -> None:
        """Convert for ever."""
        loop = asyncio.get_running_loop()
        while True:
            while not self._waiting:
                self._ready.clear()
                await self._ready.wait()
            data, pts, wanted = self._waiting.popleft()
            work = partial(self._converter.convert, data, pts, keyframe=wanted)
            units = await loop.run_in_executor(self._executor, work)
            for unit in units:
                self._deliver(unit)
