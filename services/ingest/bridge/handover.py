"""Where one runner's output gives way to the next one's. Pure: units go in, what viewers get comes out.

The rule it keeps: pictures go out in the order of their time and none twice; below the seam they are the old
runner's, from it on the new one's, whose first is a key frame. What is held is bounded in time and number.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from services.common.media.mpegts import CLOCK_HZ, AccessUnit, Codec

MARGIN: Final = CLOCK_HZ // 10  # ahead of the newest input: the new runner hears of it in time
RETRY_S: Final = 3.0  # after a hold that was in vain: viewers have paid for it with a short freeze
PATIENCE_S: Final = 1.0  # with a live output, the least; a runner that is slow anyway has more
LONGEST_GAP: Final = 12 * CLOCK_HZ  # between two key frames: what the ring of the input keeps
AT_ONCE: Final = 0  # a key frame at whichever picture comes next
SOUNDS: Final = 512  # of the new runner before its first picture is shown: ten seconds


@dataclass(frozen=True, slots=True)
class Room:
    """How much of each runner's output may be held, and for how long at least."""

    pictures: int
    octets: int
    patience_s: float = PATIENCE_S


LIVE: Final = Room(256, 8 * 2**20)
# No picture of a file may be lost, a runner has no pace, and nobody watches a clock: whoever begins a second
# later is many seconds of the file behind for ever. Further behind than what `in` keeps is nobody.
COMPLETE: Final = Room(4096, 64 * 2**20, patience_s=60.0)


class Shown(NamedTuple):
    """A unit for the viewers, and whether it is the new runner's."""

    unit: AccessUnit
    new: bool


class Handover:
    """From the current output, whose newest delivered picture is at `delivered`, to a candidate's.

    Every method returns what is to be shown now. `ask` is the time from which on the candidate's next picture
    is to be a key frame, once it is wanted; whoever sends the request takes it.
    """

    def __init__(self, *, delivered: int, flows: bool, room: Room = LIVE) -> None:
        self.wished = False
        self.done = False
        self.shows = False  # the candidate returned a key frame
        self.seam: int | None = None  # the first picture of the candidate that viewers get
        self.ask: int | None = None
        self.held = 0  # pictures of the old output that had to wait for the seam
        self.patience_s = room.patience_s
        self._room = room
        self._flows = flows
        self._delivered = delivered
        self._heard = 0  # the newest sound that went out
        self._hold_from: int | None = None
        self._old = _Held()
        self._new = _Held()  # begins with a key frame
        self._newest = 0  # of the candidate's pictures
        self._keys: deque[int] = deque(maxlen=2)  # its newest key frames
        self._in_vain = False  # it did not do as it was asked
        self._sounds: deque[AccessUnit] = deque(maxlen=SOUNDS)  # the candidate's
        self._since_s = 0.0  # when what is waited for began to be waited for
        self._retry_at_s = 0.0

    @property
    def holds(self) -> bool:
        """Whether pictures of the old output wait for the seam: it is not to blame that none is shown."""
        return bool(self._old.units)

    def promote(self, now_s: float, in_pts: int) -> list[Shown]:
        """Wish for the candidate; `in_pts` is the newest picture of the input."""
        self.wished = True
        return self._seek(now_s, in_pts)

    def old(self, unit: AccessUnit, now_s: float) -> list[Shown]:
        """A unit of the output that viewers get now."""
        if unit.codec is not Codec.H264:
            self._heard = max(self._heard, unit.pts)
            return [Shown(unit, new=False)]
        if self.seam is not None and unit.pts >= self.seam:
            return self._switch()  # it has given all that it has below
        if self._hold_from is None or unit.pts < self._hold_from:
            return self._pass([unit])
        if unit.pts <= self._old.newest:
            return []
        if not self._old.units:
            self._since_s = now_s
        self._old.put(unit)
        self.held += 1
        return self._let_go(now_s) if self._old.exceeds(self._room) else []

    def new(self, unit: AccessUnit, now_s: float, in_pts: int) -> list[Shown]:
        """A unit of the candidate."""
        if unit.codec is not Codec.H264:
            self._sounds.append(unit)
            return []
        self._newest = max(self._newest, unit.pts)
        self.shows |= unit.keyframe
        if unit.keyframe:
            self._keep_key(unit.pts)
        begun = self._new.units
        if unit.keyframe and (not begun or begun[0].pts <= self._delivered):
            self._new.clear()
            self._new.put(unit)
        elif begun and unit.pts > self._new.newest:
            self._new.put(unit)
        if self._new.exceeds(self._room):
            if self.seam is not None:
                return self._switch()
            self._new.clear()  # a later key frame does as well
        return self._seek(now_s, in_pts)

    def old_flows(self, flows: bool, now_s: float, in_pts: int) -> list[Shown]:
        """Whether anything is still to be expected of the old output."""
        self._flows = flows
        if flows:
            return []
        if self.seam is not None:
            return self._switch()
        return self._release() + self._seek(now_s, in_pts)

    def tick(self, now_s: float, in_pts: int) -> list[Shown]:
        """Time has passed: nothing is waited for longer than `patience_s`."""
        if self.done or not self.wished:
            return []
        overdue = now_s - self._since_s > self.patience_s
        if self.seam is not None:
            return self._switch() if overdue else []
        if self._old.units and overdue:
            return self._let_go(now_s)
        return self._seek(now_s, in_pts)

    def pass_over(self, pts: int) -> None:
        """Viewers got something else, at `pts`: what is before it comes too late."""
        self._delivered = max(self._delivered, pts)

    def idle(self) -> list[Shown]:
        """No input comes, and so no picture of either: the candidate has the output from here on."""
        return [*self._release(), *self._switch()] if self.wished and not self.done else []

    def give_up(self) -> list[Shown]:
        """There is no candidate any more."""
        self.done = True
        return self._release()

    def _seek(self, now_s: float, in_pts: int) -> list[Shown]:
        """Find the seam: a key frame of the candidate above everything that was delivered."""
        if not self.wished or self.done or self.seam is not None:
            return []
        first = self._new.units[0] if self._new.units else None
        if first is not None and first.pts > self._delivered:
            self.seam, self._since_s = first.pts, now_s
            self._hold_from = None  # what the old output still has below it is no longer to wait
            old_is_there = self._old.newest >= self.seam
            below = [unit for unit in self._old.units if unit.pts < self.seam]
            self._old.clear()
            shown = self._pass(below)
            return shown + self._switch() if old_is_there or not self._flows else shown
        if not self._flows:
            self.ask = AT_ONCE if self.shows else None
        elif self._may_hold(now_s):
            self._hold_from = self.ask = self._meeting(in_pts + MARGIN)
        return []

    def _keep_key(self, pts: int) -> None:
        if self._keys and not 0 < pts - self._keys[-1] <= LONGEST_GAP:
            self._keys.clear()  # its source paused
        self._keys.append(pts)

    def _meeting(self, soonest: int) -> int:
        """From when on the old output is to wait: the key frame that is asked for.

        A candidate that does not do as it is asked is met where it makes one by itself: as far from its last
        as that was from the one before, or a little sooner.
        """
        if not self._in_vain:
            return soonest
        before, last = self._keys
        gap = last - before
        return last + gap * -((last - soonest - MARGIN) // gap) - MARGIN

    def _may_hold(self, now_s: float) -> bool:
        """Whether a key frame that is asked for now will be here soon: the candidate is, and keeps up."""
        behind = self._delivered - self._newest
        return (
            self._hold_from is None
            and self.shows
            and now_s >= self._retry_at_s
            and (not self._in_vain or len(self._keys) == self._keys.maxlen)
            and behind < self.patience_s * CLOCK_HZ
        )

    def _let_go(self, now_s: float) -> list[Shown]:
        """The key frame that was asked for did not come in time."""
        self._in_vain = True
        self._retry_at_s = now_s + RETRY_S
        return self._release()

    def _release(self) -> list[Shown]:
        self._hold_from = None
        held = list(self._old.units)
        self._old.clear()
        return self._pass(held)

    def _switch(self) -> list[Shown]:
        self.done = True
        pictures = [] if self.seam is None else self._new.units
        sounds = [unit for unit in self._sounds if unit.pts > self._heard]
        units = sorted([*sounds, *pictures], key=lambda unit: unit.pts)
        self._new.clear()
        self._sounds.clear()
        return [Shown(unit, new=True) for unit in units]

    def _pass(self, units: Iterable[AccessUnit]) -> list[Shown]:
        shown = []
        for unit in units:
            if unit.pts > self._delivered:
                self._delivered = unit.pts
                shown.append(Shown(unit, new=False))
        return shown


class _Held:
    """Pictures in the order of their time."""

    def __init__(self) -> None:
        self.units: deque[AccessUnit] = deque()
        self.newest = 0
        self._octets = 0

    def put(self, unit: AccessUnit) -> None:
        self.units.append(unit)
        self.newest = unit.pts
        self._octets += len(unit.data)

    def exceeds(self, room: Room) -> bool:
        return len(self.units) > room.pictures or self._octets > room.octets

    def clear(self) -> None:
        self.units.clear()
        self.newest = self._octets = 0
