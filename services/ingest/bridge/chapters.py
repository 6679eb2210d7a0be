"""A session's life in its own trace: a short span for each half minute, with what the bridge counted in it.

The rule it keeps: a span is exported when it ends, so none of them is as long as the session, which would be
seen only when it no longer matters, and never if this process died.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from opentelemetry import propagate

from services.common.telemetry import tracer
from services.ingest.bridge.stages import Stage, StageTimes

SEGMENT_S: Final = 30.0
AGES: Final = 4096  # of one segment: all of them up to 136 fps; of more, the first
Attributes = dict[str, str | int | float]


@dataclass(frozen=True, slots=True)
class Counts:
    """What the bridge has counted since the session began."""

    frames_in: int = 0
    frames_out: int = 0
    frames_dropped: int = 0
    delivered_ms: int = 0

    def since(self, before: Counts) -> Attributes:
        return {
            f"session.{name}": max(0, getattr(self, name) - getattr(before, name)) for name in self.__slots__
        }


class Chapters:
    """Writes `session.segment`, `.first_picture`, `.handover`: children of the span that opened it."""

    def __init__(
        self, traceparent: str, *, now_s: Callable[[], float], wall_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self._parent = propagate.extract({"traceparent": traceparent})
        self._now_s = now_s
        # One reading of the wall's clock for all of them: it may be set while the session runs.
        self._opened_s, self._opened_ns = now_s(), wall_ns()
        self._from_s = self._opened_s
        self._counts = Counts()
        self._ages_s = array("f")

    def first_picture(self) -> None:
        """The runner's first picture goes to the viewers: what they waited for since the session opened."""
        self._write("session.first_picture", self._opened_s, {})

    def handover(self, since_s: float, attributes: Attributes) -> None:
        """The viewers have another runner's output; it was wished for at `since_s`."""
        self._write("session.handover", since_s, attributes)

    def returned(self, age_s: float) -> None:
        """A picture came back from the runner, `age_s` after its publisher's last byte of it."""
        if len(self._ages_s) < AGES:
            self._ages_s.append(age_s)

    @property
    def due(self) -> bool:
        return self._now_s() - self._from_s >= SEGMENT_S

    def end_segment(
        self, counts: Counts, *, publisher: str, stages: Mapping[Stage, StageTimes] | None
    ) -> None:
        """End the running segment with what is so now, begin the next. `stages`: of the newest pictures."""
        attributes = {**counts.since(self._counts), "session.publisher": publisher}
        if self._ages_s:
            ages = sorted(self._ages_s)
            attributes["session.frame_age_ms_p50"] = round(ages[(len(ages) - 1) // 2] * 1000, 1)
            attributes["session.frame_age_ms_p95"] = round(ages[(len(ages) * 95 + 99) // 100 - 1] * 1000, 1)
        if stages:
            slowest = max(stages, key=lambda stage: stages[stage].p50_s)
            attributes["session.slowest_stage"] = slowest.value
            attributes["session.slowest_stage_ms_p50"] = round(stages[slowest].p50_s * 1000, 1)
        self._write("session.segment", self._from_s, attributes)
        self._from_s, self._counts = self._now_s(), counts
        del self._ages_s[:]

    def _write(self, name: str, from_s: float, attributes: Attributes) -> None:
        """A span from `from_s` to now."""
        span = tracer.start_span(name, self._parent, attributes=attributes, start_time=self._wall(from_s))
        span.end(self._wall(self._now_s()))

    def _wall(self, at_s: float) -> int:
        return self._opened_ns + round((at_s - self._opened_s) * 1e9)
