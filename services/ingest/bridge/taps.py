"""A session's output as access units, for viewers that are not served MPEG-TS.

Nobody waits for a reader: one that is late loses everything up to the next key frame, counted.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from services.common.frame_drops import FRAME_DROPS
from services.common.media.mpegts import AccessUnit, Codec

CAPACITY_UNITS: Final = 256  # three seconds of pictures and sound
CAPACITY_BYTES: Final = 8 * 2**20


class Tap:
    """One reader. Iterating begins at a key frame and ends with the session."""

    def __init__(self, taps: Taps, *, stills: bool) -> None:
        self.stills: Final = stills
        self._taps = taps
        self._units: deque[AccessUnit] = deque()
        self._bytes = 0
        self._begun = False
        self._skipping = True  # up to a key frame
        self._ended = False
        self._ready = asyncio.Event()

    def __aiter__(self) -> Tap:
        return self

    async def __anext__(self) -> AccessUnit:
        while not self._units:
            if self._ended:
                raise StopAsyncIteration
            self._ready.clear()
            await self._ready.wait()
        unit = self._units.popleft()
        self._bytes -= len(unit.data)
        return unit

    def close(self) -> None:
        """Read no more. Again is harmless."""
        self._taps._forget(self)  # noqa: SLF001 - the two halves of one thing
        self.end()

    def write(self, unit: AccessUnit) -> None:
        begins = unit.codec is Codec.H264 and unit.keyframe
        if self._skipping and not begins:
            if self._begun:
                FRAME_DROPS.labels("tap").inc()
            return
        if len(self._units) >= CAPACITY_UNITS or self._bytes + len(unit.data) > CAPACITY_BYTES:
            FRAME_DROPS.labels("tap").inc(len(self._units))
            self._units.clear()
            self._bytes = 0
            self._skipping = not begins
            if self._skipping:
                FRAME_DROPS.labels("tap").inc()
                self._taps.ask_keyframe()
                return
        self._skipping = False
        self._begun = True
        self._bytes += len(unit.data)
        self._units.append(unit)
        self._ready.set()

    def end(self) -> None:
        self._ended = True
        self._ready.set()


class Taps:
    """All readers of one session's output."""

    def __init__(self, ask_keyframe: Callable[[], None]) -> None:
        self.ask_keyframe = ask_keyframe
        self._open: set[Tap] = set()
        self._ended = False

    def open(self, *, stills: bool) -> Tap:
        """`stills`: also what stands in for the stream's pictures."""
        tap = Tap(self, stills=stills)
        if self._ended:
            tap.end()
        else:
            self._open.add(tap)
        return tap

    def _forget(self, tap: Tap) -> None:
        self._open.discard(tap)

    def write(self, unit: AccessUnit) -> None:
        for tap in self._open:
            tap.write(unit)

    def write_still(self, still: AccessUnit) -> None:
        """A key frame that is none of the stream's; another follows, or one of the stream's."""
        for tap in self._open:
            if tap.stills:
                tap.write(still)

    def end(self) -> None:
        self._ended = True
        for tap in self._open:
            tap.end()
        self._open.clear()
