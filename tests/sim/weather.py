"""How bad the world is just now, and which of its evils were really met."""

from __future__ import annotations

from collections import Counter
from random import Random


class Weather:
    """Set by the nemesis, asked by the network and the broker; `calm` ends all of it."""

    def __init__(self, random: Random) -> None:
        self.met: Counter[str] = Counter()
        self.lost_answers = 0.0  # of NATS: it was done, and nobody says so
        self.lost_requests = 0.0
        self.broken_calls = 0.0
        self.slow_calls = 0.0
        self._lag_s: dict[str, float] = {}
        self._random = random

    def sometimes(self, what: str) -> None:
        """Count that this really happened."""
        self.met[what] += 1

    def calm(self) -> None:
        self.lost_answers = self.lost_requests = self.broken_calls = self.slow_calls = 0.0
        self._lag_s.clear()

    def lag(self, process: str, seconds: float) -> None:
        """What this process watches, it hears so much later."""
        self._lag_s[process] = seconds

    def watch_lag_s(self, process: str) -> float:
        lag_s = self._lag_s.get(process, 0.0)
        if lag_s:
            self.sometimes("a watch lagged")
        return lag_s

    def hop_s(self) -> float:
        """One way over a sound network."""
        return self._random.uniform(0.0002, 0.002)

    def loses_answer(self) -> bool:
        return self._random.random() < self.lost_answers

    def loses_request(self) -> bool:
        return self._random.random() < self.lost_requests

    def breaks_call(self) -> bool:
        return self._random.random() < self.broken_calls

    def slows_call_s(self) -> float:
        """How much longer one way of a call takes."""
        if self._random.random() >= self.slow_calls:
            return 0.0
        self.sometimes("a call was slow")
        return self._random.uniform(0.5, 8.0)

    def draw(self) -> float:
        return self._random.random()
