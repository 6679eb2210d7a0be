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


@pytest.mark.parametrize(
    ("written", "index", "restarts"),
    [
        (9, 8, False),  # the newest once more: a retry
        (9, 7, False),  # the one before it: its retry came after the next one had begun
        (9, 6, True),  # older than any retry
        (9, 2, True),  # forgotten
        (9, 9, False),
        (9, 12, False),
        (1, 0, True),  # who begins at 0 again knows nothing of the 0 before
        (2, 0, True),
        (2, 1, False),
        (0, 0, False),
    ],
)
def test_a12_a_publisher_starts_anew_at_an_index_that_no_retry_explains(
    written: int, index: int, restarts: bool
) -> None:
    ring = ring_of(written)
    before = set(ring.slots)
    forgotten = ring.open(index)
    assert (ring.generation, ring.origin) == ((2, index) if restarts else (1, 0))
    assert ring.head == (index if restarts else written)
    assert set(forgotten) == {each for each in before if each == index or (restarts and each > index)}


def test_an_open_segment_can_be_sent_again_however_old_it_is() -> None:
    ring = ring_of(4)
    ring.open(4)
    ring.grow(4, 1)
    for index in range(5, 8):
        write(ring, index)
    assert ring.open(4) == [4]
    assert (ring.generation, ring.head) == (1, 8)


def test_an_index_that_never_began_is_late_and_no_restart() -> None:
    ring = ring_of(9)
    write(ring, 100)
    write(ring, 50)
    assert (ring.generation, ring.head, ring.verdict(50)) == (1, 101, Verdict.SERVE)


def test_a12_a_restarted_publishers_1_may_come_before_its_0() -> None:
    ring = ring_of(4)
    ring.open(1)
    assert (ring.generation, ring.head) == (2, 1)
    assert ring.open(0) == [0]
    assert (ring.generation, sorted(ring.slots)) == (2, [0, 1])


def test_a12_a_reset_starts_anew_at_the_head_and_keeps_what_was_written() -> None:
    ring = ring_of(4)
    assert ring.open(4, reset=True) == []
    assert (ring.generation, ring.origin, ring.head, sorted(ring.slots)) == (2, 4, 4, [0, 1, 2, 3, 4])
    ring.open(2, reset=True)
    assert (ring.generation, ring.origin, ring.head, sorted(ring.slots)) == (3, 2, 2, [0, 1, 2])


def test_a_reset_of_a_channel_that_nobody_wrote_is_no_restart() -> None:
    ring = Ring(ChannelLimits())
    ring.open(0, reset=True)
    assert ring.generation == 1


def test_a12_a_reader_beyond_a_new_publisher_is_sent_to_its_first_segment() -> None:
    ring = ring_of(57)
    ring.open(0)
    assert [ring.left_behind(index, 1) for index in (0, 1, 57)] == [False, True, True]
    assert not ring.left_behind(57, 2)
    told = ring.started_anew(57)
    assert (told.latest, told.resume, told.lost, told.generation) == (0, 0, 0, 2)
    for index in range(7):
        write(ring, index)
    told = ring.started_anew(57)
    assert (told.latest, told.resume, told.lost) == (0, 2, 2)
    assert (ring.missing(57).latest, ring.missing(57).resume) == (7, 2)


def test_a_reader_of_what_is_gone_is_told_how_many_it_lost() -> None:
    ring = ring_of(9)
    told = ring.missing(1)
    assert (told.latest, told.resume, told.lost) == (9, 4, 3)
    assert ring.missing(12).lost == 0


def test_a_refused_writer_changes_nothing() -> None:
    ring = Ring(ChannelLimits(writers=3))
    write(ring, 0)
    for index in range(1, 4):
        ring.open(index)
    with pytest.raises(ExhaustedError):
        ring.open(4)
    assert (sorted(ring.slots), ring.generation) == ([0, 1, 2, 3], 1)
    assert ring.open(4, reset=True) == []  # what its predecessor left open does not count


def test_finished_segments_are_bounded_in_number_whatever_their_history() -> None:
    ring = Ring(ChannelLimits(depth=2, segments=3, history_s=1e9))
    for index in range(4):
        ring.open(index, random_access=index == 0)
        ring.finish(index, now=0.0)
    assert sorted(ring.slots) == [1, 2, 3]


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

    limits = ChannelLimits(depth=3, segments=6, segment_bytes=8, channel_bytes=20, history_s=5.0, writers=4)

    @initialize()
    def begin(self) -> None:
        self.ring = Ring(self.limits)
        self.sizes: dict[int, int] = {}
        self.finished: dict[int, float] = {}
        self.flagged: set[int] = set()
        self.publishers: dict[int, int] = {}
        self.generation = 1
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
        restarts = self.restarts(index)
        back = restarts or (reset and index < self.head)
        expected = [each for each in self.sizes if each == index or (back and each > index)]
        stays = set(self.open_indices()) - set(expected)
        if restarts or reset:
            stays = {each for each in stays if each > index}
        if len(stays) >= self.limits.writers:
            with pytest.raises(ExhaustedError):
                self.ring.open(index, random_access=flagged, reset=reset)
            return
        assert sorted(self.ring.open(index, random_access=flagged, reset=reset)) == sorted(expected)
        self.forget(expected)
        self.sizes[index] = 0
        if flagged:
            self.flagged.add(index)
        if restarts or (reset and self.head > 0):
            self.generation += 1
            assert self.ring.origin == index
        if back:
            self.head = index
        self.publishers[index] = self.generation
        for left in self.ring.unfinished_below(index) if restarts or reset else []:
            if left in self.sizes:
                self.settle(left, broke=True)

    def restarts(self, index: int) -> bool:
        """What A12 says, from the model's own memory of who wrote what."""
        retried = index >= self.head - REORDER
        if index not in self.sizes:
            return index < self.ring.floor and (index == 0 or not retried)
        if not self.begun(index) or (retried and self.publishers[index] != self.generation):
            return False
        return index == 0 or (index in self.finished and not retried)

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
        self.settle(data.draw(st.sampled_from(self.open_indices())), broke=broke)

    def settle(self, index: int, *, broke: bool) -> None:
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
        kept &= set(sorted(self.finished)[-self.limits.segments :])
        gone = max(self.finished.keys() - kept, default=-1)
        assert sorted(forgotten) == sorted(each for each in self.sizes if each <= gone)
        self.forget(forgotten)

    def begun(self, index: int) -> bool:
        return self.sizes.get(index, 0) > 0 or index in self.finished

    @invariant()
    def agrees(self) -> None:
        assert (self.ring.head, self.ring.generation) == (self.head, self.generation)
        assert len(self.finished) <= self.limits.segments
        assert len(self.open_indices()) <= self.limits.writers
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
