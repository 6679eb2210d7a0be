"""An input's pictures as units to publish: as they are where that can be, else encoded.

Blocking: it is called in a thread of its own. Times are ticks on the input's own clock.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Final

import av
from av.bitstream import BitStreamFilterContext
from av.video.frame import PictureType
from av.video.stream import VideoStream

from services.common.media import h264
from services.common.media.codec import TICK
from services.common.media.mpegts import CLOCK_HZ, AccessUnit, Codec
from sluice.transform.picture import SMALLEST_SIDE, Framer, Orientation, fitted, matrix_of
from sluice.transform.source import KEYFRAME_TICKS, encoder

PASSED_FORMATS: Final = frozenset({"yuv420p", "yuvj420p"})  # what every runner's decoder and browser takes
PROBED_TICKS: Final = 12 * CLOCK_HZ
LONGEST_GOP: Final = 4 * CLOCK_HZ  # a viewer and a runner begin at key frames
USUAL_RATE: Final = Fraction(30)
SQUARE: Final = frozenset({None, Fraction(0), Fraction(1)})


class Passed:
    """H.264 as it is. B-frames too: they cost the viewers the time that they need to be put in order."""

    def __init__(self, stream: VideoStream) -> None:
        self._filter = BitStreamFilterContext("h264_mp4toannexb", stream)

    def take(self, packet: av.Packet[VideoStream] | None) -> list[AccessUnit]:
        """The units of a packet; None is the end."""
        units = []
        for each in self._filter.filter(packet):
            if each.pts is None:
                continue  # it has no place in a stream
            data = h264.strip_delimiter(bytes(each))
            pts = _ticks(each.pts, each.time_base)
            dts = pts if each.dts is None else _ticks(each.dts, each.time_base)
            units.append(AccessUnit(Codec.H264, pts, dts, data, h264.is_keyframe(data)))
        return units

    def want_keyframe(self) -> None:
        """Key frames come where they are."""


class Encoded:
    """Anything else, decoded and encoded without delay; a key frame each second, and where one is wanted."""

    def __init__(self, stream: VideoStream, limit: tuple[int, int]) -> None:
        self._stream = stream
        self._limit = limit
        self._time_base = stream.time_base or TICK
        self._rate = min(max(stream.average_rate or USUAL_RATE, Fraction(1)), Fraction(60))
        self._made: tuple[Framer, av.VideoCodecContext] | None = None
        self._ticks = -1
        self._count = 0
        self._key_due = 0
        self.damaged = 0

    def take(self, packet: av.Packet[VideoStream] | None) -> list[AccessUnit]:
        """The units of the pictures that a packet completes; None is the end."""
        try:
            frames = self._stream.decode(packet)
        except av.FFmpegError:
            self.damaged += 1
            return []
        return [unit for frame in frames for unit in self._encoded(frame)]

    def want_keyframe(self) -> None:
        self._key_due = 0

    def _encoded(self, frame: av.VideoFrame) -> list[AccessUnit]:
        if frame.pts is None:  # a raw stream has no times, only a rate
            ticks = round(self._count * CLOCK_HZ / self._rate)
        else:
            ticks = _ticks(frame.pts, self._time_base)
        self._count += 1
        if self._count > 1 and ticks <= self._ticks:
            return []
        framer, context = self._made or self._make(frame)
        picture = framer.picture(frame)
        picture.pts, picture.time_base = ticks, TICK
        key = self._count == 1 or ticks >= self._key_due
        picture.pict_type = PictureType.I if key else PictureType.NONE
        if key:
            self._key_due = ticks + KEYFRAME_TICKS
        self._ticks = ticks
        units = []
        for packet in context.encode(picture):
            data = bytes(packet)
            units.append(AccessUnit(Codec.H264, ticks, ticks, data, h264.is_keyframe(data)))
        return units

    def _make(self, first: av.VideoFrame) -> tuple[Framer, av.VideoCodecContext]:
        orientation, matrix = Orientation.of(first), matrix_of(first)
        aspect = self._stream.sample_aspect_ratio
        if not aspect or not Fraction(1, 8) < aspect < 8:
            aspect = Fraction(1)
        width, height = max(SMALLEST_SIDE, round(first.width * aspect)), max(SMALLEST_SIDE, first.height)
        size = fitted(*((height, width) if orientation.transpose else (width, height)), self._limit)
        self._made = Framer(size, orientation, matrix), encoder(size, self._rate, matrix)
        return self._made


Pictures = Passed | Encoded


def can_pass(stream: VideoStream, limit: tuple[int, int]) -> bool:
    """Whether the stream, by what is known of it without reading on, may be published as it is."""
    context = stream.codec_context
    large = context.width > max(limit) or context.height > max(limit) or min(limit) < SMALLEST_SIDE
    return (
        context.name == "h264"
        and context.pix_fmt in PASSED_FORMATS
        and stream.sample_aspect_ratio in SQUARE
        and not large
    )


def file_can_pass(path: Path) -> bool:
    """Whether a file begins with a key frame, has one often enough, stands upright and is not interlaced."""
    with av.open(str(path.absolute()), "r") as container:
        stream = container.streams.video[0]
        pictures = Passed(stream)
        first: av.VideoFrame | None = None
        begin: int | None = None
        key_at = end = 0
        try:
            for packet in container.demux(stream):
                if first is None:
                    first = next(iter(stream.decode(packet)), None)
                for unit in pictures.take(packet if packet.size else None):
                    if begin is None:
                        if not unit.keyframe:
                            return False
                        begin = key_at = unit.dts
                    if unit.keyframe:
                        key_at = unit.dts
                    end = unit.dts
                if begin is not None and (end - key_at > LONGEST_GOP or end - begin > PROBED_TICKS):
                    break
        except av.FFmpegError:
            return False
    upright = first is not None and not Orientation.of(first).changes and not first.interlaced_frame
    return upright and begin is not None and end - key_at <= LONGEST_GOP


def _ticks(time: int, time_base: Fraction | None) -> int:
    return round(time * (time_base or TICK) * CLOCK_HZ)
