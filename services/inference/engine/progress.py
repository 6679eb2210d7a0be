"""How far a pipeline has loaded, told at most five times a second, its end always.

The rule it keeps: an author calls it as often as they like, from any thread; what they say is cut to size.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

EVERY_S: Final = 0.2
LONGEST_STAGE: Final = 60
DONE: Final = 100


@dataclass(frozen=True, slots=True)
class Loading:
    """`why`: start, reload, warm or restart. `beside`: frames go on meanwhile. 100 percent: it is over."""

    why: str
    stage: str
    percent: int
    beside: bool


class Progress:
    """Of one load. `tell` is who listens; whoever listens later is told what was said last."""

    def __init__(
        self,
        why: str,
        tell: Callable[[Loading], None],
        *,
        beside: bool = False,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._why = why
        self._beside = beside
        self._tell = tell
        self._now_s = now_s
        self._lock = threading.Lock()
        self._latest = Loading(why, "load", 0, beside)
        self._told_s = now_s()
        tell(self._latest)

    def __call__(self, stage: str, fraction: float) -> None:
        percent = int(100 * fraction) if 0 <= fraction < 1 else (DONE - 1 if fraction >= 1 else 0)
        with self._lock:
            if self._latest.percent == DONE:
                return
            self._latest = Loading(self._why, str(stage)[:LONGEST_STAGE], percent, self._beside)
            if self._now_s() - self._told_s >= EVERY_S:
                self._say()

    def done(self) -> None:
        """It has loaded, or failed to."""
        with self._lock:
            self._latest = Loading(self._why, self._latest.stage, DONE, self._beside)
            self._say()

    def listen(self, why: str, tell: Callable[[Loading], None]) -> None:
        """Tell somebody else from now on, unless it is over."""
        with self._lock:
            self._why, self._tell = why, tell
            if self._latest.percent < DONE:
                self._latest = Loading(why, self._latest.stage, self._latest.percent, self._beside)
                self._say()

    def _say(self) -> None:
        self._told_s = self._now_s()
        self._tell(self._latest)
