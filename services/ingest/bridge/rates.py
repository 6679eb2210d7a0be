"""How many pictures a second come in and go out. Pure: time is passed in."""

from __future__ import annotations

from collections import deque
from typing import Final


class Rates:
    """Pictures a second, over the last two seconds."""

    WINDOW_S: Final = 2.0

    def __init__(self) -> None:
        self._in: deque[float] = deque(maxlen=512)
        self._out: deque[float] = deque(maxlen=512)

    def count_in(self, now_s: float) -> None:
        self._in.append(now_s)

    def count_out(self, now_s: float) -> None:
        self._out.append(now_s)

    def now(self, now_s: float) -> tuple[float, float]:
        return self._rate(self._in, now_s), self._rate(self._out, now_s)

    def _rate(self, times: deque[float], now_s: float) -> float:
        recent = [moment for moment in times if now_s - moment <= self.WINDOW_S]
        if len(recent) < 2:
            return 0.0
        return (len(recent) - 1) / max(recent[-1] - recent[0], 1e-3)
