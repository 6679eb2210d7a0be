"""Sound that goes round a pipeline which does not process it, for those who expect the output to have it.

The rule it keeps: packets are copied, never decoded, and each goes out with the first picture that is not
earlier. What waits is bounded: a pipeline that makes no pictures loses the oldest sound, counted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from services.inference.intake import SOUNDS
from services.inference.packets import Sound


class Bypass:
    """One stream's."""

    def __init__(self) -> None:
        self.dropped = 0
        self._waiting: deque[Sound] = deque()

    def put(self, sound: Sound) -> None:
        if len(self._waiting) >= SOUNDS:
            self._waiting.popleft()
            self.dropped += 1
        self._waiting.append(sound)

    def until(self, pts: int) -> Iterator[Sound]:
        """Take what is not later than a picture at `pts`."""
        while self._waiting and self._waiting[0].pts <= pts:
            yield self._waiting.popleft()

    def rest(self) -> Iterator[Sound]:
        """Take all of it: there are no more pictures."""
        while self._waiting:
            yield self._waiting.popleft()
