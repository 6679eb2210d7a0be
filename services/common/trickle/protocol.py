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
# Ours, on a 470 and on `/next`: where a reader loses least (see `Ring.resume`).
RESUME: Final = "Lp-Trickle-Resume"
# Ours, on a 470: how many segments a reader has missed that goes on there.
LOST: Final = "Lp-Trickle-Lost"
# Ours, on every answer to a reader: how many publishers the channel has had; it grows when one starts anew.
GENERATION: Final = "Lp-Trickle-Generation"
# Ours, on the answer to a reader: the segment before, by its index, ended before its writer said so. That is
# not told in the segment's own answer: reference clients take a response that breaks off for a dead stream.
CUT: Final = "Lp-Trickle-Cut"
TERMINATED: Final = "terminated"
STATUS_MISSING: Final = 470  # the channel exists, that segment does not
DEFAULT_CONTENT_TYPE: Final = "application/octet-stream"

NEXT: Final = -1  # the segment that will be written next
CURRENT: Final = -2  # the one being written, or just finished
RANDOM_ACCESS: Final = -3  # never on the wire: the newest flagged segment, else the oldest kept

REORDER: Final = 2  # a publisher keeps two POSTs open, so N may begin after N+1 has, but not after N+2
NAME_CHARACTERS: Final = 200
RESERVED: Final = "_"  # names that begin so are the server's: no client makes, writes or deletes them
CHANGES: Final = "_changes"  # the changefeed
_INDEX: Final = re.compile(r"[+-]?[0-9]{1,15}")  # 15 digits: exact in every client's number type


class ChannelClosedError(NotFoundError):
    """The channel has ended or never existed: a clean end for a reader, the last word for a writer."""

    default_reason = "CHANNEL_CLOSED"


class SegmentMissingError(NotFoundError):
    """The channel exists, that segment does not: too old (`latest` above it) or not to be expected yet.

    `resume`: where to go on, and `lost`: how many segments a reader has missed that does.
    """

    default_reason = "SEGMENT_MISSING"

    def __init__(self, index: int, *, latest: int, resume: int, lost: int, generation: int) -> None:
        super().__init__("Entry not found", index=index, latest=latest, resume=resume)
        self.index = index
        self.latest = latest
        self.resume = resume
        self.lost = lost
        self.generation = generation


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


def after_missing(
    wanted: int, *, latest: int, resume: int | None, joined: bool, restarted: bool = False
) -> int | None:
    """Where a subscriber goes after a 470; None: ask for `wanted` again a little later, it is still to come.

    `joined`: it has read from this channel before, so an index far beyond the head means that a publisher
    began anew; `restarted`: the server said so.
    """
    if restarted and resume is not None:
        return resume
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
    segments: int = 1024  # finished ones kept at most, whatever their history: empty ones have no bytes
    segment_bytes: int = 8 * 2**20  # one segment: 4 s (the longest cut) at 16 Mbit/s
    channel_bytes: int = 16 * 2**20  # all of them: 12 s at 10 Mbit/s
    history_s: float = 12.0  # how long a random-access segment and what follows it outlive the depth
    # Segments open at once: three in flight and one parked, twice, for a publisher that restarts.
    writers: int = 8
    readers: int = 64  # GETs at once, parked or flowing; a subscriber that preconnects holds two
    # Without a byte of a writer, and none of them told to go on waiting; then the sweep closes the channel.
    # None: only its owner does.
    idle_s: float | None = 300.0

    def __post_init__(self) -> None:
        assert 1 <= self.depth <= self.segments, (self.depth, self.segments)
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
    generation: int
    size: int = 0
    finished_at: float | None = None  # seconds on the caller's clock

    @property
    def begun(self) -> bool:
        return self.size > 0 or self.finished_at is not None


class Ring:
    """Which segments a channel has. A method that forgets some returns their indices, for the caller to end.

    `head` is the next index to be written: it moves at a segment's first byte (or its empty end) and only
    forward, except when a publisher starts anew. `generation` counts publishers: 1, and one more for each
    that started anew; `origin` is where the newest of them began. `floor` is the lowest index that may exist.
    """

    def __init__(self, limits: ChannelLimits) -> None:
        self.limits = limits
        self.head = 0
        self.floor = 0
        self.generation = 1
        self.origin = 0
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

        A publisher starts anew with a reset, or where `_restarting` says so: what the one before it wrote
        from there on is forgotten, and what it left open below is to be ended. Raises ExhaustedError when too
        many segments are open, ChannelClosedError on a closed ring; then nothing has changed.
        """
        assert index >= 0, index
        if self.closed:
            raise ChannelClosedError("Stream not found")
        restarts = self._restarting(index)
        back = restarts or (reset and index < self.head)
        forgotten = [each for each in self.slots if each == index or (back and each > index)]
        left = [] if restarts or reset else self.unfinished_below(index)
        kept = [each for each in self._unfinished() if each > index and each not in forgotten]
        if len(left) + len(kept) >= self.limits.writers:
            raise ExhaustedError("Too many segments are open", reason="TOO_MANY_WRITERS", retry_after_s=1)
        if back:
            self.head = index
            self.floor = min(self.floor, max(index - REORDER + 1, 0))
        else:
            self.floor = min(self.floor, index)
        if restarts or (reset and (back or self.head > 0)):
            self.generation += 1
            self.origin = index
        self._drop(forgotten)
        self.slots[index] = Slot(random_access, self.generation)
        return forgotten

    def _restarting(self, index: int) -> bool:
        """Whether a writer of `index` is a new publisher, one that knows nothing of the head.

        It is when that segment has begun and is older than a late arrival, or a retry of one that is recent
        or open, can be. One that begins at 0 again is always new, unless its 1 came before its 0.
        """
        recent = index >= self.head - REORDER
        slot = self.slots.get(index)
        if slot is None:
            return index < self.floor and (index == 0 or not recent)
        if not slot.begun or (recent and slot.generation != self.generation):
            return False
        return index == 0 or (slot.finished_at is not None and not recent)

    def unfinished_below(self, index: int) -> list[int]:
        """The segments that a publisher that starts anew at `index` ends."""
        return [each for each in self._unfinished() if each < index]

    def grow(self, index: int, size: int) -> list[int]:
        """Add bytes; the oldest segments go when the channel is full, even this one. Raises TooLargeError."""
        slot = self.slots[index]
        if slot.size + size > self.limits.segment_bytes:
            raise TooLargeError(
                "Segment too large", reason="SEGMENT_TOO_LARGE", limit=self.limits.segment_bytes
            )
        slot.size += size
        self.size += size
        if index >= self.head:
            self.head = index + 1
        if self.size <= self.limits.channel_bytes:
            return []
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
        return self._unfinished()

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

    def left_behind(self, index: int, generation: int) -> bool:
        """Whether a reader of `index` since `generation` waits for what will never come.

        A publisher that started anew below it means another segment by that index, if it ever gets there.
        """
        return generation != self.generation and index > self.origin

    def missing(self, index: int) -> SegmentMissingError:
        """What a reader of `index` is told that gets nothing."""
        resume = self.resume(index)
        lost = max(resume - index, 0) if index <= self.head else 0
        return SegmentMissingError(
            index, latest=self.head, resume=resume, lost=lost, generation=self.generation
        )

    def started_anew(self, index: int) -> SegmentMissingError:
        """What a reader is told that is `left_behind`; who knows only `latest` finds the publisher too."""
        resume = self.resume(self.origin - 1)
        lost = resume - self.origin
        return SegmentMissingError(
            index, latest=self.origin, resume=resume, lost=lost, generation=self.generation
        )

    def resume(self, after: int) -> int:
        """Where a reader goes that cannot have `after`: it should lose little and be able to decode.

        The newest random-access segment beyond it, else the oldest segment beyond it, else the head. A reader
        beyond the head itself outlived a publisher, and begins where the next one did.
        """
        if after > self.head:
            after = self.origin - 1
        beyond = [index for index, slot in self.slots.items() if index > after and slot.begun]
        flagged = [index for index in beyond if self.slots[index].random_access]
        return max(flagged) if flagged else min(beyond, default=self.head)

    def _unfinished(self) -> list[int]:
        return sorted(index for index, slot in self.slots.items() if slot.finished_at is None)

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
        beyond = beyond[-1:] + finished[: -self.limits.segments]
        return self._forget_through(max(beyond)) if beyond else []

    def _forget_through(self, index: int) -> list[int]:
        self.floor = index + 1
        return self._drop([each for each in self.slots if each <= index])

    def _drop(self, indices: list[int]) -> list[int]:
        for index in indices:
            self.size -= self.slots.pop(index).size
        return indices
