"""One 90 kHz timeline per session, whatever its publishers' clocks do. Pure: the wall time is passed in.

The rule it keeps: what it hands out is unwrapped and only ever goes forward, so that nobody behind it needs
to know that a publisher came back, wrapped or jumped.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from services.common import session_time
from services.common.media.mpegts import CLOCK_HZ, AccessUnit, Codec, unwrap

ORIGIN_TICKS: Final = session_time.ORIGIN_TICKS
FRAME_TICKS: Final = CLOCK_HZ // 30  # the least distance between what was there and a new anchor
LARGEST_JUMP: Final = (
    10 * CLOCK_HZ
)  # ticks; more than a network holds back, less than a restarted clock is off
LARGEST_STEP_BACK: Final = CLOCK_HZ // 2  # of a picture's DTS, which grows as long as its clock is the same
CATCH_UP_S: Final = 1.0  # for so long a source may send what is of before a picture that was shown instead
LARGEST_LEAD: Final = session_time.LARGEST_LEAD_TICKS

VIDEO: Final = frozenset({Codec.H264, Codec.HEVC, Codec.MPEG2})


class Timeline:
    """Maps one source after the other to the session's time. Units are stamped in their order of arrival.

    A source has one offset for its pictures and its sound, so that their distance stays the source's own. Its
    clock is followed, neither hurried nor slowed: the session is off wall time by what the source drifts and
    what its first picture was late. Wall time places the first picture of a source that returns, and evens
    out up to a second of that difference; more shows a source that is not in real time, and is kept.

    Wall time also replaces a clock that jumped: by more than ten seconds, or backwards by more than half a
    second. Only pictures tell, for they are what a session is about; sound that is more than ten seconds off
    is dropped. And it replaces a clock that stood still while viewers were shown something else, unless the
    source catches up at once.

    `now_s` is None where there is no wall time: a file, read as fast as it is worked on. A gap of any length
    is then a gap in the media and is kept; a clock that begins again goes on a frame after what was there.
    """

    def __init__(self) -> None:
        self.dropped = 0  # units that would have gone backwards, and sound without a picture to go by
        self.rebased = 0  # jumps of a source's clock that were replaced
        self._reference: tuple[int, float] | None = None  # a position and the wall time that belongs to it
        self._latest = 0  # the furthest PTS handed out
        self._offset: int | None = None  # from the source's time to ours; None until its first picture
        self._source_dts = 0  # of the source's last picture, unwrapped
        self._video_dts = ORIGIN_TICKS - LARGEST_JUMP - 1  # no first picture is decoded as early
        self._inserted = 0  # PTS of the newest picture that no source sent
        self._behind_s: float | None = None  # since when a source has been before that
        self._audio_pts = ORIGIN_TICKS - 1  # there is no sound before the session's first picture

    def begin_source(self, now_s: float | None) -> None:
        """A publisher came, or came back; the wall time since the last unit places its first picture."""
        if self._reference is not None and now_s is not None:
            self._reference = self._expected(now_s), now_s
        self._offset = None

    def resume(self, latest: int, position: int, now_s: float | None) -> None:
        """Go on after the timeline elsewhere, which came to `latest`; by wall time it is at `position`.

        For a timeline that has stamped nothing. `latest` 0: there was no picture there either.
        """
        assert not self._latest, self._latest
        if latest:
            self._latest = self._video_dts = self._audio_pts = latest
            self._reference = None if now_s is None else (max(latest, position), now_s)

    def insert(self, after: int, now_s: float) -> int:
        """A place by wall time, above `after`, for a picture that no source sent; sources go on behind it."""
        self._behind_s = None
        self._inserted = max(self._expected(now_s), after + FRAME_TICKS)
        self._latest = max(self._latest, self._inserted)
        return self._inserted

    def stamp(self, unit: AccessUnit, now_s: float | None) -> AccessUnit | None:
        """`unit` on the session's time, unwrapped; None for one that has no place on it."""
        video = unit.codec in VIDEO
        dts = unit.dts if self._offset is None else unwrap(self._source_dts, unit.dts)
        pts = unwrap(dts, unit.pts)
        jumped = self._offset is not None and (
            self._jumped(dts + self._offset, dts, video=video, now_s=now_s)
            or (video and self._stays_behind(pts + self._offset, now_s))
        )
        # No reordering is as long as the largest jump: one of the two times is damaged.
        if abs(pts - dts) > LARGEST_JUMP or (not video and (self._offset is None or jumped)):
            self.dropped += 1
            return None
        if self._offset is None or jumped:
            self.rebased += jumped
            self._offset = self._anchor(pts, dts, now_s)
        if video:
            self._source_dts = dts
        pts += self._offset
        dts += self._offset
        if (dts <= self._video_dts) if video else (pts <= self._audio_pts):
            self.dropped += 1
            return None
        if video:
            self._video_dts = dts
        else:
            self._audio_pts = pts
        self._latest = max(self._latest, pts)
        self._refer(now_s)
        return replace(unit, pts=pts, dts=dts)

    def _jumped(self, dts: int, source_dts: int, *, video: bool, now_s: float | None) -> bool:
        """Whether a unit that would be at `dts` shows that its source's clock is another one."""
        if video and source_dts < self._source_dts - LARGEST_STEP_BACK:
            return True
        if video and now_s is None:
            return False
        return abs(dts - self._expected(now_s)) > LARGEST_JUMP

    def _stays_behind(self, pts: int, now_s: float | None) -> bool:
        """Whether pictures, the latest at `pts`, are for too long of before what was shown instead."""
        if now_s is None or pts > self._inserted:
            self._behind_s = None
            return False
        if self._behind_s is None:
            self._behind_s = now_s
        return now_s - self._behind_s > CATCH_UP_S

    def _anchor(self, pts: int, dts: int, now_s: float | None) -> int:
        """The offset that puts a unit where the wall time says, and after all that went before."""
        if not self._latest:
            return ORIGIN_TICKS - pts
        shown = max(self._expected(now_s), self._latest + FRAME_TICKS)
        decoded = self._video_dts + FRAME_TICKS
        return max(shown - pts, decoded - dts)

    def _expected(self, now_s: float | None) -> int:
        """Where the session is by wall time; without one, where it is."""
        if self._reference is None or now_s is None:
            return self._latest
        position, at_s = self._reference
        return position + round((now_s - at_s) * CLOCK_HZ)

    def _refer(self, now_s: float | None) -> None:
        """Keep wall time within `LARGEST_LEAD` of the session, for a source that is not in real time."""
        if now_s is None:
            return
        if self._reference is None:
            self._reference = self._latest, now_s
        lead = self._latest - self._expected(now_s)
        if abs(lead) > LARGEST_LEAD:
            position, at_s = self._reference
            self._reference = position + lead - max(-LARGEST_LEAD, min(LARGEST_LEAD, lead)), at_s
