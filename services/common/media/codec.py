"""H.264 to frames and back, one in and one out: no frame threads, no look-ahead, no hidden frame of delay.

The rule it keeps: a bad picture costs that picture, never the stream. Times are 90 kHz ticks on both sides.
Both are libav's in software unless they are told otherwise; `hardware.py` says what a machine has.
Colours are BT.709 from 720 lines on and BT.601 below, limited range, unless a decoded stream says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import av
import numpy as np
import numpy.typing as npt
from av.codec.hwaccel import HWAccel
from av.stream import Stream
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, VideoReformatter

from services.common.errors import InvalidError
from services.common.media import h264
from services.common.media.mpegts import CLOCK_HZ, AccessUnit, Codec

TICK: Final = Fraction(1, CLOCK_HZ)
HD_LINES: Final = 720  # BT.709 from here on, as browsers and libav guess it for streams that do not say

# What a stream may say (ITU-T H.273, matrix coefficients) and libswscale's name for it.
MATRICES: Final = {
    1: Colorspace.ITU709,
    4: Colorspace.FCC,
    5: Colorspace.ITU601,
    6: Colorspace.ITU601,
    7: Colorspace.SMPTE240M,
    9: Colorspace.BT2020,
}
BT709_MATRIX: Final = 1
BT601_MATRIX: Final = 6

BITS_PER_PIXEL: Final = (
    0.1  # 34 dB on smooth content, 31 on noisy, with the preset below (512x512 at 30 frames/s)
)
LOWEST_BIT_RATE: Final = 300_000
HIGHEST_BIT_RATE: Final = (
    8_000_000  # an edge forwards 25 streams per core at 1 Mbit/s; this is the odd large one
)

X264: Final = "libx264"
NVENC: Final = "h264_nvenc"
# By encoder, what makes it give each picture at once and key frames where they are asked for.
OPTIONS: Final = {
    X264: {
        "preset": "superfast",
        "tune": "zerolatency",
        "profile": "baseline",
        "forced-idr": "1",
        "sc_threshold": "0",
    },
    NVENC: {
        "preset": "p3",
        "tune": "ull",
        "profile": "baseline",
        "rc": "cbr",
        "forced-idr": "1",
        "no-scenecut": "1",
        "zerolatency": "1",
        "delay": "0",
        "rc-lookahead": "0",
    },
}

Rgb = npt.NDArray[np.uint8]
"""uint8 (H, W, 3), 0..255, full range."""


class DecoderBrokenError(Exception):
    """A decoder that is not at fault for its input failed; it is of no more use."""


def bit_rate_for(width: int, height: int, fps: float) -> int:
    """Bits per second for live video of that size: a tenth of a bit per pixel, from 0.3 to 8 Mbit/s."""
    return round(min(max(width * height * fps * BITS_PER_PIXEL, LOWEST_BIT_RATE), HIGHEST_BIT_RATE))


@dataclass(frozen=True, slots=True)
class DecodedFrame:
    """A picture as the decoder left it, usually yuv420p, and its presentation time."""

    pts: int
    frame: av.VideoFrame

    def rgb(self) -> Rgb:
        """The picture in the colours that the stream says, or that its size suggests."""
        by_size = Colorspace.ITU709 if self.frame.height >= HD_LINES else Colorspace.ITU601
        full = self.frame.color_range == ColorRange.JPEG
        pixels = self.frame.to_ndarray(
            format="rgb24",
            src_colorspace=MATRICES.get(self.frame.colorspace, by_size),
            src_color_range=ColorRange.JPEG if full else ColorRange.MPEG,
            dst_color_range=ColorRange.JPEG,
            threads=1,
        )
        return np.asarray(pixels, np.uint8)


class VideoDecoder:
    """Decodes H.264 as it comes. Sizes may change at any key frame.

    A stream without B-frames gives each picture at once; with them a picture waits for as many as the stream
    says can come before it.
    """

    def __init__(self, device: HWAccel | None = None) -> None:
        """`device`: decodes there; its pictures come to main memory. Raises av.FFmpegError without it."""
        self.errors = 0  # units that gave no picture, or one with holes
        self._on_device = device is not None
        self._context = av.CodecContext.create("h264", "r", hwaccel=device)
        self._context.thread_count = 1  # frame threads would each hold back a picture

    def decode(self, data: bytes, pts: int) -> list[DecodedFrame]:
        """The pictures that one access unit completes, in the order in which they are shown.

        Raises DecoderBrokenError if a device failed.
        """
        if not data:
            self.errors += 1  # to libav an empty packet means the end of the stream
            return []
        packet = av.Packet(data)
        packet.pts = pts
        packet.time_base = TICK
        return self._decoded(packet)

    def flush(self) -> list[DecodedFrame]:
        """The pictures that still wait. What is decoded next is a new stream."""
        frames = self._decoded(None)
        self._context.flush_buffers()
        return frames

    def _decoded(self, packet: av.Packet[Stream] | None) -> list[DecodedFrame]:
        try:
            frames = self._context.decode(packet)
        except av.FFmpegError as error:
            if self._on_device and not isinstance(error, av.InvalidDataError):
                raise DecoderBrokenError(error.strerror) from error
            self.errors += 1
            return []
        self.errors += sum(frame.is_corrupt for frame in frames)
        return [DecodedFrame(frame.pts, frame) for frame in frames if frame.pts is not None]


class VideoEncoder:
    """Encodes to H.264 baseline, for any browser; each picture comes out of the call that it went into.

    Key frames come where they are asked for and nowhere else, save the first picture. The bit rate is an
    average with a buffer of a second. libx264 counts it in frames, for counting it in time would cost a frame
    of delay; so at half of `fps` half of it is used, until `aim` tells the pace.

    With `NVENC` all of its calls may raise av.FFmpegError, and `aim` makes the next picture a key frame.
    """

    def __init__(
        self, width: int, height: int, bit_rate: int, *, fps: float = 30, encoder: str = X264
    ) -> None:
        if width <= 0 or height <= 0 or width % 2 or height % 2:
            raise InvalidError(
                "a picture's sides must be even", reason="ODD_SIZE", width=width, height=height
            )
        self._size = (height, width)
        self._opened_at = bit_rate
        self._fps = fps
        self._matrix = Colorspace.ITU709 if height >= HD_LINES else Colorspace.ITU601
        self._reformatter = VideoReformatter()
        context = av.CodecContext.create(encoder, "w")
        assert isinstance(context, VideoCodecContext)
        context.width, context.height, context.pix_fmt = width, height, "yuv420p"
        context.time_base, context.framerate = TICK, Fraction(fps).limit_denominator(1000)
        context.bit_rate = bit_rate
        context.thread_count = 1
        context.max_b_frames = 0
        context.gop_size = 1 << 30  # libx264's "infinite"
        context.color_range = ColorRange.MPEG
        if height >= HD_LINES:
            context.colorspace = BT709_MATRIX
            context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        else:
            context.colorspace = BT601_MATRIX
            context.color_primaries, context.color_trc = ColorPrimaries.SMPTE170M, ColorTrc.SMPTE170M
        context.options = {**OPTIONS[encoder], "maxrate": str(bit_rate), "bufsize": str(bit_rate)}
        self._context = context

    def aim(self, bit_rate: int, *, fps: float) -> float:
        """Go on at another bit rate, or at as many pictures a second; no key frame, nothing begins anew.

        Returns how far that is from what the encoder was opened with, as a factor. Above 1 it stays there:
        libx264 lowers the bit rate of a running encoder and gives it back, no more. Well below 1 its buffer
        is longer than a second. A new encoder, which begins with a key frame, has neither fault. (libav
        resets a running NVENC for another rate, so there its next picture is a key frame.)
        """
        wanted = bit_rate * self._fps / fps
        self._context.bit_rate = round(min(wanted, self._opened_at))
        return wanted / self._opened_at

    def encode(self, rgb: Rgb, pts: int, *, keyframe: bool) -> list[AccessUnit]:
        """One picture in, its unit out; an IDR with parameter sets if it is to be a `keyframe`."""
        assert rgb.shape == (*self._size, 3), (rgb.shape, self._size)
        assert rgb.dtype == np.uint8, rgb.dtype
        # Without a copy: the pixels are read before this returns.
        source = av.VideoFrame.from_numpy_buffer(np.ascontiguousarray(rgb))
        frame = self._reformatter.reformat(
            source,
            format="yuv420p",
            dst_colorspace=self._matrix,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
            threads=1,
        )
        frame.pts = pts
        frame.time_base = TICK
        frame.pict_type = PictureType.I if keyframe else PictureType.NONE
        return self._units(self._context.encode(frame))

    def flush(self) -> list[AccessUnit]:
        """What is still inside, which is nothing; the encoder takes no more pictures."""
        return self._units(self._context.encode(None))

    @staticmethod
    def _units(packets: Iterable[av.Packet[Stream]]) -> list[AccessUnit]:
        units = []
        for packet in packets:
            assert packet.pts is not None
            data = bytes(packet)
            dts = packet.pts if packet.dts is None else packet.dts
            units.append(AccessUnit(Codec.H264, packet.pts, dts, data, h264.is_keyframe(data)))
        return units
