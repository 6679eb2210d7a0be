"""What was sent, what came back and how long that took. Pure: the time is passed in."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from typing import Final

WINDOW_S: Final = 2.0  # what "now" means for the frame rate
STEPS_PER_MS: Final = 10  # latencies are counted to a tenth of a millisecond, so an hour takes no room


class Tally:
    """Counts pictures by their PTS, which only ever rise on both ways."""

    def __init__(self) -> None:
        self.sent = 0  # pictures of the clip
        self.returned = 0  # of those
        self.latency_ms: float | None = None  # of the newest
        self._under_way: OrderedDict[int, tuple[float, bool]] = OrderedDict()
        self._latencies: Counter[int] = Counter()
        self._recent: deque[float] = deque()
        self._first_s: float | None = None
        self._last_s = 0.0
        self.received = 0  # pictures for the result; a pipeline may make more than it got

    def send(self, pts: int, now_s: float, *, repeated: bool) -> None:
        """A picture leaves; a `repeated` one is not the clip's and does not count."""
        self._under_way[pts] = now_s, repeated
        self.sent += not repeated

    def receive(self, pts: int, now_s: float) -> bool:
        """A picture came; whether it belongs into the result."""
        while self._under_way:
            known, (sent_s, repeated) = next(iter(self._under_way.items()))
            if known > pts:
                break
            del self._under_way[known]
            if known == pts:
                if repeated:
                    return False
                self.returned += 1
                self.latency_ms = (now_s - sent_s) * 1000
                self._latencies[round(self.latency_ms * STEPS_PER_MS)] += 1
        self._first_s = now_s if self._first_s is None else self._first_s
        self._last_s = now_s
        self.received += 1
        self._recent.append(now_s)
        while now_s - self._recent[0] > WINDOW_S:
            self._recent.popleft()
        return True

    @property
    def fps_now(self) -> float:
        return _rate(len(self._recent), self._recent[-1] - self._recent[0]) if self._recent else 0.0

    @property
    def fps(self) -> float:
        """Pictures a second from the first that came back to the last."""
        return _rate(self.received, self._last_s - (self._first_s or 0.0))

    def latency_percentile_ms(self, percent: int) -> float | None:
        """The latency that `percent` of the pictures stayed within; None if none came back."""
        wanted = self.returned * percent / 100
        seen = 0
        for step, count in sorted(self._latencies.items()):
            seen += count
            if seen >= wanted:
                return step / STEPS_PER_MS
        return None


def _rate(count: int, within_s: float) -> float:
    return (count - 1) / within_s if count > 1 and within_s > 0 else 0.0
