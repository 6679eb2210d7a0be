"""Where one output gives way to the next: in whatever order their pictures come, or do not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.media.mpegts import CLOCK_HZ, AccessUnit, Codec
from services.ingest.bridge.handover import (
    AT_ONCE,
    MARGIN,
    PATIENCE_S,
    RETRY_S,
    Handover,
    Room,
    Shown,
)

FRAME = CLOCK_HZ // 25
FRAME_S = 1 / 25
ROOM = Room(pictures=12, octets=1000)


def picture(number: int, *, key: bool = False) -> AccessUnit:
    return AccessUnit(Codec.H264, number * FRAME, number * FRAME, b"x", keyframe=key)


def heard(pts: int) -> AccessUnit:
    return AccessUnit(Codec.OPUS, pts, pts, b"s", keyframe=True)


def numbers(shown: list[Shown], *, new: bool | None = None) -> list[int]:
    return [
        one.unit.pts // FRAME
        for one in shown
        if one.unit.codec is Codec.H264 and (new is None or one.new is new)
    ]


@dataclass
class World:
    """A handover, what went in and what came out."""

    over: Handover
    in_pts: int = 0
    now_s: float = 0.0
    out: list[Shown] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)

    def _keep(self, shown: list[Shown]) -> list[Shown]:
        self.out += shown
        if self.over.ask is not None:
            self.asked.append(self.over.ask)
            self.over.ask = None
        return shown

    def old(self, *which: int) -> list[int]:
        return [n for number in which for n in self._old(picture(number))]

    def _old(self, unit: AccessUnit) -> list[int]:
        self.in_pts = max(self.in_pts, unit.pts)
        return numbers(self._keep(self.over.old(unit, self.now_s)))

    def new(self, *which: int, key: bool = False) -> list[int]:
        return [n for number in which for n in self._new(picture(number, key=key))]

    def _new(self, unit: AccessUnit) -> list[int]:
        return numbers(self._keep(self.over.new(unit, self.now_s, self.in_pts)))

    def promote(self) -> list[int]:
        return numbers(self._keep(self.over.promote(self.now_s, self.in_pts)))

    def flows(self, flows: bool) -> list[int]:
        return numbers(self._keep(self.over.old_flows(flows, self.now_s, self.in_pts)))

    def wait(self, seconds: float) -> list[int]:
        self.now_s += seconds
        return numbers(self._keep(self.over.tick(self.now_s, self.in_pts)))


def world(delivered: int = 0, *, flows: bool = True) -> World:
    return World(Handover(delivered=delivered * FRAME, flows=flows, room=ROOM), in_pts=delivered * FRAME)


# --- planned


def test_without_a_wish_the_old_output_passes_and_the_candidates_waits() -> None:
    w = world()
    w.new(1, key=True)
    assert w.old(1, 2, 3) == [1, 2, 3]
    assert w.new(2, 3) == []
    assert w.over.shows


def test_a_picture_that_is_not_newer_is_not_shown_again() -> None:
    w = world()
    assert w.old(1, 3, 2, 3, 4) == [1, 3, 4]


def test_the_new_output_begins_at_its_key_frame_when_the_old_one_has_given_all_below() -> None:
    w = world()
    w.old(1)
    w.new(3, key=True)
    w.new(4)
    assert w.promote() == []
    assert w.over.seam == 3 * FRAME
    assert w.old(2) == [2]
    assert w.new(5) == []
    assert w.old(3) == [3, 4, 5]
    assert w.over.done
    assert numbers(w.out, new=True) == [3, 4, 5]


def test_a_candidate_that_is_behind_is_asked_for_a_key_frame_ahead_and_the_old_output_waits_there() -> None:
    w = world()
    w.promote()
    w.old(1, 2)
    assert w.asked == [], "whether it works is not known yet"
    w.new(1, key=True)
    assert w.asked == [2 * FRAME + MARGIN]
    seam = -(-w.asked[0] // FRAME)
    below, above = range(3, seam), range(seam, seam + 3)
    assert w.old(*below, *above) == list(below)
    assert w.new(*range(2, seam)) == []
    assert w.new(seam, key=True) == [seam]
    assert w.over.done
    assert w.over.held == 3
    assert numbers(w.out) == list(range(1, seam + 1))


def test_what_the_candidate_dropped_before_its_key_frame_is_taken_from_the_old_output() -> None:
    w = world()
    w.promote()
    w.old(1, 2)
    w.new(1, key=True)
    w.old(*range(3, 12))
    assert w.new(9, key=True) == [5, 6, 7, 8, 9]
    assert numbers(w.out, new=True) == [9]
    assert numbers(w.out) == list(range(1, 10))


def test_when_the_seam_is_known_what_the_old_output_gives_below_it_is_not_held_any_more() -> None:
    w = world()
    w.old(1)
    w.new(1, key=True)
    w.promote()
    assert w.asked == [FRAME + MARGIN]
    w.new(7, key=True)
    assert w.over.seam == 7 * FRAME
    assert w.old(2, 3, 4, 5, 6, 7) == [2, 3, 4, 5, 6, 7]
    assert numbers(w.out, new=True) == [7]


def test_a_candidate_that_never_shows_a_key_frame_costs_nothing() -> None:
    w = world()
    w.promote()
    for number in range(1, 200):
        assert w.old(number) == [number]
        w.new(number)
        w.wait(FRAME_S)
    assert w.asked == []


def test_a_candidate_that_does_not_do_as_it_is_asked_costs_one_short_freeze_and_is_asked_again_later() -> (
    None
):
    w = world()
    w.promote()
    w.old(1)
    w.new(1, key=True)
    assert len(w.asked) == 1
    assert w.old(2, 3, 4, 5, 6) == [2, 3]
    assert w.wait(PATIENCE_S + 0.01) == [4, 5, 6]
    w.new(5)
    assert w.old(7) == [7]
    assert len(w.asked) == 1
    w.wait(RETRY_S)
    assert len(w.asked) == 1, "it is not known when it makes one by itself"
    w.new(7, key=True)
    assert len(w.asked) == 2


def test_a_candidate_that_makes_key_frames_by_itself_is_met_a_little_before_the_next_one() -> None:
    w = world()
    w.promote()
    w.old(1)
    w.new(1, key=True)
    w.old(*range(2, 12))
    w.wait(PATIENCE_S + 0.01)
    w.new(11, key=True)
    assert w.old(12) == [12]
    w.wait(RETRY_S)
    assert w.asked[-1] == 21 * FRAME - MARGIN
    assert w.old(*range(13, 24)) == list(range(13, 19))
    assert w.new(21, key=True) == [19, 20, 21]
    assert w.over.done


def test_a_candidate_that_fell_far_behind_is_not_waited_for() -> None:
    w = world()
    w.new(1, key=True)
    w.old(*range(1, 60))
    w.promote()
    w.wait(0.1)
    assert w.asked == []


def test_an_old_output_that_is_too_slow_below_the_seam_is_not_waited_for_for_ever() -> None:
    w = world(delivered=1)
    w.new(5, key=True)
    w.promote()
    assert w.over.seam == 5 * FRAME
    assert w.wait(PATIENCE_S - 0.01) == []
    assert w.wait(0.02) == [5]


def test_a_pause_of_the_source_is_not_taken_for_the_distance_of_key_frames() -> None:
    w = world()
    w.promote()
    w.old(1)
    w.new(1, key=True)
    w.old(*range(2, 12))
    w.wait(PATIENCE_S + 0.01)
    w.old(2000, 2010)
    w.new(2000, key=True)
    w.wait(RETRY_S)
    assert len(w.asked) == 1, "one key frame tells nothing"
    w.new(2010, key=True)
    assert w.asked[-1] == 2020 * FRAME - MARGIN


# --- the old one fails


@pytest.mark.parametrize("first", ["promote", "stall"])
def test_after_an_old_output_that_stalls_the_first_key_frame_above_it_is_shown_at_once(first: str) -> None:
    w = world()
    w.old(1, 2)
    w.new(2, key=True)
    w.new(3)
    steps: list[Callable[[], list[int]]] = [w.promote, lambda: w.flows(False)]
    for step in steps if first == "promote" else reversed(steps):
        assert step() == []
    assert w.asked[-1] == AT_ONCE
    assert w.new(4) == []
    assert w.new(5, key=True) == [5]
    assert w.over.done


def test_what_the_candidate_has_ready_when_it_is_wished_for_is_shown_from_its_first_key_frame_on() -> None:
    w = world(delivered=3, flows=False)
    w.new(5, key=True)
    w.new(6, 7)
    w.new(8, key=True)
    assert w.promote() == [5, 6, 7, 8]


def test_what_was_held_of_an_output_that_then_breaks_is_shown() -> None:
    w = world()
    w.promote()
    w.old(1)
    w.new(1, key=True)
    assert w.old(2, 3, 4, 5, 6) == [2, 3]
    assert w.flows(False) == [4, 5, 6]
    assert w.new(6, key=True) == []
    assert w.new(8, key=True) == [8]


def test_a_candidate_that_is_let_go_leaves_everything_as_it_was() -> None:
    w = world()
    w.promote()
    w.old(1)
    w.new(1, key=True)
    w.old(2, 3, 4, 5)
    assert numbers(w.over.give_up()) == [4, 5]


def test_without_input_the_candidate_has_the_output_at_once_and_without_a_picture() -> None:
    w = world(delivered=4)
    w.new(3, key=True)
    assert w.over.idle() == []
    assert not w.over.done, "nobody wished for it"
    w.promote()
    assert w.over.idle() == []
    assert w.over.done


# --- sound


def test_the_new_runners_sound_goes_on_where_the_old_ones_ended() -> None:
    w = world()
    w.old(1)
    w._keep(w.over.old(heard(FRAME), 0.0))
    w.new(2, key=True)
    for part in range(8):
        w._keep(w.over.new(heard(part * FRAME // 2), 0.0, w.in_pts))
    w._keep(w.over.old(heard(FRAME + FRAME // 2), 0.0))
    w.promote()
    w.old(2)
    sounds = [one.unit.pts for one in w.out if one.unit.codec is Codec.OPUS]
    assert sounds == [FRAME * half // 2 for half in range(2, 8)]
    assert [one.unit.pts for one in w.out if one.new] == sorted(one.unit.pts for one in w.out if one.new)


# --- any order

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("old"), st.integers(1, 3)),
        st.tuples(st.just("new"), st.integers(1, 3)),
        st.tuples(st.just("key"), st.integers(1, 3)),
        st.tuples(st.just("wait"), st.integers(1, 40)),
        st.tuples(st.just("stall"), st.just(0)),
        st.tuples(st.just("flow"), st.just(0)),
        st.tuples(st.just("promote"), st.just(0)),
    ),
    max_size=120,
)


@settings(max_examples=400)
@given(steps=STEPS, lead=st.integers(-8, 8), give_up=st.booleans())
def test_whatever_comes_when_viewers_get_each_picture_once_and_nothing_is_lost_below_the_seam(
    steps: list[tuple[str, int]], lead: int, give_up: bool
) -> None:
    w = world()
    old, new = 0, max(0, lead)
    given_old: list[int] = []
    given_new: list[int] = []
    held_since: float | None = None
    for step, much in steps:
        if w.over.done:
            break
        if step == "old":
            old += much
            given_old.append(old)
            w.old(old)
        elif step in {"new", "key"}:
            new += much
            given_new.append(new)
            w.new(new, key=step == "key")
        elif step == "wait":
            w.wait(much * FRAME_S)
        elif step == "promote":
            w.promote()
        else:
            w.flows(step == "flow")
        assert len(w.over._old.units) <= ROOM.pictures
        assert len(w.over._new.units) <= ROOM.pictures
        held = bool(w.over._old.units) and not w.over.done
        held_since = (held_since if held_since is not None else w.now_s) if held else None
        if held_since is not None and step == "wait":
            assert w.now_s - held_since <= PATIENCE_S + 40 * FRAME_S
    done = w.over.done
    if give_up and not done:
        w.out += w.over.give_up()
    shown, theirs = numbers(w.out), numbers(w.out, new=True)
    assert all(before < after for before, after in pairwise(shown)), shown
    assert [one.new for one in w.out] == sorted(one.new for one in w.out), "no way back"
    if done:
        seam = w.over.seam
        assert seam is not None
        first = next(one for one in w.out if one.new)
        assert first.unit.keyframe
        assert first.unit.pts == seam
        assert set(numbers(w.out, new=False)) == {n for n in given_old if n * FRAME < seam}
        assert theirs == [n for n in given_new if n * FRAME >= seam]
    elif give_up:
        assert shown == given_old, "as if there had been no candidate"
        assert theirs == []
