"""Units between the thread that reads an input and the connection that sends them.

The rule it keeps: an input that can wait waits, one that cannot loses everything up to the next key frame.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from services.common.media.mpegts import AccessUnit, Codec

AHEAD: Final = 64  # units of an input that waits: two seconds or less
LATE: Final = 256  # units of an input that does not: three seconds, after which catching up is no use


class Outgoing:
    """A bounded mailbox with one writer and one reader."""

    def __init__(self, *, waits: bool) -> None:
        self.dropped = 0  # units that were too late
        self._waits = waits
        self._units: deque[AccessUnit] = deque()
        self._skipping = False
        self._ended = False
        self._changed = asyncio.Event()

    async def put(self, unit: AccessUnit) -> bool:
        """Take a unit; False says that a key frame is wanted, for units were lost."""
        if self._waits:
            while len(self._units) >= AHEAD and not self._ended:
                await self._change()
        else:
            begins = unit.codec is Codec.H264 and unit.keyframe
            if len(self._units) >= LATE:
                self.dropped += len(self._units)
                self._units.clear()
                self._skipping = True
            if self._skipping and not begins:
                self.dropped += 1
                return False
            self._skipping = False
        self._units.append(unit)
        self._tell()
        return True

    async def get(self) -> AccessUnit | None:
        """The next unit; None when there is none any more."""
        while not self._units:
            if self._ended:
                return None
            await self._change()
        unit = self._units.popleft()
        self._tell()
        return unit

    def end(self) -> None:
        """The input has ended; what is here is still sent."""
        self._ended = True
        self._tell()

    def stop(self) -> None:
        """Nothing more is to be sent."""
        self._units.clear()
        self.end()

    @property
    def ended(self) -> bool:
        return self._ended

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _tell(self) -> None:
        self._changed.set()
