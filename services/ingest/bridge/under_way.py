"""The pictures of one session that are at its runner: when each went, and how long they usually take. Pure.

The rule it keeps: a picture that came back answers for all that are shown before it; those were dropped.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque
from typing import Final, NamedTuple

CAPACITY: Final = 1024  # pictures whose transit can be measured: 34 s at 30 fps; of more, the oldest are not
SMOOTHING: Final = 8  # pictures
PACE: Final = 16  # pictures that came back; a pipeline that takes every third has lost nothing between two


class Departure(NamedTuple):
    """When a picture was read from the publisher and when it was sent on, in seconds."""

    pts: int
    arrived_s: float
    sent_s: float


class UnderWay:
    """Pictures in the order in which they are shown, whatever the order in which they were sent."""

    def __init__(self) -> None:
        self.transit_s = 0.0  # smoothed, from sent on to back
        self._departures: list[Departure] = []
        self._answered: deque[int] = deque(
            (1,), maxlen=PACE
        )  # pictures for each that came back, itself included

    def __len__(self) -> int:
        return len(self._departures)

    @property
    def next_pts(self) -> int | None:
        """The earliest that may still come back; None with none under way."""
        return self._departures[0].pts if self._departures else None

    def lost_before(self, pts: int) -> int:
        """How many would have come back, at the pace of late, between the newest that did and `pts`."""
        between = bisect_left(self._departures, pts, key=lambda departure: departure.pts)
        return between // max(self._answered)

    def went(self, departure: Departure) -> None:
        insort(self._departures, departure)
        if len(self._departures) > CAPACITY:
            del self._departures[0]

    def returned(self, pts: int, now_s: float) -> Departure | None:
        """When the picture that came back went; None for one that nobody sent."""
        place = bisect_right(self._departures, pts, key=lambda departure: departure.pts)
        last = self._departures[place - 1] if place else None
        self._answered.append(max(place, 1))
        del self._departures[:place]
        if last is None or last.pts != pts:
            return None
        transit_s = now_s - last.sent_s
        self.transit_s += (transit_s - self.transit_s) / (SMOOTHING if self.transit_s else 1)
        return last
