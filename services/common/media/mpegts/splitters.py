"""What one PES packet carried, taken apart into units. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, Protocol

from services.common.media import h264
from services.common.media.mpegts.damage import Tally
from services.common.media.mpegts.units import CLOCK_HZ, WRAP, AccessUnit, Codec

ADTS_SYNC: Final = re.compile(rb"\xff[\xf0\xf1\xf8\xf9]")
ADTS_HEADER: Final = 7
ADTS_SAMPLES: Final = 1024
ADTS_RATES: Final = (
    *(96_000, 88_200, 64_000, 48_000, 44_100, 32_000),
    *(24_000, 22_050, 16_000, 12_000, 11_025, 8_000, 7_350),
)

# RFC 6716 §3.1: ticks of a frame by the packet's first five bits: SILK, hybrid and CELT modes.
OPUS_FRAME_TICKS: Final = (900, 1800, 3600, 5400) * 3 + (900, 1800) * 2 + (225, 450, 900, 1800) * 4


class Splitter(Protocol):
    """Makes units of what one PES packet carried, and counts what it cannot use."""

    def split(self, pts: int, dts: int, data: bytes) -> list[AccessUnit]: ...


class Pictures:
    """One picture in each PES packet, as every muxer that we know writes them."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def split(self, pts: int, dts: int, data: bytes) -> list[AccessUnit]:
        picture = h264.strip_delimiter(data)
        if not picture:
            self._tally.damaged_units += 1
            return []
        return [AccessUnit(Codec.H264, pts, dts, picture, h264.is_keyframe(picture))]


class AdtsFrames:
    """A PES packet may carry many ADTS frames, and only the beginning of the last one."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._cut = b""
        self._cut_pts = 0

    def split(self, pts: int, dts: int, data: bytes) -> list[AccessUnit]:
        units: list[AccessUnit] = []
        own = len(self._cut)  # the PTS is that of the first frame which starts in this PES packet
        base = self._cut_pts if own else pts
        data, self._cut = self._cut + data, b""
        samples, rate, position = 0, ADTS_RATES[0], 0
        while position < len(data):
            if own and position >= own:
                base, samples, own = pts, 0, 0
            now = (base + (samples * CLOCK_HZ + rate // 2) // rate) % WRAP
            header = data[position : position + ADTS_HEADER]
            if len(header) < ADTS_HEADER:
                self._cut, self._cut_pts = data[position:], now
                break
            length = (header[3] & 3) << 11 | header[4] << 3 | header[5] >> 5
            rate_index = header[2] >> 2 & 15
            if not ADTS_SYNC.match(header) or length < ADTS_HEADER or rate_index >= len(ADTS_RATES):
                self._tally.damaged_units += 1
                following = ADTS_SYNC.search(data, position + 1)
                if units or following is None:
                    break
                position = following.start()  # the PES packet began within a frame that nobody saw start
                continue
            if position + length > len(data):
                self._cut, self._cut_pts = data[position:], now
                break
            units.append(AccessUnit(Codec.AAC, now, now, data[position : position + length], keyframe=True))
            rate = ADTS_RATES[rate_index]
            samples += ADTS_SAMPLES * ((header[6] & 3) + 1)
            position += length
        return units


class OpusPackets:
    """A PES packet may carry many Opus packets, each behind its control header."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def split(self, pts: int, dts: int, data: bytes) -> list[AccessUnit]:
        units: list[AccessUnit] = []
        position = 0
        while position < len(data):
            begin, end = _opus_bounds(data, position)
            if not begin < end <= len(data):
                self._tally.damaged_units += 1
                break
            packet = data[begin:end]
            units.append(AccessUnit(Codec.OPUS, pts, pts, packet, keyframe=True))
            pts = (pts + opus_ticks(packet)) % WRAP
            position = end
        return units


SPLITTERS: Final[dict[Codec, Callable[[Tally], Splitter]]] = {
    Codec.H264: Pictures,
    Codec.AAC: AdtsFrames,
    Codec.OPUS: OpusPackets,
}


def opus_ticks(packet: bytes) -> int:
    """How long an Opus packet plays (RFC 6716 §3), in 90 kHz ticks; 0 for one that does not say."""
    if not packet:
        return 0
    frames = (1, 2, 2, packet[1] & 0x3F if len(packet) > 1 else 0)[packet[0] & 3]
    return frames * OPUS_FRAME_TICKS[packet[0] >> 3]


def _opus_bounds(data: bytes, position: int) -> tuple[int, int]:
    """Where the packet behind the control header at `position` begins and ends; (0, 0) without a header."""
    flags = int.from_bytes(data[position : position + 2], "big")
    if flags & 0xFFE0 != 0x7FE0:
        return 0, 0
    position += 2
    size = 0
    while position < len(data):
        byte = data[position]
        size += byte
        position += 1
        if byte != 0xFF:
            break
    position += 2 * (flags >> 4 & 1) + 2 * (flags >> 3 & 1)  # start and end trim
    if flags & 4:
        position += 1 + int.from_bytes(data[position : position + 1], "big")  # control extension
    return position, position + size
