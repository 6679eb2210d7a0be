"""Where a session that goes on begins to infer: what is far behind the newest that is there is only decoded.

The rule it keeps: how far is told in media time. The newest is known when input that waited at the bridge has
come, which it does faster than it was made; nobody waits for longer than `LONGEST_S` to find that out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from services.common.media.mpegts import CLOCK_HZ

BEHIND: Final = CLOCK_HZ // 5  # media time
IDLE_S: Final = 0.025  # nothing came for so long: what waited is here
STEP_S: Final = 0.008  # nor does what waited come in steps like this, as long as half of their media time
LONGEST_S: Final = 0.5


class CatchingUp:
    """One task calls `arrived`, another asks `only_to_decode` of each picture until that says no."""

    def __init__(self, full: Callable[[], bool]) -> None:
        """`full`: whether the task of `arrived` waits for the other one, and not for input."""
        self._full = full
        self._now_s = asyncio.get_running_loop().time
        self._newest_pts = 0
        self._arrived_s: float | None = None
        self._waited_s = 0.0
        self._complete = False
        self._more = asyncio.Event()

    def arrived(self, pts: int) -> None:
        now_s = self._now_s()
        if self._arrived_s is not None:
            step_s = now_s - self._arrived_s
            self._complete |= step_s >= STEP_S and 2 * step_s * CLOCK_HZ >= pts - self._newest_pts > 0
        self._arrived_s = now_s
        self._newest_pts = max(pts, self._newest_pts)
        self._more.set()

    async def only_to_decode(self, pts: int) -> bool:
        """Whether a picture at `pts`, which has arrived, is too old to show; waits until that is known."""
        while self._newest_pts - pts <= BEHIND and not self._complete:
            began_s = self._now_s()
            idle_at_s = max(self._arrived_s or 0.0, began_s if self._full() else 0.0) + IDLE_S
            if began_s >= idle_at_s or self._waited_s >= LONGEST_S:
                self._complete = True
                break
            self._more.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(idle_at_s - began_s):
                    await self._more.wait()
            self._waited_s += self._now_s() - began_s
        return self._newest_pts - pts > BEHIND
