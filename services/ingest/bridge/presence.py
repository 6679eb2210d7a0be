"""Whether a session's publisher is there: sending, silent, done, or gone. Pure; times are passed in."""

from __future__ import annotations

import enum


class Publisher(enum.Enum):
    """What the publisher is doing; the values are the wire's."""

    WAITING = 1
    SENDING = 2
    SILENT = 3
    FINISHED = 4
    GONE = 5


class Presence:
    """Of one session's publishers, one after the other. Its attributes are for the session to set."""

    def __init__(
        self, opened_s: float, *, silent_after_s: float, grace_s: float, first_picture_s: float
    ) -> None:
        self.connected = True
        self.paused = False  # by the client
        self.holding = False  # the publisher waits for us, not we for it
        self.finished = False
        self.in_at_s: float | None = None  # when the last picture came
        self._left_at_s: float | None = None
        self._came_s = opened_s
        self._opened_s = opened_s
        self._silent_after_s = silent_after_s
        self._grace_s = grace_s
        self._first_picture_s = first_picture_s

    def came_back(self, now_s: float) -> None:
        self.connected = True
        self._came_s = now_s
        self._left_at_s = None

    def resume(self, now_s: float) -> None:
        """It sent pictures to another bridge before, and has its grace as if one had just come."""
        self.in_at_s = self._came_s = now_s

    def hangs(self, now_s: float) -> bool:
        """Whether it is connected and sends nothing: of a network that broke nobody tells a server."""
        if not self.connected or self.holding or self.in_at_s is None:
            return False
        if self.in_at_s <= self._came_s:
            return now_s - self._came_s > self._first_picture_s
        return now_s - self.in_at_s > self._silent_after_s

    def left(self, now_s: float, *, finished: bool) -> None:
        """Its connection is gone. `finished`: it said before that it is done."""
        self.connected = False
        self.finished = self.finished or finished
        self._left_at_s = now_s

    def publisher(self, now_s: float) -> Publisher:
        if self.finished:
            return Publisher.FINISHED
        if self.holding:
            return Publisher.SENDING
        silent_s = now_s - (self.in_at_s if self.in_at_s is not None else self._opened_s)
        if silent_s > self._grace_s:
            return Publisher.GONE
        if self.in_at_s is None:  # who left before a picture has nothing to come back to
            return Publisher.WAITING if self.connected else Publisher.GONE
        if self.paused:
            return Publisher.SILENT
        return Publisher.SILENT if silent_s > self._silent_after_s else Publisher.SENDING

    def was_silent(self, now_s: float) -> bool:
        """Whether a picture that comes now is the first one, or the first one after a silence."""
        return self.in_at_s is None or now_s - self.in_at_s > self._silent_after_s

    def orphaned_s(self, now_s: float) -> float:
        """For how long nobody has published, whatever the grace."""
        return 0.0 if self.holding else now_s - max(self.in_at_s or 0.0, self._opened_s)

    def done_s(self, now_s: float, out_at_s: float | None) -> float | None:
        """For how long after its end nothing came back; None while it is not done."""
        if not self.finished or self._left_at_s is None:
            return None
        return now_s - max(self._left_at_s, out_at_s or 0.0)

    def input_age_ms(self, now_s: float) -> int:
        return -1 if self.in_at_s is None else round((now_s - self.in_at_s) * 1000)
