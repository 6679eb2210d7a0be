"""How long a session's bridge has been out of reach. Pure: the clock is the caller's.

The rule it keeps: failures make an outage only when they follow one another. A stream that is paused asks
nothing of its bridge, so its pause lies between two failures and is part of none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

IN_A_ROW_S: Final = 60.0  # trickle's clients tell of one at least every half minute


class Outage:
    """Of one direction; it is `lost` after so long."""

    def __init__(self, lost_after_s: float, now_s: Callable[[], float]) -> None:
        self._lost_after_s = lost_after_s
        self._now_s = now_s
        self._since_s = 0.0
        self._newest_s: float | None = None

    def failed(self) -> None:
        now_s = self._now_s()
        if self._newest_s is None or now_s - self._newest_s > IN_A_ROW_S:
            self._since_s = now_s
        self._newest_s = now_s

    def worked(self) -> None:
        self._newest_s = None

    @property
    def lost(self) -> bool:
        return self._newest_s is not None and self._newest_s - self._since_s >= self._lost_after_s
