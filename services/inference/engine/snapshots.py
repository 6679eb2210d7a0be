"""What a pipeline remembers of its stream, asked for once a second, for the engine that comes after this one.

The rule it keeps: a picture waits for it hardly at all. What is too large or took too long is dropped and
counted, and asked for more rarely.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Final

import structlog

from services.inference.packets import Packet, Snapshot
from sluice.pipeline import Pipeline

log = structlog.get_logger()

EVERY_S: Final = 1.0
RARELY_S: Final = 60.0
LARGEST_BYTES: Final = 1 << 20
LONGEST_S: Final = 0.02
TOO_LARGE, TOO_SLOW, FAILED = "too_large", "too_slow", "failed"


class Snapshots:
    """One stream's. `due`, then `take`, between two frames."""

    def __init__(
        self,
        slot: int,
        pipeline: type[Pipeline],
        send: Callable[[Packet], None],
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.dropped: Counter[str] = Counter()
        self._slot = slot
        self._makes_some = pipeline.snapshot is not Pipeline.snapshot
        self._send = send
        self._now_s = now_s
        self._every_s = EVERY_S
        self._next_s = now_s() + EVERY_S

    def due(self) -> bool:
        return self._makes_some and self._now_s() >= self._next_s

    def take(self, instance: Pipeline) -> None:
        """Ask, and send what is fit to be sent."""
        began_s = self._now_s()
        try:
            data = instance.snapshot()
            why_not = TOO_LARGE if data is not None and len(data) > LARGEST_BYTES else ""
        except BaseException:  # an author's code may even exit; its frames are none the worse
            log.exception("no snapshot", slot=self._slot)
            data, why_not = None, FAILED
        took_s = self._now_s() - began_s
        if took_s > LONGEST_S:
            why_not = why_not or TOO_SLOW
        if why_not:
            self.dropped[why_not] += 1
            self._every_s = min(2 * self._every_s, RARELY_S)
        elif data is not None:
            self._send(Snapshot(self._slot, data))
        self._next_s = self._now_s() + self._every_s
