"""One channel inside this process: writers append to segments, any number of readers follow as they grow.

Everything is owned by one event loop and no writer ever waits: a reader that is slow loses segments, is told
how many, and holds nobody up. A chunk costs a reader that is pushed to one call, any other one future.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from services.common.errors import ConflictError, ExhaustedError, NotFoundError, SluiceError
from services.common.trickle.metrics import LAGGED
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
from services.common.trickle.segment import Cursor, Segment, wake, woken


class SegmentWriter:
    """Appends to one segment. Leaving its block ends the segment; leaving by an exception abandons it."""

    def __init__(self, channel: Channel, segment: Segment) -> None:
        self._channel = channel
        self._segment = segment
        self.index: Final = segment.index
        self.generation: Final = segment.generation

    def __enter__(self) -> SegmentWriter:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self.end()
        else:
            self.abandon()

    @property
    def ended(self) -> bool:
        """True as well when others ended it: the channel closed, a restart, a newer writer, eviction."""
        return self._segment.ended

    @property
    def size(self) -> int:
        return self._segment.size

    @property
    def empty(self) -> bool:
        return self._segment.size == 0

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

    `lost`: how many segments were skipped just before this one. `restarted`: it is the first that this reader
    has of another publisher; what came before it has no continuation. `generation` counts publishers.
    """

    def __init__(self, segment: Segment) -> None:
        self._segment = segment
        self._cursor = Cursor()
        self.index: Final = segment.index
        self.generation: Final = segment.generation
        self.lost = 0
        self.restarted = False

    @property
    def empty(self) -> bool:
        """True when it ended without a byte."""
        return self._segment.ended and self._segment.size == 0

    @property
    def ended(self) -> bool:
        """True when there is nothing after what `take` still gives."""
        return self._segment.ended

    @property
    def cut(self) -> bool:
        """True when it ended before its writer said so: that broke off, or others ended it."""
        return self._segment.cut

    def take(self) -> bytes:
        """The next run of what is there already; b"" for now when all of it was taken."""
        return self._segment.take(self._cursor)

    async def follow(self, sink: Callable[[bytes], bool]) -> None:
        """Give `sink` each write from within the writer, until the segment ends or `sink` has had enough.

        It says so by False, and that write it has taken too. What was there before is to be taken before; who
        is cancelled here has no place in the segment any more.
        """
        segment = self._segment
        assert self._cursor.taken == segment.size, (self._cursor, segment.size)
        if not segment.ended:
            self._cursor = await segment.follow(sink)

    def __aiter__(self) -> SegmentReader:
        return self

    async def __anext__(self) -> bytes:
        segment = self._segment
        while self._cursor.taken == segment.size:
            if segment.ended:
                raise StopAsyncIteration
            await woken(segment.waiters)
        return segment.take(self._cursor)


class ChannelReader:
    """Yields segments in order from where it began, each as it begins, until the channel closes."""

    def __init__(self, channel: Channel, start: int) -> None:
        self._channel = channel
        self._next = start
        self._lost = 0  # since the last segment
        self._since: int | None = None  # the generation of what `_next` counts in
        self._generation: int | None = None  # of the last segment

    def __aiter__(self) -> ChannelReader:
        return self

    async def __anext__(self) -> SegmentReader:
        while True:
            try:
                segment = await self._channel.segment(self._next, since=self._since)
            except ChannelClosedError:
                raise StopAsyncIteration from None
            except SegmentMissingError as missing:
                LAGGED.inc(missing.lost)
                self._lost += missing.lost
                self._next, self._since = missing.resume, missing.generation
                continue
            segment.lost, self._lost = self._lost, 0
            segment.restarted = self._generation not in {None, segment.generation}
            self._generation = self._since = segment.generation
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
        self._segments: dict[int, Segment] = {}
        self._parked: set[asyncio.Future[None]] = set()
        self._readers = 0
        self.active_at = self._now()  # loop time of the last sign of life, or of the creation
        self.error: SluiceError | None = None
        self.broken = False  # the connection that wrote it broke, and nobody has written since
        self.on_broken: Callable[[], None] | None = None

    @property
    def closed(self) -> bool:
        return self._ring.closed

    @property
    def head(self) -> int:
        """The next index to be written."""
        return self._ring.head

    @property
    def generation(self) -> int:
        """How many publishers it has had: one, and one more for each that started anew."""
        return self._ring.generation

    def position(self, requested: int) -> int:
        """The index that NEXT, CURRENT or RANDOM_ACCESS means now."""
        return self._ring.position(requested)

    def touch(self) -> None:
        """Count as active: a writer is there, though it has nothing to write."""
        self.active_at = self._now()

    def begin_segment(
        self, index: int | None = None, *, random_access: bool = False, reset: bool = False
    ) -> SegmentWriter:
        """Open a segment, the next free one by default; a writer that had this index before is ended.

        `random_access`: a decoder can start here. `reset`: a publisher starts anew; what its predecessor left
        open is ended. Raises ChannelClosedError, or ExhaustedError when too many are open.
        """
        if index is None:
            index = self._ring.next_free()
        generation = self._ring.generation
        forgotten = self._ring.open(index, random_access=random_access, reset=reset)
        anew = reset or self._ring.generation != generation
        self._forget(forgotten)
        segment = self._segments[index] = Segment(index, self._ring.generation)
        self.broken = False
        for stale in self._ring.unfinished_below(index) if anew else ():
            if stale in self._segments:  # ending one may make the ring forget the next
                self._abandon(self._segments[stale])
        return SegmentWriter(self, segment)

    def read(self, start: int = CURRENT) -> ChannelReader:
        """Read from CURRENT, NEXT, RANDOM_ACCESS or an index; skips from one that is gone or far ahead."""
        return ChannelReader(self, self._ring.position(start))

    async def segment(self, index: int, *, since: int | None = None) -> SegmentReader:
        """Wait until `index` has a byte or has ended.

        Raises ChannelClosedError, or SegmentMissingError, also when a publisher started anew in between:
        while we wait, or after the generation `since`, in which the reader counted to `index`.
        """
        generation = self._ring.generation if since is None else since
        while True:
            if self._ring.left_behind(index, generation):
                raise self._ring.started_anew(index)
            verdict = self._ring.verdict(index)
            if verdict is Verdict.SERVE:
                return SegmentReader(self._segments[index])
            if verdict is Verdict.CLOSED:
                raise ChannelClosedError("Stream not found")
            if verdict is Verdict.MISSING:
                raise self._ring.missing(index)
            await woken(self._parked)

    def was_cut(self, index: int) -> bool:
        """Whether that segment is still here, and ended before its writer said so."""
        return index in self._segments and self._segments[index].cut

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
            self._finish(self._segments[index], cut=True)

    def close(self, error: SluiceError | None = None) -> None:
        """End every segment and, once they have read what is left, every reader. Again is harmless.

        `error` is what its writers are to be told in place of a plain end; readers see the ordinary one.
        """
        if self.closed:
            return
        self.error = error
        for index in self._ring.close():
            self._segments[index].end(cut=True)
        wake(self._parked)

    def _write(self, segment: Segment, data: bytes) -> None:
        first = segment.size == 0
        forgotten = self._ring.grow(segment.index, len(data))
        self.active_at = self._now()
        segment.append(data)
        if forgotten:
            self._forget(forgotten)
        if first:
            wake(self._parked)

    def _finish(self, segment: Segment, *, cut: bool = False) -> None:
        self.active_at = self._now()
        self._settle(segment, self._ring.finish(segment.index, self.active_at), cut=cut)

    def _abandon(self, segment: Segment) -> None:
        self._settle(segment, self._ring.abandon(segment.index, self._now()), cut=True)
        # A publisher has the next segment's connection open beside this one's: it is gone when both are.
        self.broken = not self.closed and all(other.ended for other in self._segments.values())
        if self.broken and self.on_broken is not None:
            self.on_broken()

    def _settle(self, segment: Segment, forgotten: list[int], *, cut: bool) -> None:
        segment.end(cut=cut)
        self._forget(forgotten)
        wake(self._parked)

    def _forget(self, indices: list[int]) -> None:
        for index in indices:
            self._segments.pop(index).end(cut=True)
        if indices:
            wake(self._parked)
