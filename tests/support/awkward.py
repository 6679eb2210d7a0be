"""H.264 as awkward cameras, screens and phones send it: sizes, sampling, order and pace that change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

import av
import cv2
import numpy as np

from services.common.media import h264
from services.common.media.codec import VideoEncoder
from services.common.media.mpegts import CLOCK_HZ
from services.inference.packets import Media
from tests.support.clips import TICK, picture


def take(
    pts: Sequence[int],
    *,
    size: tuple[int, int],
    pixels: str = "yuv420p",
    options: Mapping[str, str] = {"preset": "ultrafast", "tune": "zerolatency"},
) -> list[Media]:
    """One encoder's pictures at `pts`, in the order of decoding; each take begins with an SPS and an IDR."""
    context = av.CodecContext.create("libx264", "w")
    context.width, context.height, context.pix_fmt = *size, pixels
    context.time_base, context.framerate = TICK, Fraction(30)
    context.options = dict(options)
    packets = []
    for number, at in enumerate(pts):
        frame = picture(*size, number).reformat(format=pixels)
        frame.pts, frame.time_base = at, TICK
        packets += context.encode(frame)
    packets += context.encode(None)
    return [
        Media(0, packet.pts, packet.dts, h264.is_keyframe(bytes(packet)), bytes(packet))
        for packet in packets
        if packet.pts is not None and packet.dts is not None
    ]


def detailed(seconds: float, *, side: int = 256, fps: int = 30, start: int = 90_000) -> list[Media]:
    """A camera that pans over more than the runner's bit rate can show, with a key frame each ten seconds."""
    noise = np.random.default_rng(1).integers(0, 256, (1024, 1024, 3), dtype=np.uint8)
    scene = np.asarray(cv2.GaussianBlur(noise, (0, 0), 1.5), np.uint8)
    encoder = VideoEncoder(side, side, 4_000_000, fps=fps)
    packets = []
    for index in range(round(seconds * fps)):
        x, y = index * 5 % (1024 - side), index * 3 % (1024 - side)
        pts = start + index * CLOCK_HZ // fps
        units = encoder.encode(scene[y : y + side, x : x + side], pts, keyframe=index % (10 * fps) == 0)
        packets += [Media(0, unit.pts, unit.dts, unit.keyframe, unit.data) for unit in units]
    return packets
