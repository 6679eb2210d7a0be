"""How often something happened lately. Pure: times come in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

WINDOW_S: Final = 300.0  # what is older counts less and less


@dataclass(slots=True)
class Rate:
    """Events a second, of which the recent ones count most."""

    since_s: float
    _count: float = 0.0
    _at_s: float = 0.0

    def add(self, now_s: float) -> None:
        self._count, self._at_s = self._faded(now_s) + 1, now_s

    def per_s(self, now_s: float) -> float:
        """0 if nothing happened yet."""
        watched_s = WINDOW_S * (1 - math.exp(-max(1.0, now_s - self.since_s) / WINDOW_S))
        return self._faded(now_s) / watched_s

    def _faded(self, now_s: float) -> float:
        return self._count * math.exp(-(now_s - self._at_s) / WINDOW_S)
