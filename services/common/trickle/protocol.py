"""The trickle protocol's vocabulary and the rules of its ring. Pure: values in, values out, no clock, no I/O.

A channel is a sequence of numbered segments; `Ring` decides which of them exist, which index a request means,
what a reader of a missing one is told and what is forgotten. The bytes are `channel.Channel`'s.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Final

from services.common.errors import ExhaustedError, InvalidError, NotFoundError, TooLargeError

SEQ: Final = "Lp-Trickle-Seq"  # the index served; on a 470 the index asked for, unresolved
LATEST: Final = "Lp-Trickle-Latest"  # the head: the next index to be written, not the newest one written
CLOSED: Final = "Lp-Trickle-Closed"
RESET: Final = "Lp-Trickle-Reset"
EXPECT_CONTENT: Final = "Expect-Content"
RESUME: Final = (
    "Lp-Trickle-Resume"  # ours, on a 470 and on `/next`: where a reader loses least (see `Ring.resume`)
)
TERMINATED: Final = "terminated"
STATUS_MISSING: Final = 470  # the channel exists, that segment does not
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
DEFAULT_CONTENT_TYPE: Final = "application/octet-stream"

NEXT: Final = -1  # the segment that will be written next
CURRENT: Final = -2  # the one being written, or just finished
RANDOM_ACCESS: Final = -3  # never on the wire: the newest flagged segment, else the oldest kept

REORDER: Final = 2  # a publisher keeps two POSTs open, so N may begin after N+1 has, but not after N+2
NAME_CHARACTERS: Final = 200
_INDEX: Final = re.compile(r"[+-]?[0-9]{1,15}")  # 15 digits: exact in every client's number type


class ChannelClosedError(NotFoundError):
    """The channel has ended or never existed: a clean end for a reader, the last word for a writer."""

    default_reason = "CHANNEL_CLOSED"


class SegmentMissingError(NotFoundError):
    """The channel exists, that segment does not: too old (`latest` above it) or not to be expected yet."""

    default_reason = "SEGMENT_MISSING"

    def __init__(self, index: int, *, latest: int, resume: int) -> None:
        super().__init__("Entry not found", index=index, latest=latest, resume=resume)
        self.index = index
        self.latest = latest
        self.resume = resume


def parse_name(name: str) -> str:
    """Return the channel name or alias of a path's first, percent-decoded segment."""
    if not 1 <= len(name) <= NAME_CHARACTERS or not name.isprintable():
        raise InvalidError("Invalid name", reason="INVALID_NAME", field="name")
    return name


def parse_index(text: str, *, lowest: int = 0) -> int:
    """Return a path's index; `lowest` is NEXT for a writer, CURRENT for a reader, 0 where neither does."""
    if _INDEX.fullmatch(text) is None or (index := int(text)) < lowest:
        raise InvalidError("Invalid idx", reason="INVALID_INDEX", field="index")
    return index


def after_missing(wanted: int, *, latest: int, resume: int | None, joined: bool) -> int | None:
    """Where a subscriber goes after a 470; None: ask for `wanted` again a little later, it is still to come.

    `joined`: it has read from this channel before, so an index far beyond the head means that the publisher
    began anew.
    """
    if latest > wanted:
        return resume if resume is not None and resume > wanted else latest
    if not joined or wanted - latest <= REORDER:
        return None
    return latest if resume is None else resume


@dataclass(frozen=True, slots=True)
class ChannelLimits:
    """What one channel may hold. Bytes always bound it; depth and history say what is kept within them."""

    # Finished segments kept at least: the reference's ring. More for channels of small messages.
    depth: int = 5
    segment_bytes: int = 8 * 2**20  # one segment: 4 s (the longest cut) at 16 Mbit/s
    channel_bytes: int = 16 * 2**20  # all of them: 12 s at 10 Mbit/s
    history_s: float = 12.0  # how long a random-access segment and what follows it outlive the depth
    # Segments open at once: three in flight and one parked, twice, for a publisher that restarts.
    writers: int = 8
    readers: int = 64  # GETs at once, parked or flowing; a subscriber that preconnects holds two
    idle_s: float | None = 300.0  # without a byte, then the sweep closes it; None: only its owner does

    def __post_init__(self) -> None:
        assert self.depth >= 1, self.depth
        assert self.writers > REORDER, self.writers
        assert 0 < self.segment_bytes <= self.channel_bytes, (self.segment_bytes, self.channel_bytes)


DEFAULT_LIMITS: Final = ChannelLimits()


class Verdict(Enum):
    """What a reader of an index gets."""

    SERVE = "serve"
    PARK = "park"
    MISSING = "missing"
    CLOSED = "closed"


@dataclass(slots=True)
class Slot:
    """One segment's facts; it has begun when it has a byte or has ended without any."""

    random_access: bool
    size: int = 0
    finished_at: float | None = None  # seconds on the caller's clock

    @property
    def begun(self) -> bool:
        return self.size > 0 or self.finished_at is not None


class Ring:
    """Which segments a channel has. A method that forgets some returns their indices, for the caller to end.

    `head` is the next index to be written: it moves at a segment's first byte (or its empty end) and only
    forward, except when the publisher starts again: with a reset, or at an index already forgotten.
    `floor` is the lowest index that may still exist.
    """

    def __init__(self, limits: ChannelLimits) -> None:
        self.limits = limits
        self.head = 0
        self.floor = 0
        self.closed = False
        self.size = 0
        self.slots: dict[int, Slot] = {}

    def next_free(self) -> int:
        """The index that a writer without one gets: at or after the head, and nobody's yet."""
        index = self.head
        while index in self.slots:
            index += 1
        return index

    def position(self, requested: int) -> int:
        """Resolve NEXT, CURRENT and RANDOM_ACCESS; an index is itself."""
        if requested == NEXT:
            return self.head
        if requested == CURRENT:
            return max(self.head - 1, 0)
        return self.resume(-1) if requested == RANDOM_ACCESS else requested

    def open(self, index: int, *, random_access: bool = False, reset: bool = False) -> list[int]:
        """Give `index` to a new writer; whoever had it, finished or not, is forgotten.

        Raises ExhaustedError when too many segments are open, ChannelClosedError on a closed ring.
        """
        assert index >= 0, index
        if self.closed:
            raise ChannelClosedError("Stream not found")
        if index < self.floor or (reset and index < self.head):
            forgotten = self._drop([each for each in self.slots if each >= index])
            self.head = index
            self.floor = min(self.floor, max(index - REORDER + 1, 0))
        else:
            forgotten = self._drop([index] if index in self.slots else [])
        if self._unfinished() >= self.limits.writers:
            raise ExhaustedError("Too many segments are open", reason="TOO_MANY_WRITERS")
        self.slots[index] = Slot(random_access)
        return forgotten

    def unfinished_below(self, index: int) -> list[int]:
        """The segments that a reset at `index` ends."""
        return sorted(each for each, slot in self.slots.items() if each < index and slot.finished_at is None)

    def grow(self, index: int, size: int) -> list[int]:
        """Add bytes; the oldest segments go when the channel is full, even this one. Raises TooLargeError."""
        slot = self.slots[index]
        if slot.size + size > self.limits.segment_bytes:
            raise TooLargeError(
                "Segment too large", reason="SEGMENT_TOO_LARGE", limit=self.limits.segment_bytes
            )
        slot.size += size
        self.size += size
        self.head = max(self.head, index + 1)
        forgotten: list[int] = []
        while self.size > self.limits.channel_bytes:
            forgotten += self._forget_through(min(self.slots))
        return forgotten

    def finish(self, index: int, now: float) -> list[int]:
        """End a segment that has its bytes, or that is empty on purpose: it counts either way."""
        self.slots[index].finished_at = now
        self.head = max(self.head, index + 1)
        return self._trim(now)

    def abandon(self, index: int, now: float) -> list[int]:
        """End a segment whose writer broke: without a byte it was never there, so another may come."""
        if self.slots[index].begun:
            return self.finish(index, now)
        return self._drop([index])

    def close(self) -> list[int]:
        """No segment begins from now on; those still open are returned, to be ended where they are."""
        self.closed = True
        return self.unfinished_below(max(self.slots, default=0) + 1)

    def verdict(self, index: int) -> Verdict:
        """What a reader of `index` gets now; ask again after every change while it is PARK."""
        slot = self.slots.get(index)
        if slot is not None and slot.begun:
            return Verdict.SERVE
        if self.closed:
            behind = any(each > index and other.begun for each, other in self.slots.items())
            return Verdict.MISSING if behind else Verdict.CLOSED
        if slot is not None:
            return Verdict.PARK
        if index == 1 and self.head == 0:
            return Verdict.PARK  # a subscriber that preconnects 1 right after 0
        if index >= self.floor and self.head - REORDER <= index <= self.head:
            return Verdict.PARK
        return Verdict.MISSING

    def resume(self, after: int) -> int:
        """Where a reader goes that cannot have `after`: it should lose little and be able to decode.

        The newest random-access segment beyond it, else the oldest segment beyond it, else the head. A reader
        beyond the head itself outlived a restart of the publisher, and begins anew.
        """
        if after > self.head:
            after = -1
        beyond = [index for index, slot in self.slots.items() if index > after and slot.begun]
        flagged = [index for index in beyond if self.slots[index].random_access]
        return max(flagged) if flagged else min(beyond, default=self.head)

    def _unfinished(self) -> int:
        return sum(slot.finished_at is None for slot in self.slots.values())

    def _trim(self, now: float) -> list[int]:
        """Forget the oldest finished segments beyond the depth, save what a late reader decodes from."""
        held_from = max(
            (index for index, slot in self.slots.items() if slot.random_access and slot.begun), default=None
        )
        if held_from is not None:
            finished_at = self.slots[held_from].finished_at
            if finished_at is not None and now - finished_at > self.limits.history_s:
                held_from = None
        finished = sorted(index for index, slot in self.slots.items() if slot.finished_at is not None)
        beyond = [index for index in finished[: -self.limits.depth] if held_from is None or index < held_from]
        return self._forget_through(beyond[-1]) if beyond else []

    def _forget_through(self, index: int) -> list[int]:
        self.floor = index + 1
        return self._drop([each for each in self.slots if each <= index])

    def _drop(self, indices: list[int]) -> list[int]:
        for index in indices:
            self.size -= self.slots.pop(index).size
        return indices
