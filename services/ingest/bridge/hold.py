"""Holds sound back until its picture has been delivered. Pure: the time is passed in.

The rule it keeps: no time stamp is touched; sound goes out in order, no later than the picture of its time,
and at most `AHEAD` before a picture that is still to come. Only while pictures stall does it go on alone.

Between two pictures it goes at their pace: the wall time of the delivered ones, smoothed, is the clock, so
that a slow pipeline's viewers do not get their sound in lumps. After a stall nothing is said twice, and sound
waits until pictures have caught up with it: it is in step again with the first one that it is not ahead of.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from services.common.media.mpegts import CLOCK_HZ, AccessUnit

AHEAD: Final = CLOCK_HZ * 40 // 1000  # ITU-R BT.1359: sound that is 45 ms early is noticed
STALLED_S: Final = 0.5  # for a picture that is under way and so late, sound does not wait longer than this
IDLE_S: Final = 0.1  # and with none under way there may be none to come: a still screen
PACE: Final = 4  # gaps that tell when the next picture may come
UNITS: Final = 1500  # 30 s of 20 ms
BYTES: Final = 4 << 20  # 30 s at a megabit
SMOOTHING: Final = CLOCK_HZ // 4  # longer than pictures jitter, shorter than anybody waits for them


class Hold:
    """Sound on its way to one session's viewers. With `live` false there is no clock but the pictures."""

    def __init__(self, *, live: bool) -> None:
        self.early = 0  # units that went before their picture was due: it stalled, or there was no room
        self.dropped = 0  # units without a place: from before the first picture, or not newer than the last
        self._live = live
        self._held: deque[tuple[AccessUnit, float]] = deque()  # with when each came
        self._bytes = 0
        self._latest: int | None = None  # PTS of the newest sound taken
        self._shown: int | None = None  # PTS of the newest picture delivered
        self._offset = 0.0  # ticks from a picture's PTS to the wall time of its delivery, smoothed
        self._gaps: deque[int] = deque((0,), maxlen=PACE)  # between the latest pictures

    def __len__(self) -> int:
        return len(self._held)

    def push(self, unit: AccessUnit, now_s: float) -> None:
        """Take one unit of sound."""
        if self._latest is not None and unit.pts <= self._latest:
            self.dropped += 1
            return
        self._latest = unit.pts
        self._held.append((unit, now_s))
        self._bytes += len(unit.data)
        while self._shown is None and self._full:
            self._take()
            self.dropped += 1

    def deliver(self, pts: int, now_s: float) -> list[AccessUnit]:
        """A picture goes to the viewers: the sound that goes before it.

        The first is where they begin, so nothing goes before that; what is older is dropped.
        """
        offset = now_s * CLOCK_HZ - pts
        if self._shown is None:
            self._shown, self._offset = pts, offset
            self.dropped += len(self._take_until(pts - 1))
            self._latest = pts - 1 if self._latest is None else max(self._latest, pts - 1)
            return []
        gap = pts - self._shown
        self._shown = pts
        self._gaps.append(gap)
        self._offset += (offset - self._offset) * min(gap / SMOOTHING, 1.0)
        return self._take_until(pts)

    def release(self, now_s: float, next_pts: int | None) -> list[AccessUnit]:
        """What goes out now; `next_pts` is of the earliest picture under way, None without one."""
        if self._shown is None or not self._held:
            return []
        clock = now_s * CLOCK_HZ - self._offset
        units = self._take_until(self._in_step(clock, next_pts, self._shown))
        patience_s = IDLE_S if next_pts is None else STALLED_S
        while self._held and (self._full or (self._live and self._overdue(now_s, clock, patience_s))):
            units.append(self._take())
            self.early += 1
        return units

    def rest(self) -> list[AccessUnit]:
        """All that is held: no picture will come any more."""
        units = [] if self._shown is None else [unit for unit, _ in self._held]
        self.clear()
        return units

    def clear(self) -> None:
        self._held.clear()
        self._bytes = 0

    def _in_step(self, clock: float, next_pts: int | None, shown: int) -> float:
        """Up to which PTS sound may go without being ahead of a picture."""
        if not self._live:
            return shown
        coming = shown + max(3 * min(self._gaps) - 2 * max(self._gaps), 0)
        if next_pts is not None:
            coming = max(coming, next_pts)
        return max(shown, min(clock, coming + AHEAD))

    def _overdue(self, now_s: float, clock: float, patience_s: float) -> bool:
        """Whether the earliest sound has waited long enough: for its time, and since it is here.

        What a publisher sends in one burst after a pause is late by the clock, and its pictures are near.
        """
        unit, came_s = self._held[0]
        return clock - unit.pts >= patience_s * CLOCK_HZ and now_s - came_s >= patience_s

    @property
    def _full(self) -> bool:
        return len(self._held) > UNITS or self._bytes > BYTES

    def _take_until(self, pts: float) -> list[AccessUnit]:
        units = []
        while self._held and self._held[0][0].pts <= pts:
            units.append(self._take())
        return units

    def _take(self) -> AccessUnit:
        unit, _ = self._held.popleft()
        self._bytes -= len(unit.data)
        return unit
