"""Cuts a session's media into segments: at a key frame when one is due, and not too late without one."""

from __future__ import annotations

from typing import Final

from services.common.media.mpegts import CLOCK_HZ, AccessUnit, Codec, Muxer
from services.common.trickle.channel import Channel, SegmentWriter

CUT_TICKS: Final = CLOCK_HZ  # a segment lasts at least so long, and then to the next key frame
FORCED_CUT_TICKS: Final = 4 * CLOCK_HZ  # or so long, key frame or not
SEGMENT_BYTES: Final = 4 * 2**20  # cut below the channel's own limit


class SegmentCutter:
    """Muxes units into a channel and begins a new segment where the rule says.

    Each begins with PAT and PMT and, where the cut is at a key frame, with SPS, PPS and IDR: it can be read
    alone. Counters and times run on, so that all of them are one stream as well.
    """

    def __init__(self, channel: Channel, muxer: Muxer) -> None:
        self._channel = channel
        self.muxer = muxer
        self._writer: SegmentWriter | None = None
        self._cut_at = 0
        self._bytes = 0

    def write(self, unit: AccessUnit) -> None:
        """Write one unit. Video decides on cuts; audio that no segment has announced yet is dropped."""
        video = unit.codec is Codec.H264
        if self._writer is None or self._writer.ended or (video and self._due(unit)):
            if not video:
                return
            self._begin(unit)
        elif not video and unit.codec is not self.muxer.audio:
            return
        assert self._writer is not None
        data = self.muxer.write(unit)
        self._bytes += len(data)
        self._writer.write(data)

    def _due(self, unit: AccessUnit) -> bool:
        age = unit.dts - self._cut_at
        full = self._bytes + len(unit.data) >= SEGMENT_BYTES
        return (unit.keyframe and age >= CUT_TICKS) or age >= FORCED_CUT_TICKS or full

    def _begin(self, unit: AccessUnit) -> None:
        if self._writer is not None:
            self._writer.end()
        self._writer = self._channel.begin_segment(random_access=unit.keyframe)
        self._cut_at = unit.dts
        tables = self.muxer.begin_segment()
        self._bytes = len(tables)
        self._writer.write(tables)

    def end(self) -> None:
        if self._writer is not None:
            self._writer.end()
