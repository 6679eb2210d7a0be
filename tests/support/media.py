"""Small real media: H.264 of a few pixels, ADTS frames of silence, and transport streams of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from typing import Final

import numpy as np

from services.common.media.codec import VideoDecoder, VideoEncoder
from services.common.media.mpegts import (
    CLOCK_HZ,
    PMT_PID,
    PROGRAM,
    VIDEO_PID,
    AccessUnit,
    Codec,
    Demuxer,
    Muxer,
)
from services.common.media.mpegts.packets import Track
from services.common.media.mpegts.tables import association, in_packets, program_map

FPS: Final = 25
FRAME: Final = CLOCK_HZ // FPS
SIZE: Final = (64, 48)
AAC_FRAME: Final = 1920  # ticks of 1024 samples at 48 kHz
HEVC_TYPE: Final = 0x24


@lru_cache
def _encoded(count: int, every: int) -> tuple[AccessUnit, ...]:
    encoder = VideoEncoder(*SIZE, 200_000, fps=FPS)
    units: list[AccessUnit] = []
    for index in range(count):
        rgb = np.full((SIZE[1], SIZE[0], 3), index * 8 % 256, np.uint8)
        units += encoder.encode(rgb, index * FRAME, keyframe=index % every == 0)
    return tuple(units)


def pictures(count: int, *, start: int = 0, every: int = FPS) -> list[AccessUnit]:
    """`count` pictures at 25 fps whose times begin at `start`, a key frame each `every`."""
    return [moved(unit, unit.pts + start) for unit in _encoded(count, every)]


def moved(unit: AccessUnit, pts: int) -> AccessUnit:
    return replace(unit, pts=pts, dts=pts)


def sound(count: int, *, start: int = 0) -> list[AccessUnit]:
    """`count` AAC frames, 48 kHz stereo: a valid ADTS header, and nothing worth decoding behind it."""
    body = b"\x21\x10\x04\x60\x8c\x1c"
    size = 7 + len(body)
    # ISO 13818-7 §6.2: AAC LC, 48 kHz, two channels, one frame
    header = bytes((0xFF, 0xF1, 0x4C, 0x80 | size >> 11, size >> 3 & 0xFF, (size & 7) << 5 | 0x1F, 0xFC))
    times = range(start, start + count * AAC_FRAME, AAC_FRAME)
    return [AccessUnit(Codec.AAC, pts, pts, header + body, keyframe=True) for pts in times]


def ts(units: Iterable[AccessUnit], *, audio: Codec | None = None) -> bytes:
    """A transport stream as a client sends it."""
    muxer = Muxer(audio=audio)
    return muxer.begin_segment() + b"".join([muxer.write(unit) for unit in units])


def units_of(data: bytes) -> list[AccessUnit]:
    demuxer = Demuxer()
    return [*demuxer.feed(data), *demuxer.end_segment()]


def shown(data: bytes) -> list[int]:
    """The times of the pictures that a viewer of `data` can decode."""
    decoder = VideoDecoder()
    pictures_ = [unit for unit in units_of(data) if unit.codec is Codec.H264]
    frames = [frame for unit in pictures_ for frame in decoder.decode(unit.data, unit.pts)]
    frames += decoder.flush()
    assert decoder.errors == 0
    return [frame.pts for frame in frames]


def announced(stream_type: int) -> bytes:
    """The tables of a program with one stream of `stream_type`, such as HEVC, and some packets of it."""
    pat = association(PROGRAM, PMT_PID)
    pmt = program_map(PROGRAM, VIDEO_PID, [(stream_type, VIDEO_PID, b"")])
    tables = Track(0).packets(in_packets(pat)) + Track(PMT_PID).packets(in_packets(pmt))
    return tables + Track(VIDEO_PID).packets(b"\x00\x00\x01\xe0\x00\x00\x84\x80\x05" + bytes(1000))
