"""One channel inside this process: writers append to segments, any number of readers follow as they grow.

Everything is owned by one event loop and no writer ever waits: a reader that is slow loses segments, is told
how many, and holds nobody up. A chunk costs its reader one future and no task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from services.common.errors import ConflictError, ExhaustedError, NotFoundError
from services.common.trickle.protocol import (
    CURRENT,
    DEFAULT_CONTENT_TYPE,
    DEFAULT_LIMITS,
    NEXT,
    ChannelClosedError,
    ChannelLimits,
    Ring,
    SegmentMissingError,
    Verdict,
)

RUN_BYTES: Final = (
    256 * 1024
)  # the most that one step of a reader copies: replaying 8 MiB must not stall the loop


class _Segment:
    """The bytes of one segment, and the readers that wait for more of them."""

    __slots__ = ("bytes", "ended", "index", "on_end", "waiters")

    def __init__(self, index: int) -> None:
        self.index = index
        self.bytes = bytearray()
        self.ended = False
        self.on_end: Callable[[], None] | None = None
        self.waiters: set[asyncio.Future[None]] = set()

    def append(self, data: bytes) -> None:
        self.bytes += data
        _wake(self.waiters)

    def end(self) -> None:
        if not self.ended:
            self.ended = True
            _wake(self.waiters)
            if self.on_end is not None:
                self.on_end()


class SegmentWriter:
    """Appends to one segment. Leaving its block ends the segment; leaving by an exception abandons it."""

    def __init__(self, channel: Channel, segment: _Segment) -> None:
        self._channel = channel
        self._segment = segment
        self.index: Final = segment.index

    def __enter__(self) -> SegmentWriter:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self.end()
        else:
            self.abandon()

    @property
    def ended(self) -> bool:
        """True as well when others ended it: the channel closed, a reset, a newer writer, eviction."""
        return self._segment.ended

    @property
    def empty(self) -> bool:
        return not self._segment.bytes

    def on_end(self, callback: Callable[[], None] | None) -> None:
        """Call back, from within whoever ends this segment, when it ends; None to be left alone."""
        self._segment.on_end = callback

    def write(self, data: bytes) -> None:
        """Append; readers see it at once.

        Raises TooLargeError, ChannelClosedError, or ConflictError when others ended this segment.
        """
        if self._segment.ended:
            if self._channel.closed:
                raise ChannelClosedError("Stream not found")
            raise ConflictError("The segment has ended", reason="SEGMENT_ENDED", index=self.index)
        if data:
            self._channel._write(self._segment, data)  # noqa: SLF001 - the two halves of one thing

    def end(self) -> None:
        """End the segment, also without a byte: an empty segment counts. Again is harmless."""
        if not self._segment.ended:
            self._channel._finish(self._segment)  # noqa: SLF001

    def abandon(self) -> None:
        """Its source broke: readers get what came; without a byte the index is free for another try."""
        if not self._segment.ended:
            self._channel._abandon(self._segment)  # noqa: SLF001


class SegmentReader:
    """Yields a segment's bytes in runs, as they are written, until it ends, though the ring forgets it.

    `lost`: how many segments were skipped just before this one.
    """

    def __init__(self, segment: _Segment, lost: int) -> None:
        self._segment = segment
        self._position = 0
        self.index: Final = segment.index
        self.lost: Final = lost

    @property
    def empty(self) -> bool:
        """True when it ended without a byte."""
        return self._segment.ended and not self._segment.bytes

    def __aiter__(self) -> SegmentReader:
        return self

    async def __anext__(self) -> bytes:
        segment = self._segment
        while self._position == len(segment.bytes):
            if segment.ended:
                raise StopAsyncIteration
            await _woken(segment.waiters)
        with memoryview(segment.bytes) as view:
            run = bytes(view[self._position : self._position + RUN_BYTES])
        self._position += len(run)
        return run


class ChannelReader:
    """Yields segments in order from where it began, each as it begins, until the channel closes."""

    def __init__(self, channel: Channel, start: int) -> None:
        self._channel = channel
        self._next = start

    def __aiter__(self) -> ChannelReader:
        return self

    async def __anext__(self) -> SegmentReader:
        expected = self._next
        while True:
            try:
                segment = await self._channel.segment(self._next, lost=max(self._next - expected, 0))
            except ChannelClosedError:
                raise StopAsyncIteration from None
            except SegmentMissingError as missing:
                self._next = missing.resume
            else:
                self._next = segment.index + 1
                return segment


class Channel:
    """A bounded ring of segments with in-process writers and readers; create it inside the running loop."""

    def __init__(
        self, limits: ChannelLimits = DEFAULT_LIMITS, content_type: str = DEFAULT_CONTENT_TYPE
    ) -> None:
        self.limits: Final = limits
        self.content_type: Final = content_type
        self._now: Final = asyncio.get_running_loop().time
        self._ring = Ring(limits)
        self._segments: dict[int, _Segment] = {}
        self._parked: set[asyncio.Future[None]] = set()
        self._readers = 0
        self.active_at = self._now()  # loop time of the last byte, or of the creation

    @property
    def closed(self) -> bool:
        return self._ring.closed

    @property
    def head(self) -> int:
        """The next index to be written."""
        return self._ring.head

    def position(self, requested: int) -> int:
        """The index that NEXT, CURRENT or RANDOM_ACCESS means now."""
        return self._ring.position(requested)

    def begin_segment(
        self, index: int | None = None, *, random_access: bool = False, reset: bool = False
    ) -> SegmentWriter:
        """Open a segment, the next free one by default; a writer that had this index before is ended.

        `random_access`: a decoder can start here. `reset`: a publisher that restarted ends what it left open.
        Raises ChannelClosedError, or ExhaustedError when too many are open.
        """
        if index is None:
            index = self._ring.next_free()
        self._forget(self._ring.open(index, random_access=random_access, reset=reset))
        segment = self._segments[index] = _Segment(index)
        for stale in self._ring.unfinished_below(index) if reset else ():
            if stale in self._segments:  # ending one may make the ring forget the next
                self._abandon(self._segments[stale])
        return SegmentWriter(self, segment)

    def read(self, start: int = CURRENT) -> ChannelReader:
        """Read from CURRENT, NEXT, RANDOM_ACCESS or an index; skips from one that is gone or far ahead."""
        return ChannelReader(self, self._ring.position(start))

    async def segment(self, index: int, *, lost: int = 0) -> SegmentReader:
        """Wait until `index` has a byte or has ended. Raises SegmentMissingError or ChannelClosedError."""
        while True:
            verdict = self._ring.verdict(index)
            if verdict is Verdict.SERVE:
                return SegmentReader(self._segments[index], lost)
            if verdict is Verdict.CLOSED:
                raise ChannelClosedError("Stream not found")
            if verdict is Verdict.MISSING:
                raise SegmentMissingError(index, latest=self.head, resume=self._ring.resume(index))
            await _woken(self._parked)

    def resume(self) -> int:
        """Where a reader that knows nothing starts to decode soonest."""
        return self._ring.resume(NEXT)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Count one reader from outside for the block. Raises ExhaustedError when there are too many."""
        if self._readers >= self.limits.readers:
            raise ExhaustedError("Too many readers", reason="TOO_MANY_READERS", retry_after_s=1)
        self._readers += 1
        try:
            yield
        finally:
            self._readers -= 1

    def end_segment(self, index: int) -> None:
        """End one segment where it is; its writer learns. Raises NotFoundError when it is not in the ring."""
        if index not in self._segments:
            raise NotFoundError("Nonexistent segment", index=index)
        if not self._segments[index].ended:
            self._finish(self._segments[index])

    def close(self) -> None:
        """End every segment and, once they have read what is left, every reader. Again is harmless."""
        for index in self._ring.close():
            self._segments[index].end()
        _wake(self._parked)

    def _write(self, segment: _Segment, data: bytes) -> None:
        first = not segment.bytes
        forgotten = self._ring.grow(segment.index, len(data))
        self.active_at = self._now()
        segment.append(data)
        self._forget(forgotten)
        if first:
            _wake(self._parked)

    def _finish(self, segment: _Segment) -> None:
        self.active_at = self._now()
        self._settle(segment, self._ring.finish(segment.index, self.active_at))

    def _abandon(self, segment: _Segment) -> None:
        self._settle(segment, self._ring.abandon(segment.index, self._now()))

    def _settle(self, segment: _Segment, forgotten: list[int]) -> None:
        segment.end()
        self._forget(forgotten)
        _wake(self._parked)

    def _forget(self, indices: list[int]) -> None:
        for index in indices:
            self._segments.pop(index).end()
        if indices:
            _wake(self._parked)


def _wake(waiters: set[asyncio.Future[None]]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
    waiters.clear()


async def _woken(waiters: set[asyncio.Future[None]]) -> None:
    """Wait for the next `_wake`; each on its own future, for cancelling a shared one would end them all."""
    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    waiters.add(waiter)
    try:
        await waiter
    finally:
        waiters.discard(waiter)
