"""What of a stream can be fetched: its newest segments and their parts, one of which may still grow. Pure.

The rule it keeps: a number is never used twice, and no more than `most_bytes` are held, but for the segment
that grows, whose length is bounded; the oldest go first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from services.common.media.mpegts import CLOCK_HZ

LISTED_TARGETS: Final = (
    5  # in target durations: three are the least (RFC 8216bis §6.2.2), and some to be late
)
HELD_TARGETS: Final = 5  # and so many more are still answered after they left the playlist


@dataclass(slots=True, eq=False)
class Part:
    """A piece of a segment. It may be read while it grows; it is listed when `ticks` says how long it is."""

    independent: bool  # it begins with a key frame
    chunks: list[bytes] = field(default_factory=list)
    ticks: int | None = None
    through_pts: int = 0  # of its newest picture

    @property
    def done(self) -> bool:
        return self.ticks is not None

    @property
    def size(self) -> int:
        return sum(len(chunk) for chunk in self.chunks)


@dataclass(slots=True, eq=False)
class Segment:
    """Parts that follow each other without a hole; the last segment may still grow."""

    number: int
    unix_s: float  # when its first picture was here
    discontinuity: bool
    parts: list[Part] = field(default_factory=list)
    ticks: int | None = None
    size: int = 0

    @property
    def done(self) -> bool:
        return self.ticks is not None

    @property
    def listed_parts(self) -> int:
        """How many of its parts are whole; only the last one is not, if any."""
        return len(self.parts) - bool(self.parts and not self.parts[-1].done)


class Shelf:
    """Segments in the order of their numbers. `listed` is what a playlist shows of the whole ones."""

    def __init__(self, *, first_number: int, target_s: int, most_bytes: int) -> None:
        self.target_s = target_s
        self.listed: deque[Segment] = deque()
        self.open: Segment | None = None
        self.ended = False
        self.discontinuities = 0  # that have left the playlist
        self.size = 0
        self._held: deque[Segment] = deque()  # no longer listed
        self._next = first_number
        self._most_bytes = most_bytes

    @property
    def first_number(self) -> int:
        """Of the first listed segment, whether it is whole or not."""
        return self.listed[0].number if self.listed else self.next_number

    @property
    def next_number(self) -> int:
        """Of the first segment that is not whole."""
        return self.open.number if self.open is not None else self._next

    @property
    def next_part(self) -> int:
        """Of the first part of that segment that is not whole."""
        return self.open.listed_parts if self.open is not None else 0

    # --- written

    def begin_segment(self, *, unix_s: float, discontinuity: bool) -> None:
        assert self.open is None or self.open.done
        self.open = Segment(self._next, unix_s, discontinuity)
        self._next += 1
        self.ended = False

    def begin_part(self, *, independent: bool) -> None:
        assert self.open is not None
        assert self.open.listed_parts == len(self.open.parts)
        self.open.parts.append(Part(independent))

    def append(self, data: bytes, through_pts: int) -> None:
        """Add to the part that grows."""
        assert self.open is not None
        part = self.open.parts[-1]
        assert not part.done
        part.chunks.append(data)
        part.through_pts = max(part.through_pts, through_pts)
        self.open.size += len(data)
        self.size += len(data)
        self._make_room()

    def end_part(self, ticks: int) -> None:
        assert self.open is not None
        self.open.parts[-1].ticks = ticks

    def end_segment(self, ticks: int) -> None:
        """The open segment lasted `ticks`; all of its parts are whole."""
        segment = self.open
        assert segment is not None
        assert segment.listed_parts == len(segment.parts)
        segment.ticks = ticks
        self.listed.append(segment)
        self.open = None
        enough = LISTED_TARGETS * self.target_s * CLOCK_HZ
        while sum(each.ticks or 0 for each in self.listed) - (self.listed[0].ticks or 0) >= enough:
            self._unlist()
        enough = HELD_TARGETS * self.target_s * CLOCK_HZ
        while self._held and sum(each.ticks or 0 for each in self._held) > enough:
            self._drop()

    def end(self) -> None:
        """There is no more, unless a segment begins after all."""
        self.ended = True

    def _make_room(self) -> None:
        while self.size > self._most_bytes and (self._held or self.listed):
            if not self._held:
                self._unlist()
            self._drop()

    def _unlist(self) -> None:
        segment = self.listed.popleft()
        self.discontinuities += segment.discontinuity
        self._held.append(segment)

    def _drop(self) -> None:
        self.size -= self._held.popleft().size

    # --- read

    def segment(self, number: int) -> Segment | None:
        """A segment that is held, whole or not."""
        return next((each for each in self._all() if each.number == number), None)

    def part(self, number: int, index: int) -> Part | None:
        """A part that is held, whole or not."""
        segment = self.segment(number)
        return segment.parts[index] if segment is not None and index < len(segment.parts) else None

    def may_come(self, number: int, index: int) -> bool:
        """Whether a part that is not there may be the next one."""
        if self.ended:
            return False
        if self.open is None:
            return (number, index) == (self._next, 0)
        return (number, index) in {(self.open.number, len(self.open.parts)), (self._next, 0)}

    def has(self, number: int, index: int | None) -> bool:
        """Whether the playlist has the whole of segment `number`, or its part `index`, or what is after it.

        An index behind a segment's last part is the first part of the next one (RFC 8216bis §6.2.5.2).
        """
        if index is None:
            return self.next_number > number
        if number >= self.next_number:
            return number == self.next_number and index < self.next_part
        segment = self.segment(number)
        behind = segment is not None and index >= len(segment.parts)
        return self.has(number + 1, 0) if behind else True

    def _all(self) -> Iterator[Segment]:
        yield from self._held
        yield from self.listed
        if self.open is not None:
            yield self.open
