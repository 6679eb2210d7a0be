"""For how long nothing has come back from a runner although input flowed. Pure; times are passed in.

The rule it keeps: a silence is measured against the output's own usual cadence, and only while input flows,
so that neither a slow pipeline nor a source that stops is taken for a runner that fails.
"""

from __future__ import annotations

from collections import deque
from typing import Final

GAPS: Final = 16  # between pictures that came back; the longest of them is still usual
USUAL_MAX_S: Final = 10.0  # of a cadence: what is slower than this counts as a stall now and then
FIRST_S: Final = 2.0  # the least that counts as usual of an output of which one picture is known
GRACE_S: Final = 0.25  # beyond twice the usual; what a busy machine or a network holds back
INPUT_STOPS_S: Final = 0.5  # the least after which input counts as stopped
INPUT_STOPS_GAPS: Final = 2.5  # and so many of the source's own
INPUT_GAP_MAX_S: Final = 2.0
SMOOTHING: Final = 8  # pictures of the input
MARKS_S: Final = (0.5, 1.0, 3.0)  # a session's owner acts on these, so that they are told at once


class Stall:
    """Of the output that viewers get. Before its first picture nothing is a stall."""

    def __init__(self) -> None:
        self._gaps: deque[float] = deque(maxlen=GAPS)
        self._in_gap_s = 0.0  # smoothed
        self._in_at_s: float | None = None  # when the newest picture was sent
        self._first_s: float | None = None
        self._waits = False  # for a picture that was sent and has not come back
        self._from_s = 0.0  # when that began
        self._silent_s = 0.0  # since then, of flowing input, up to the newest picture of it

    def begin(self, now_s: float) -> None:
        """Another output, or one that was seen elsewhere: it has shown pictures, its cadence is not known."""
        self._gaps.append(FIRST_S)
        self._wait(now_s)

    def went(self, now_s: float) -> None:
        """A picture was sent to the runner."""
        if self._in_at_s is None:
            self._first_s = now_s
        else:
            self._silent_s = self._silence_s(now_s)
            gap_s = min(now_s - self._in_at_s, INPUT_GAP_MAX_S)
            self._in_gap_s += (gap_s - self._in_gap_s) / SMOOTHING
        if self._gaps and not self._waits:
            self._wait(now_s)
        self._in_at_s = now_s

    def came(self, now_s: float, *, all_back: bool) -> None:
        """A picture came back. `all_back`: it is the newest that was sent."""
        if self._gaps:
            self._gaps.append(self._silence_s(now_s))
        else:
            self._gaps.append(max(FIRST_S, now_s - (self._first_s or now_s)))
        self._wait(now_s)
        self._waits = not all_back

    def excuse(self, now_s: float) -> None:
        """The runner says that it loads: what was silent up to now is forgotten."""
        self._from_s, self._silent_s = now_s, 0.0

    def stalled_ms(self, now_s: float) -> int:
        """Beyond the usual cadence; 0 while it is not stalled."""
        silent_s = self._silence_s(now_s)
        if silent_s < self._bound_s or not self.flows(now_s):
            return 0
        return round((silent_s - self.usual_s) * 1000)

    def mark(self, now_s: float) -> int:
        """How many of the moments that are told at once have passed: it stalls, and `MARKS_S`."""
        stalled_ms = self.stalled_ms(now_s)
        return (stalled_ms > 0) + sum(stalled_ms >= mark_s * 1000 for mark_s in MARKS_S)

    def until_mark_s(self, now_s: float) -> float | None:
        """How long until the next of them, if nothing comes back meanwhile; None if there is none."""
        if not self._waits or not self.flows(now_s):
            return None
        silent_s = self._silence_s(now_s)
        moments = (self._bound_s, *(max(self._bound_s, self.usual_s + mark_s) for mark_s in MARKS_S))
        return min((at_s - silent_s for at_s in moments if at_s > silent_s), default=None)

    def flows(self, now_s: float) -> bool:
        """Whether input comes."""
        if self._in_at_s is None:
            return False
        return now_s - self._in_at_s <= max(INPUT_STOPS_S, INPUT_STOPS_GAPS * self._in_gap_s)

    @property
    def usual_s(self) -> float:
        """The longest gap of late that is no stall."""
        return min(max(self._gaps, default=0.0), USUAL_MAX_S)

    @property
    def _bound_s(self) -> float:
        return 2 * max(self.usual_s, self._in_gap_s) + GRACE_S

    def _wait(self, now_s: float) -> None:
        self._waits, self._from_s, self._silent_s = True, now_s, 0.0

    def _silence_s(self, now_s: float) -> float:
        """For how long it is waited for a picture, of the time in which input flowed."""
        if not self._waits or self._in_at_s is None or not self.flows(now_s):
            return self._silent_s if self._waits else 0.0
        return self._silent_s + now_s - max(self._in_at_s, self._from_s)
