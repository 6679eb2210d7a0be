"""What a transport stream carries for us: pictures and sounds, and a clock of 33 bits. Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

CLOCK_HZ: Final = 90_000
WRAP: Final = 1 << 33


class Codec(enum.StrEnum):
    """What a PMT can announce. Units come for H.264, AAC and Opus; the others are named to be refused."""

    H264 = "h264"
    HEVC = "hevc"
    MPEG2 = "mpeg2video"
    AAC = "aac"
    OPUS = "opus"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class AccessUnit:
    """One picture or one audio frame, times in 90 kHz ticks.

    `data` is, for H.264, one Annex B picture without access unit delimiter (the muxer puts it in, the demuxer
    takes it out); for AAC one ADTS frame; for Opus one bare packet. Times are the 33 bits on the wire from a
    demuxer, and may be unwrapped for a muxer. Audio is always `keyframe`.
    """

    codec: Codec
    pts: int
    dts: int
    data: bytes
    keyframe: bool


def unwrap(previous: int, raw33: int) -> int:
    """The tick count nearest to `previous` whose low 33 bits are `raw33`."""
    return previous + (raw33 - previous + WRAP // 2) % WRAP - WRAP // 2
