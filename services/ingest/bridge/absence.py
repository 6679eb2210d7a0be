"""When viewers see a still in place of a stream whose publisher is away. Pure; times are passed in.

The rule it keeps: a still is shown only where no picture is to be expected, and as soon as one is, no more of
them: what is on the screen stays until the stream's next key frame.
"""

from __future__ import annotations

from typing import Final

EVERY_S: Final = 0.5  # the longest that HLS takes for a usual gap between two pictures


class Absence:
    """Of one session's publishers, one after the other."""

    def __init__(self) -> None:
        self._shown_s: float | None = None  # when the newest still was
        self._shown = 0

    def due(self, now_s: float, *, away: bool, quiet: bool) -> bool:
        """Whether it is time for a still. `quiet`: what the publisher sent before has come back."""
        if not away or not quiet:
            return False
        return self._shown_s is None or now_s - self._shown_s >= EVERY_S

    def show(self, now_s: float) -> int:
        """A still is shown; which of the two that are shown in turn."""
        self._shown_s = now_s
        self._shown ^= 1
        return self._shown
