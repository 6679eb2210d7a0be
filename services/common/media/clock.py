"""One 90 kHz timeline per session, whatever its publishers' clocks do. Pure: the wall time is passed in.

The rule it keeps: what it hands out is unwrapped and only ever goes forward, so that nobody behind it needs
to know that a publisher came back, wrapped or jumped.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from services.common.media.mpegts import CLOCK_HZ, AccessUnit, Codec, unwrap

ORIGIN_TICKS: Final = (
    90_000  # the first picture of a session; a second of room for DTS and PCR, which come before it
)
FRAME_TICKS: Final = CLOCK_HZ // 30  # the least distance between what was there and a new anchor
LARGEST_JUMP: Final = (
    10 * CLOCK_HZ
)  # ticks; more than a network holds back, less than a restarted clock is off

VIDEO: Final = frozenset({Codec.H264, Codec.HEVC, Codec.MPEG2})


class Timeline:
    """Maps one source after the other to the session's time. Units are stamped in their order of arrival."""

    def __init__(self) -> None:
        self.dropped = 0  # units that would have gone backwards, and audio before its source's first picture
        self.rebased = 0  # jumps of a source's clock that wall time replaced
        self._reference: tuple[int, float] | None = None  # a position and the wall time that belongs to it
        self._latest = 0  # the furthest PTS handed out
        self._offset: int | None = None  # from the source's time to ours; None until its first picture
        self._source_dts: int | None = None  # the source's last, unwrapped
        self._video_dts = ORIGIN_TICKS - LARGEST_JUMP - 1  # no first picture is decoded as early
        self._audio_pts = ORIGIN_TICKS - 1  # there is no sound before the session's first picture

    def begin_source(self, now_s: float) -> None:
        """A publisher came, or came back; the wall time since the last unit places its first picture."""
        if self._reference is not None:
            self._reference = self._expected(now_s), now_s
        self._offset = None
        self._source_dts = None

    def stamp(self, unit: AccessUnit, now_s: float) -> AccessUnit | None:
        """`unit` on the session's time, unwrapped; None for one that has no place on it."""
        dts = unit.dts if self._source_dts is None else unwrap(self._source_dts, unit.dts)
        pts = unwrap(dts, unit.pts)
        if abs(pts - dts) > LARGEST_JUMP:
            self.dropped += 1  # no reordering is that long: one of the two is damaged
            return None
        self._source_dts = dts
        if self._offset is None:
            if unit.codec not in VIDEO:
                self.dropped += 1
                return None
            self._offset = self._anchor(pts, dts, now_s)
        elif abs(dts + self._offset - self._expected(now_s)) > LARGEST_JUMP:
            self.rebased += 1
            self._offset = self._anchor(pts, dts, now_s)
        pts += self._offset
        dts += self._offset
        if unit.codec in VIDEO:
            if dts <= self._video_dts:
                self.dropped += 1
                return None
            self._video_dts = dts
        else:
            if pts <= self._audio_pts:
                self.dropped += 1
                return None
            self._audio_pts = pts
        self._latest = max(self._latest, pts)
        self._reference = self._latest, now_s
        return replace(unit, pts=pts, dts=dts)

    def _anchor(self, pts: int, dts: int, now_s: float) -> int:
        """The offset that puts a unit where the wall time says, and after all that went before."""
        if self._reference is None:
            return ORIGIN_TICKS - pts
        shown = max(self._expected(now_s), self._latest + FRAME_TICKS)
        decoded = self._video_dts + FRAME_TICKS
        return max(shown - pts, decoded - dts)

    def _expected(self, now_s: float) -> int:
        assert self._reference is not None
        position, heard_s = self._reference
        return position + round((now_s - heard_s) * CLOCK_HZ)
