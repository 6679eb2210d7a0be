"""The pictures of one session on their way out: their size, their key frames and their bit rate.

The rule it keeps: key frames are at most `KEYFRAME_EVERY` apart, whatever the pace, and what else makes one
is a new size or somebody who asks. The bit rate is of time: at twice the pace each picture gets half.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import Final

from services.common.media.codec import Rgb, bit_rate_for
from services.common.media.hardware import Equipment, SteadyEncoder
from services.common.media.mpegts import CLOCK_HZ, AccessUnit

KEYFRAME_EVERY: Final = 2 * CLOCK_HZ  # HLS cuts there, and no viewer that joins waits longer
JITTER: Final = 0.1  # of the time to the next picture, by which it may come earlier than expected

NOMINAL_FPS: Final = 30.0  # until the first pictures tell
SLOWEST_FPS: Final = 0.5
FASTEST_FPS: Final = 120.0
STEPS: Final = 16  # between pictures, of which the pace is the mean
FIRST_STEPS: Final = 4  # fewer say nothing yet
LONGEST_STEP: Final = round(CLOCK_HZ / SLOWEST_FPS)  # longer ones are a pause
SAME_PACE: Final = 1.1  # a factor that is jitter

# What receivers can take is not what a picture deserves: a fifth of a bit per pixel costs every viewer twice
# as much as our own tenth, and what is above that nobody sees.
GENEROUS: Final = 2.0
# How far the running encoder may be from what it was opened with. Above, it cannot follow; below, its buffer
# allows for key frames that a slow connection chokes on. The next key frame then comes from a new one.
FAR: Final = (0.75, 1.05)
SOFTWARE: Final = Equipment()


@dataclass(frozen=True, slots=True)
class BitRates:
    """What a runner's settings allow, bits per second."""

    lowest: int
    highest: int

    def clamped(self, bit_rate: int) -> int:
        return min(max(bit_rate, self.lowest), self.highest)


class Pace:
    """Pictures per second of media time, as the last few tell; a pause says nothing."""

    def __init__(self) -> None:
        self.fps = NOMINAL_FPS
        self._times: deque[int] = deque(maxlen=STEPS + 1)

    def count(self, pts: int) -> None:
        if self._times and not 0 < pts - self._times[-1] <= LONGEST_STEP:
            self._times.clear()
        self._times.append(pts)
        steps = len(self._times) - 1
        if steps >= FIRST_STEPS:
            fps = CLOCK_HZ * steps / (pts - self._times[0])
            self.fps = min(max(fps, SLOWEST_FPS), FASTEST_FPS)


class PictureEncoder:
    """One thread encodes; `ask_keyframe` and `ask_bit_rate` are for any."""

    def __init__(self, allowed: BitRates, equipment: Equipment = SOFTWARE) -> None:
        self._allowed = allowed
        self._equipment = equipment
        self._pace = Pace()
        self._encoder: SteadyEncoder | None = None
        self._size = (0, 0)
        self._told: tuple[int | None, float] = (None, 0.0)  # what was asked for, and the pace, last time
        self._far = False
        self._keyframe_pts = 0
        self._keyframe_asked = threading.Event()
        self._keyframe_from: int | None = None  # the first picture from then on is to be one
        self._asked: int | None = None  # bits per second

    def ask_keyframe(self, at_pts: int | None = None) -> None:
        """At once, or the first picture at `at_pts` or later; the newest such wish holds."""
        if at_pts is None:
            self._keyframe_asked.set()
        else:
            self._keyframe_from = at_pts

    def ask_bit_rate(self, bit_rate: int | None) -> None:
        """None: what is right for the pictures."""
        self._asked = bit_rate

    def encode(self, rgb: Rgb, pts: int) -> list[AccessUnit]:
        """rgb: uint8 (H, W, 3), H and W even."""
        height, width = rgb.shape[:2]
        self._pace.count(pts)
        resized = self._size != (height, width)
        keyframe = resized or self._keyframe_due(pts)
        asked, fps = self._asked, self._pace.fps
        if self._encoder is None or resized or (keyframe and self._far):
            bit_rate = self._bit_rate(asked, width, height)
            self._equipment = self._equipment.after(self._encoder)
            self._encoder = self._equipment.encoder(width, height, bit_rate, fps=fps)
            self._size, self._told, self._far = (height, width), (asked, fps), False
        elif asked != self._told[0] or not fps / SAME_PACE < self._told[1] < fps * SAME_PACE:
            lowest, highest = FAR
            away = self._encoder.aim(self._bit_rate(asked, width, height), fps=fps)
            self._told, self._far = (asked, fps), not lowest <= away <= highest
        if keyframe:
            self._keyframe_asked.clear()
        units = self._encoder.encode(rgb, pts, keyframe=keyframe)
        if keyframe or any(unit.keyframe for unit in units):  # some that a device makes nobody asked for
            self._keyframe_pts = pts
        return units

    def _keyframe_due(self, pts: int) -> bool:
        """Whether the next picture may be too late; on another clock, at once."""
        until_next = (1 - JITTER) * CLOCK_HZ / self._pace.fps
        elapsed = pts - self._keyframe_pts
        wanted_from = self._keyframe_from
        if wanted_from is not None and self._keyframe_pts < wanted_from <= pts:
            return True
        return elapsed < 0 or elapsed + until_next > KEYFRAME_EVERY or self._keyframe_asked.is_set()

    def _bit_rate(self, asked: int | None, width: int, height: int) -> int:
        own = bit_rate_for(width, height, self._pace.fps)
        return self._allowed.clamped(own if asked is None else min(asked, round(GENEROUS * own)))
