"""How many messages a second are taken from somebody who may send any number. Pure."""

from __future__ import annotations


class Allowance:
    """So many messages a second, and as many at once; the time is passed in."""

    def __init__(self, per_second: float, now_s: float) -> None:
        self._per_second = per_second
        self._left = per_second
        self._at_s = now_s

    def take(self, now_s: float) -> bool:
        self._left = min(self._per_second, self._left + (now_s - self._at_s) * self._per_second)
        self._at_s = now_s
        if self._left < 1:
            return False
        self._left -= 1
        return True
