"""What a session's pipeline says, written to the channel `data` of its bridge: JSON lines, with their times.

The rule it keeps: nothing waits for it. A bridge that takes too little loses the oldest, counted; a pipeline
that says nothing costs no connection.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import Final

import structlog
from aiohttp import ClientSession
from prometheus_client import Counter

from services.common.errors import SluiceError
from services.common.trickle.publisher import Publisher
from services.inference.address import Address
from services.inference.upstream import keep_publishing

log = structlog.get_logger()

DROPPED: Final = Counter(
    "sluice_data_dropped_total", "What pipelines said and no client got, by the reason.", ["reason"]
)
CAPACITY: Final = 128  # two seconds of the most that an engine lets through
SEGMENT_BYTES: Final = 256 * 1024  # a quarter of what the bridge allows
BATCH_S: Final = 0.05  # a segment is a request, and the bridge's ring is 64 of them: three seconds


class RemarkWriter:
    """`run` writes what `put` leaves, at most each `every_s`."""

    def __init__(self, address: Address, every_s: float = BATCH_S) -> None:
        self._address = address
        self._every_s = every_s
        self._waiting: deque[bytes] = deque()
        self._refused: dict[str, int] = {}  # what the counter has seen
        self._filled = asyncio.Event()
        self._emptied = asyncio.Event()
        self._emptied.set()

    def put(self, pts: int, text: str) -> None:
        """`text` is a JSON object, said of the frame at `pts`."""
        if len(self._waiting) >= CAPACITY:
            self._waiting.popleft()
            DROPPED.labels("late").inc()
        self._waiting.append(self.line(pts, text))
        self._emptied.clear()
        self._filled.set()

    def line(self, pts: int, text: str) -> bytes:
        return b'{"pts": %d, "data": %s}\n' % (pts, text.encode())

    def body(self, lines: list[bytes]) -> bytes:
        return b"".join(lines)

    def refused(self, totals: Mapping[str, int]) -> None:
        """Count what the engine did not let through; `totals` are since its beginning, by reason."""
        for reason, total in totals.items():
            DROPPED.labels(reason).inc(total - self._refused.get(reason, 0))
            self._refused[reason] = total

    async def delivered(self, within_s: float) -> None:
        """Wait until the bridge has all of it, or the time is over."""
        try:
            async with asyncio.timeout(within_s):
                await self._emptied.wait()
        except TimeoutError:
            log.warning("what the pipeline said was lost", waiting=len(self._waiting))

    async def run(self, session: ClientSession) -> None:
        """A loop for `background`; a bridge that cannot be reached is tried again, a closed one is not."""
        await self._address.at_each(lambda url: self._write(session, url))

    async def _write(self, session: ClientSession, url: str) -> None:
        await self._filled.wait()
        await keep_publishing(session, url, "application/jsonl", self._publish, self._emptied.set)

    async def _publish(self, publisher: Publisher) -> None:
        if not self._waiting:
            await publisher.flush()
        if not self._waiting:
            self._filled.clear()
            self._emptied.set()
            await self._filled.wait()
        lines = self._batch()
        try:
            async with publisher.segment() as segment:
                await segment.write(self.body(lines))
        except (SluiceError, asyncio.CancelledError):
            DROPPED.labels("unsent").inc(len(lines))
            raise
        await asyncio.sleep(self._every_s)

    def _batch(self) -> list[bytes]:
        """The oldest that fit into a segment."""
        lines = [self._waiting.popleft()]
        size = len(lines[0])
        while self._waiting and size + len(self._waiting[0]) <= SEGMENT_BYTES:
            size += len(self._waiting[0])
            lines.append(self._waiting.popleft())
        return lines
