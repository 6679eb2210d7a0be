"""The ring's rules: the reference's where it is right, and where it is not, ours."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from services.common.errors import ExhaustedError, InvalidError, TooLargeError
from services.common.trickle.protocol import (
    CURRENT,
    NEXT,
    RANDOM_ACCESS,
    REORDER,
    ChannelClosedError,
    ChannelLimits,
    Ring,
    Verdict,
    after_missing,
    parse_index,
    parse_name,
)


def ring_of(count: int, limits: ChannelLimits | None = None, size: int = 1) -> Ring:
    ring = Ring(limits or ChannelLimits())
    for index in range(count):
        write(ring, index, size)
    return ring


def write(ring: Ring, index: int, size: int = 1, *, random_access: bool = False, now: float = 0.0) -> None:
    ring.open(index, random_access=random_access)
    ring.grow(index, size)
    ring.finish(index, now)


@pytest.mark.parametrize(
    ("text", "lowest", "index"), [("0", 0, 0), ("+7", 0, 7), ("-1", NEXT, -1), ("-2", -2, -2)]
)
def test_an_index_is_a_signed_decimal(text: str, lowest: int, index: int) -> None:
    assert parse_index(text, lowest=lowest) == index


@pytest.mark.parametrize("text", ["", "-1", "1.0", "1_0", " 1", "x", "next", "٣", "9" * 16, "0x1", "--1"])
def test_anything_else_is_invalid(text: str) -> None:
    with pytest.raises(InvalidError) as caught:
        parse_index(text)
    assert caught.value.reason == "INVALID_INDEX"


@given(st.text())
def test_arbitrary_text_is_an_index_or_invalid(text: str) -> None:
    with contextlib.suppress(InvalidError):
        assert parse_index(text) >= 0


@given(st.text())
def test_arbitrary_text_is_a_name_or_invalid(text: str) -> None:
    with contextlib.suppress(InvalidError):
        assert parse_name(text) == text


@pytest.mark.parametrize(
    ("wanted", "latest", "resume", "joined", "expected"),
    [
        (3, 9, None, True, 9),  # behind a server that says nothing more: to its head
        (3, 9, 7, True, 7),  # behind ours: to where least is lost
        (3, 9, 2, True, 9),  # never backwards
        (9, 9, None, True, None),  # the very next one: it is still to come
        (10, 9, 4, False, None),  # an explicit start in the future waits for it
        (57, 1, None, True, 1),  # the publisher began anew
        (57, 1, 0, True, 0),
    ],
)
def test_a_subscriber_knows_where_to_go_after_a_470(
    wanted: int, latest: int, resume: int | None, joined: bool, expected: int | None
) -> None:
    assert after_missing(wanted, latest=latest, resume=resume, joined=joined) == expected


def test_the_last_five_of_nine_segments_are_kept_and_the_tenth_is_awaited() -> None:
    ring = ring_of(9)
    verdicts = {index: ring.verdict(index) for index in (2, 3, 4, 8, 9, 10)}
    assert verdicts == {
        2: Verdict.MISSING,
        3: Verdict.MISSING,
        4: Verdict.SERVE,
        8: Verdict.SERVE,
        9: Verdict.PARK,
        10: Verdict.MISSING,
    }


def test_aliases_resolve_to_the_head_and_to_the_one_before() -> None:
    virgin, ring = Ring(ChannelLimits()), ring_of(3)
    assert (virgin.position(NEXT), virgin.position(CURRENT)) == (0, 0)
    assert (ring.position(NEXT), ring.position(CURRENT), ring.position(1)) == (3, 2, 1)


def test_the_head_moves_at_the_first_byte_and_not_before() -> None:
    ring = Ring(ChannelLimits())
    ring.open(0)
    assert ring.head == 0
    ring.grow(0, 1)
    assert ring.head == 1


def test_an_empty_segment_counts() -> None:
    ring = Ring(ChannelLimits())
    ring.open(0)
    ring.finish(0, now=0.0)
    assert (ring.head, ring.verdict(0)) == (1, Verdict.SERVE)


def test_a_writer_that_broke_before_its_first_byte_was_never_there() -> None:
    ring = Ring(ChannelLimits())
    ring.open(0)
    assert ring.abandon(0, now=0.0) == [0]
    assert (ring.head, ring.verdict(0)) == (0, Verdict.PARK)


def test_a_virgin_channel_parks_a_reader_of_one() -> None:
    ring = Ring(ChannelLimits())
    assert [ring.verdict(index) for index in (0, 1, 2)] == [Verdict.PARK, Verdict.PARK, Verdict.MISSING]


def test_a_late_segment_moves_nothing_back() -> None:
    ring = Ring(ChannelLimits())
    ring.open(1)
    ring.grow(1, 1)
    assert ring.verdict(0) is Verdict.PARK
    write(ring, 0)
    assert (ring.head, ring.verdict(0)) == (2, Verdict.SERVE)


def test_a_skipped_index_is_missing_once_the_one_after_the_next_begins() -> None:
    ring = Ring(ChannelLimits())
    write(ring, 1)
    assert ring.verdict(0) is Verdict.PARK
    write(ring, 2)
    assert (ring.verdict(0), ring.resume(0)) == (Verdict.MISSING, 1)


def test_gaps_are_allowed() -> None:
    ring = ring_of(9)
    write(ring, 100)
    assert (ring.head, ring.verdict(100), ring.verdict(9)) == (101, Verdict.SERVE, Verdict.MISSING)


def test_a_second_post_of_an_index_replaces_it() -> None:
    ring = ring_of(2)
    assert ring.open(1) == [1]
    assert (ring.verdict(1), ring.head) == (Verdict.PARK, 2)


def test_a_publisher_at_a_forgotten_index_starts_again() -> None:
    ring = ring_of(57)
    assert ring.open(0) == [52, 53, 54, 55, 56]
    ring.grow(0, 1)
    assert (ring.head, ring.verdict(57), ring.resume(57)) == (1, Verdict.MISSING, 0)


def test_a_restarted_publisher_may_preconnect_in_reverse_order() -> None:
    ring = ring_of(57)
    ring.open(1)
    assert ring.open(0) == []
    ring.grow(0, 1)
    assert ring.verdict(1) is Verdict.PARK


def test_only_a_reset_moves_the_head_back_inside_the_ring() -> None:
    ring = ring_of(4)
    ring.open(1)
    assert ring.head == 4
    ring.open(2, reset=True)
    assert (ring.head, sorted(ring.slots)) == (2, [0, 1, 2])


def test_a_reset_names_the_open_segments_below_it() -> None:
    ring = ring_of(2)
    ring.open(2)
    ring.open(3)
    assert ring.unfinished_below(3) == [2]


def test_the_next_free_index_passes_over_parked_writers() -> None:
    ring = ring_of(2)
    ring.open(2)
    assert ring.next_free() == 3


def test_too_many_open_segments_are_refused() -> None:
    ring = Ring(ChannelLimits(writers=3))
    for index in range(3):
        ring.open(index)
    with pytest.raises(ExhaustedError, match="open"):
        ring.open(3)


def test_a_segment_over_its_cap_is_refused() -> None:
    ring = Ring(ChannelLimits(segment_bytes=10, channel_bytes=10))
    ring.open(0)
    ring.grow(0, 10)
    with pytest.raises(TooLargeError):
        ring.grow(0, 1)


def test_bytes_bound_the_ring_below_its_depth() -> None:
    ring = ring_of(3, ChannelLimits(segment_bytes=10, channel_bytes=20), size=10)
    assert (sorted(ring.slots), ring.size, ring.verdict(0)) == ([1, 2], 20, Verdict.MISSING)


def test_the_newest_random_access_segment_and_what_follows_outlive_the_depth() -> None:
    ring = Ring(ChannelLimits(depth=2, history_s=12.0))
    for index in range(8):
        write(ring, index, random_access=index in {0, 3}, now=float(index))
    assert (sorted(ring.slots), ring.position(RANDOM_ACCESS)) == ([3, 4, 5, 6, 7], 3)


def test_history_bounds_what_a_random_access_segment_keeps() -> None:
    ring = Ring(ChannelLimits(depth=2, history_s=12.0))
    for index in range(8):
        write(ring, index, random_access=index == 0, now=index * 4.0)
    assert sorted(ring.slots) == [6, 7]
    assert ring.position(RANDOM_ACCESS) == 6  # none is flagged any more: the oldest kept


def test_a_flag_counts_from_the_first_byte() -> None:
    ring = ring_of(2)
    ring.open(2, random_access=True)
    assert ring.resume(NEXT) == 0
    ring.grow(2, 1)
    assert ring.resume(NEXT) == 2


def test_a_closed_ring_serves_what_is_left_and_opens_nothing() -> None:
    ring = ring_of(9)
    ring.open(9)
    assert ring.close() == [9]
    assert [ring.verdict(index) for index in (2, 8, 9)] == [Verdict.MISSING, Verdict.SERVE, Verdict.CLOSED]
    with pytest.raises(ChannelClosedError):
        ring.open(10)


class RingAgainstModel(RuleBasedStateMachine):
    """Random writers against a model that forgets nothing by itself: it checks the ring's word."""

    limits = ChannelLimits(depth=3, segment_bytes=8, channel_bytes=20, history_s=5.0, writers=4)

    @initialize()
    def begin(self) -> None:
        self.ring = Ring(self.limits)
        self.sizes: dict[int, int] = {}
        self.finished: dict[int, float] = {}
        self.flagged: set[int] = set()
        self.head = 0
        self.now = 0.0

    def forget(self, indices: list[int]) -> None:
        for index in indices:
            del self.sizes[index]
            self.finished.pop(index, None)
            self.flagged.discard(index)

    def open_indices(self) -> list[int]:
        return sorted(self.sizes.keys() - self.finished.keys())

    @rule(seconds=st.floats(0.0, 3.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(ahead=st.integers(-9, 4), flagged=st.booleans(), reset=st.booleans())
    def open(self, ahead: int, flagged: bool, reset: bool) -> None:
        index = max(self.head + ahead, 0)
        again = index < self.ring.floor or (reset and index < self.head)
        expected = [each for each in self.sizes if each == index or (again and each > index)]
        full = len(set(self.open_indices()) - set(expected)) >= self.limits.writers
        try:
            forgotten = self.ring.open(index, random_access=flagged, reset=reset)
        except ExhaustedError:
            assert full
            self.forget(expected)
        else:
            assert not full
            assert sorted(forgotten) == sorted(expected)
            self.forget(forgotten)
            self.sizes[index] = 0
            if flagged:
                self.flagged.add(index)
        self.head = index if again else self.head

    @precondition(lambda self: self.open_indices())
    @rule(data=st.data(), size=st.integers(1, 9))
    def grow(self, data: st.DataObject, size: int) -> None:
        index = data.draw(st.sampled_from(self.open_indices()))
        if self.sizes[index] + size > self.limits.segment_bytes:
            with pytest.raises(TooLargeError):
                self.ring.grow(index, size)
            return
        forgotten = self.ring.grow(index, size)
        self.sizes[index] += size
        self.head = max(self.head, index + 1)
        for each in sorted(forgotten):
            assert sum(self.sizes.values()) > self.limits.channel_bytes
            assert each == min(self.sizes)
            self.forget([each])

    @precondition(lambda self: self.open_indices())
    @rule(data=st.data(), broke=st.booleans())
    def end(self, data: st.DataObject, broke: bool) -> None:
        index = data.draw(st.sampled_from(self.open_indices()))
        if broke and not self.sizes[index]:
            assert self.ring.abandon(index, self.now) == [index]
            self.forget([index])
            return
        self.finished[index] = self.now
        self.head = max(self.head, index + 1)
        forgotten = (self.ring.abandon if broke else self.ring.finish)(index, self.now)
        newest = max((each for each in self.flagged if self.begun(each)), default=None)
        aged = newest in self.finished and self.now - self.finished[newest] > self.limits.history_s
        held = set() if newest is None or aged else {each for each in self.finished if each >= newest}
        kept = held | set(sorted(self.finished)[-self.limits.depth :])
        gone = max(self.finished.keys() - kept, default=-1)
        assert sorted(forgotten) == sorted(each for each in self.sizes if each <= gone)
        self.forget(forgotten)

    def begun(self, index: int) -> bool:
        return self.sizes.get(index, 0) > 0 or index in self.finished

    @invariant()
    def agrees(self) -> None:
        assert self.ring.head == self.head
        assert {index: slot.size for index, slot in self.ring.slots.items()} == self.sizes
        assert self.ring.size == sum(self.sizes.values()) <= self.limits.channel_bytes
        assert all(index >= self.ring.floor for index in self.sizes)
        for index in range(self.head + 4):
            verdict = self.ring.verdict(index)
            assert (verdict is Verdict.SERVE) == self.begun(index)
            if verdict is Verdict.MISSING:
                assert index not in self.sizes
                assert not self.head - REORDER <= index <= self.head or index < self.ring.floor
                where = self.ring.resume(index)
                assert self.begun(where) or where == self.head


RingAgainstModel.TestCase.settings = settings(stateful_step_count=30, deadline=None)
TestRing = RingAgainstModel.TestCase
