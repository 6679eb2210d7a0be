"""A clip as it is sent: H.264, one unit a picture. Blocking: it is called in a thread of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Final

import av
from av.video.frame import PictureType
from av.video.reformatter import ColorPrimaries, ColorRange, ColorTrc

from services.common.media import h264
from services.common.media.codec import BT709_MATRIX, TICK
from services.common.media.mpegts import CLOCK_HZ, AccessUnit, Codec
from sluice.transform.clip import Clip

KEYFRAME_TICKS: Final = CLOCK_HZ  # what the platform cuts segments by, and what a fail-over replays at most
LONGEST_GAP_TICKS: Final = CLOCK_HZ  # a silence of 2 s is a publisher gone quiet; a still picture is none
QUALITY: Final = "20"  # crf; above 40 dB, so that what is lost is lost in the pipeline
LARGEST_BIT_RATE: Final = 20_000_000
ENCODER_THREADS: Final = 4  # slices: more of them cost bits, fewer do not keep up with 1080p on a laptop


@dataclass(frozen=True, slots=True)
class Picture:
    """One unit to send. A `repeated` one fills a long gap in the file; its result is not kept."""

    unit: AccessUnit
    repeated: bool


class Source(Clip):
    """An open clip and its encoder. `pictures` is read once, from beginning to end."""

    def __init__(self, path: Path, limit: tuple[int, int]) -> None:
        super().__init__(path, limit)
        self._context = encoder(self.size, self.fps, self.matrix)

    def pictures(self) -> Iterator[Picture]:
        """Every picture, encoded; in a long gap the last one again, for silence would end the session."""
        ticks = -1
        key_due = 0
        shown: av.VideoFrame | None = None
        for now, frame in self.frames():
            while shown is not None and now - ticks > LONGEST_GAP_TICKS:
                ticks += LONGEST_GAP_TICKS
                yield from self._encoded(shown, ticks, keyframe=ticks >= key_due, repeated=True)
                key_due = ticks + KEYFRAME_TICKS if ticks >= key_due else key_due
            ticks, shown = now, frame
            yield from self._encoded(shown, ticks, keyframe=ticks >= key_due, repeated=False)
            key_due = ticks + KEYFRAME_TICKS if ticks >= key_due else key_due

    def _encoded(
        self, frame: av.VideoFrame, ticks: int, *, keyframe: bool, repeated: bool
    ) -> Iterator[Picture]:
        frame.pts, frame.time_base = ticks, TICK
        frame.pict_type = PictureType.I if keyframe else PictureType.NONE
        for packet in self._context.encode(frame):
            data = bytes(packet)
            yield Picture(AccessUnit(Codec.H264, ticks, ticks, data, h264.is_keyframe(data)), repeated)


def encoder(size: tuple[int, int], fps: Fraction, matrix: int) -> av.VideoCodecContext:
    """Main profile, for CABAC saves a tenth; no B-frames and no look-ahead: one picture in, its unit out."""
    context = av.CodecContext.create("libx264", "w")
    assert isinstance(context, av.VideoCodecContext)
    context.width, context.height = size
    context.pix_fmt = "yuv420p"
    context.time_base, context.framerate = TICK, fps.limit_denominator(1001)
    context.thread_count = ENCODER_THREADS
    context.max_b_frames = 0
    context.gop_size = 1 << 30  # key frames come by the clock, for the frame rate may vary
    context.color_range = ColorRange.MPEG
    context.colorspace = matrix
    hd = matrix == BT709_MATRIX
    context.color_primaries = ColorPrimaries.BT709 if hd else ColorPrimaries.SMPTE170M
    context.color_trc = ColorTrc.BT709 if hd else ColorTrc.SMPTE170M
    context.options = {
        "preset": "superfast",
        "tune": "zerolatency",
        "profile": "main",
        "crf": QUALITY,
        "maxrate": str(LARGEST_BIT_RATE),
        "bufsize": str(LARGEST_BIT_RATE // 2),
        "forced-idr": "1",
        "sc_threshold": "0",
    }
    return context
