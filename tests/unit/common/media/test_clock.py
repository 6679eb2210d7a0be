from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import merge
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.media.clock import (
    CATCH_UP_S,
    FRAME_TICKS,
    LARGEST_JUMP,
    LARGEST_LEAD,
    ORIGIN_TICKS,
    Timeline,
)
from services.common.media.mpegts import WRAP, AccessUnit, Codec

FRAME_S = 1 / 30


def picture(pts: int, dts: int | None = None) -> AccessUnit:
    return AccessUnit(
        Codec.H264, pts % WRAP, (pts if dts is None else dts) % WRAP, b"picture", keyframe=False
    )


def sound(pts: int) -> AccessUnit:
    return AccessUnit(Codec.AAC, pts % WRAP, pts % WRAP, b"sound", keyframe=True)


def pts_of(unit: AccessUnit | None) -> int:
    assert unit is not None
    return unit.pts


def test_the_first_picture_of_a_session_is_at_the_origin() -> None:
    for first in (0, 123_456_789, WRAP - 1):
        timeline = Timeline()
        timeline.begin_source(7.0)
        assert pts_of(timeline.stamp(picture(first), 7.0)) == ORIGIN_TICKS
        assert pts_of(timeline.stamp(picture(first + 3000), 7.0 + FRAME_S)) == ORIGIN_TICKS + 3000


def test_nothing_but_the_times_of_a_unit_changes() -> None:
    timeline = Timeline()
    unit = AccessUnit(Codec.H264, 5, 5, b"picture", keyframe=True)
    assert timeline.stamp(unit, 0.0) == AccessUnit(
        Codec.H264, ORIGIN_TICKS, ORIGIN_TICKS, b"picture", keyframe=True
    )


def test_time_goes_on_over_a_wrap_of_the_source() -> None:
    timeline = Timeline()
    stamped = [timeline.stamp(picture(WRAP - 9000 + 3000 * index), index * FRAME_S) for index in range(10)]
    assert [pts_of(unit) for unit in stamped] == [ORIGIN_TICKS + 3000 * index for index in range(10)]
    assert timeline.rebased == 0


def test_time_goes_on_for_more_than_33_bits() -> None:
    timeline = Timeline()
    last = 0
    seconds = range(0, 400_000, 9)  # one wrap takes 95,444 s
    for second in seconds:
        last = pts_of(timeline.stamp(picture(90_000 * second), float(second)))
    assert last == ORIGIN_TICKS + 90_000 * seconds[-1] > 4 * WRAP
    assert timeline.rebased == 0


def test_b_frames_keep_their_distance_and_their_order() -> None:
    timeline = Timeline()
    display = [0, 3, 1, 2, 6, 4, 5]
    source = [
        picture(50_000 + 3000 * shown, 50_000 + 3000 * (index - 2)) for index, shown in enumerate(display)
    ]
    stamped = [timeline.stamp(unit, index * FRAME_S) for index, unit in enumerate(source)]
    assert [pts_of(unit) for unit in stamped] == [ORIGIN_TICKS + 3000 * shown for shown in display]
    assert [unit.pts - unit.dts for unit in stamped if unit] == [unit.pts - unit.dts for unit in source]
    assert timeline.dropped == 0


def test_a_reconnect_goes_on_by_wall_time() -> None:
    timeline = Timeline()
    timeline.begin_source(100.0)
    timeline.stamp(picture(5_000_000), 100.0)
    timeline.begin_source(103.0)
    assert pts_of(timeline.stamp(picture(0), 104.0)) == ORIGIN_TICKS + 4 * 90_000
    assert pts_of(timeline.stamp(picture(3000), 104.0 + FRAME_S)) == ORIGIN_TICKS + 4 * 90_000 + 3000
    assert timeline.rebased == 0


def test_a_reconnect_within_no_time_goes_on_a_frame_later() -> None:
    timeline = Timeline()
    timeline.stamp(picture(5_000_000), 100.0)
    timeline.begin_source(100.0)
    assert pts_of(timeline.stamp(picture(0), 100.0)) == ORIGIN_TICKS + FRAME_TICKS


def test_a_reconnect_with_b_frames_keeps_the_decoding_order() -> None:
    timeline = Timeline()
    timeline.stamp(picture(3000), 0.0)
    timeline.begin_source(0.0)
    returned = timeline.stamp(picture(9000, 0), 0.0)
    assert returned is not None
    assert returned.dts > ORIGIN_TICKS
    assert returned.pts - returned.dts == 9000
    assert timeline.dropped == 0


def test_audio_before_the_first_picture_of_a_source_is_dropped() -> None:
    timeline = Timeline()
    assert timeline.stamp(sound(1000), 0.0) is None
    timeline.stamp(picture(3000), 0.0)
    assert pts_of(timeline.stamp(sound(4000), 0.0)) == ORIGIN_TICKS + 1000
    timeline.begin_source(1.0)
    assert timeline.stamp(sound(90_000), 1.0) is None
    timeline.stamp(picture(91_000), 1.0)
    assert pts_of(timeline.stamp(sound(91_500), 1.0)) == ORIGIN_TICKS + 90_000 + 500
    assert timeline.dropped == 2


def test_audio_from_before_the_sessions_first_picture_is_dropped() -> None:
    timeline = Timeline()
    timeline.stamp(picture(90_000), 0.0)
    assert timeline.stamp(sound(89_999), 0.0) is None
    assert timeline.stamp(sound(90_000), 0.0) is not None


def test_audio_may_run_behind_its_video() -> None:
    timeline = Timeline()
    for index in range(10):
        timeline.stamp(picture(3000 * index), index * FRAME_S)
    assert pts_of(timeline.stamp(sound(1920), 10 * FRAME_S)) == ORIGIN_TICKS + 1920
    assert pts_of(timeline.stamp(sound(3840), 10 * FRAME_S)) == ORIGIN_TICKS + 3840


def test_a_source_without_video_holds_up_nobody() -> None:
    timeline = Timeline()
    timeline.stamp(picture(0), 0.0)
    timeline.begin_source(1.0)
    assert [timeline.stamp(sound(1920 * index), 1.0 + index / 50) for index in range(50)] == [None] * 50
    timeline.begin_source(5.0)
    assert pts_of(timeline.stamp(picture(777), 5.0)) == ORIGIN_TICKS + 5 * 90_000
    assert timeline.dropped == 50


def test_what_would_go_backwards_is_dropped() -> None:
    timeline = Timeline()
    timeline.stamp(picture(90_000), 0.0)
    timeline.stamp(sound(90_000), 0.0)
    assert timeline.stamp(picture(90_000), 0.1) is None
    assert timeline.stamp(picture(60_000), 0.1) is None
    assert timeline.stamp(sound(90_000), 0.1) is None
    assert timeline.stamp(picture(93_000), 0.1) is not None
    assert timeline.stamp(sound(91_920), 0.1) is not None
    assert timeline.dropped == 3
    assert timeline.rebased == 0


def test_a_jump_of_the_sources_clock_is_replaced_by_wall_time() -> None:
    for jump in (45_000 + LARGEST_JUMP + 1, 45_000 - LARGEST_JUMP - 1, 1 << 31, -(1 << 31)):
        timeline = Timeline()
        timeline.stamp(picture(0), 10.0)
        assert pts_of(timeline.stamp(picture(jump), 10.5)) == ORIGIN_TICKS + 45_000
        assert pts_of(timeline.stamp(picture(jump + 3000), 10.5 + FRAME_S)) == ORIGIN_TICKS + 48_000
        assert pts_of(timeline.stamp(sound(jump + 3000), 10.5 + FRAME_S)) == ORIGIN_TICKS + 48_000
        assert timeline.rebased == 1
        assert timeline.dropped == 0


def test_a_smaller_jump_forward_is_believed() -> None:
    timeline = Timeline()
    timeline.stamp(picture(0), 10.0)
    assert pts_of(timeline.stamp(picture(9 * 90_000), 10.1)) == ORIGIN_TICKS + 9 * 90_000
    assert timeline.rebased == 0


def test_a_source_that_was_silent_without_leaving_is_where_wall_time_says() -> None:
    stopped, running = Timeline(), Timeline()
    for timeline in (stopped, running):
        timeline.stamp(picture(0), 0.0)
    assert pts_of(stopped.stamp(picture(3000), 60.0)) == ORIGIN_TICKS + 60 * 90_000
    assert stopped.rebased == 1
    assert pts_of(running.stamp(picture(60 * 90_000), 60.0)) == ORIGIN_TICKS + 60 * 90_000
    assert running.rebased == 0


def test_a_unit_whose_two_times_are_far_apart_moves_nothing() -> None:
    timeline = Timeline()
    timeline.stamp(picture(0), 0.0)
    assert timeline.stamp(picture(3000, 1 << 30), FRAME_S) is None
    assert pts_of(timeline.stamp(picture(6000), 2 * FRAME_S)) == ORIGIN_TICKS + 6000
    assert timeline.rebased == 0


def test_a_clip_that_a_publisher_plays_again_and_again_goes_on() -> None:
    """Its clock steps back by less than what wall time tells, and would never be ahead again."""
    timeline = Timeline()
    out = [pts_of(timeline.stamp(picture(3000 * (index % 150)), index * FRAME_S)) for index in range(600)]
    steps = {later - earlier for earlier, later in pairwise(out)}
    assert steps == {3000}
    assert timeline.rebased == 3
    assert timeline.dropped == 0


def test_sound_with_another_clock_than_its_pictures_moves_nothing() -> None:
    timeline = Timeline()
    out: list[int] = []
    for index in range(300):
        out.append(pts_of(timeline.stamp(picture(3000 * index), index * FRAME_S)))
        assert timeline.stamp(sound((1 << 32) + 3000 * index), index * FRAME_S) is None
    assert out == [ORIGIN_TICKS + 3000 * index for index in range(300)]
    assert (timeline.rebased, timeline.dropped) == (0, 300)


# --- without wall time ----------------------------------------------------------------------------


@pytest.mark.parametrize("gap_s", [0.5, 11, 60, 3600])
def test_a_gap_in_a_file_is_kept(gap_s: float) -> None:
    timeline = Timeline()
    timeline.begin_source(None)
    gap = round(gap_s * 90_000)
    out = [pts_of(timeline.stamp(unit, None)) for unit in (picture(7000), sound(7000), picture(10_000))]
    out += [pts_of(timeline.stamp(unit, None)) for unit in (picture(10_000 + gap), sound(10_500 + gap))]
    assert [pts - ORIGIN_TICKS for pts in out] == [0, 0, 3000, 3000 + gap, 3500 + gap]
    assert (timeline.rebased, timeline.dropped) == (0, 0)


def test_a_picture_that_a_file_shows_for_a_minute_has_its_sound() -> None:
    timeline = Timeline()
    timeline.stamp(picture(0), None)
    sounds = [timeline.stamp(sound(1920 * index), None) for index in range(60 * 48_000 // 1024)]
    assert [pts_of(unit) for unit in sounds] == [ORIGIN_TICKS + 1920 * index for index in range(len(sounds))]
    assert pts_of(timeline.stamp(picture(60 * 90_000), None)) == ORIGIN_TICKS + 60 * 90_000


@pytest.mark.parametrize("length_s", [2, 40])
def test_a_file_whose_clock_begins_again_goes_on_a_frame_later(length_s: int) -> None:
    """Such as several recordings in one file; pictures and sound of each keep their distance."""
    timeline = Timeline()
    out: list[int] = []
    for _ in range(3):
        for index in range(30 * length_s):
            out.append(pts_of(timeline.stamp(picture(3000 * index), None)))
            heard = timeline.stamp(sound(3000 * index + 700), None)
            assert pts_of(heard) == out[-1] + 700
    steps = [later - earlier for earlier, later in pairwise(out)]
    assert steps.count(3000) == 90 * length_s - 3
    assert [step for step in steps if step != 3000] == [FRAME_TICKS + 700] * 2
    assert (timeline.rebased, timeline.dropped) == (2, 0)


# --- half an hour ---------------------------------------------------------------------------------

HALF_AN_HOUR_S = 1800.0
JITTER_S = 0.2
PICTURES_PER_S = 15
SOUNDS_PER_S = 24_000 / 1024
SOUND_LEAD = -4321  # ticks by which the source's sound is off its pictures


@dataclass(frozen=True)
class Sent:
    """A unit as the source made it, its clock unwrapped, and when it arrived."""

    unit: AccessUnit
    ticks: int
    arrived_s: float


def sent(seconds: float, *, since_s: float = 0.0, first: int, ppm: float, seed: int) -> Iterator[Sent]:
    """What a source sends whose clock runs `ppm` fast, over a network that holds back and keeps the order."""
    chance = random.Random(seed)
    speed = 90_000 * (1 + ppm * 1e-6)
    pictures = ((index / PICTURES_PER_S, True) for index in range(round(seconds * PICTURES_PER_S)))
    sounds = ((index / SOUNDS_PER_S, False) for index in range(round(seconds * SOUNDS_PER_S)))
    arrived_s = since_s
    for at_s, video in merge(pictures, sounds):
        arrived_s = max(arrived_s, since_s + at_s + chance.random() * JITTER_S)
        ticks = first + round(at_s * speed) + (0 if video else SOUND_LEAD)
        yield Sent(picture(ticks) if video else sound(ticks), ticks, arrived_s)


def off_wall_s(out: AccessUnit, sent_: Sent, since_s: float) -> float:
    lead = 0 if out.codec is Codec.H264 else SOUND_LEAD
    return (out.pts - lead - ORIGIN_TICKS) / 90_000 - (sent_.arrived_s - since_s)


@pytest.mark.parametrize("ppm", [-100, 0, 100])
def test_half_an_hour_of_a_drifting_source_keeps_sound_and_pictures_together(ppm: float) -> None:
    """To the tick, over a wrap; the session is off wall time by the drift and what the network held back."""
    timeline = Timeline()
    offsets: Counter[int] = Counter()
    off: list[float] = []
    for sent_ in sent(HALF_AN_HOUR_S, first=WRAP - 90_000 * 600, ppm=ppm, seed=1):
        out = timeline.stamp(sent_.unit, sent_.arrived_s)
        if out is not None:
            offsets[out.pts - sent_.ticks] += 1
            off.append(off_wall_s(out, sent_, 0.0))
    assert len(offsets) == 1, "one offset, from the first unit to the last, for both"
    assert sum(offsets.values()) > HALF_AN_HOUR_S * (PICTURES_PER_S + SOUNDS_PER_S) - 10
    assert max(map(abs, off)) <= JITTER_S + HALF_AN_HOUR_S * abs(ppm) * 1e-6
    assert timeline.rebased == 0


def test_reconnects_and_stalls_of_half_an_hour_do_not_add_up() -> None:
    """Sources with clocks of their own, with gaps between and pauses in them: always near wall time."""
    chance = random.Random(2)
    timeline = Timeline()
    now_s = begin_s = 1000.0
    sources = 0
    while now_s < begin_s + HALF_AN_HOUR_S:
        timeline.begin_source(now_s)
        sources += 1
        offsets: set[int] = set()
        first, ppm = chance.randrange(WRAP), chance.uniform(-100, 100)
        pause_at_s, paused_s = now_s + 20, chance.choice([0.0, 3.0, 9.0, 30.0])  # its clock runs on
        arrived_s = now_s
        for sent_ in sent(chance.uniform(40, 70), since_s=now_s, first=first, ppm=ppm, seed=sources):
            arrived_s = sent_.arrived_s
            if pause_at_s <= arrived_s < pause_at_s + paused_s:
                continue
            out = timeline.stamp(sent_.unit, arrived_s)
            if out is not None:
                offsets.add(out.pts - sent_.ticks)
                assert abs(off_wall_s(out, sent_, begin_s)) <= 2 * JITTER_S + 0.1
        assert len(offsets) == 1
        now_s = arrived_s + chance.choice([0.0, 0.01, 1.0, 25.0])
    assert sources > 20
    assert timeline.rebased == 0


def test_a_source_slower_than_real_time_goes_its_own_way() -> None:
    """A machine that encodes four fifths of what it should: no gaps, and none made up for when it returns."""
    timeline = Timeline()
    out = [pts_of(timeline.stamp(picture(3000 * index), index * FRAME_S / 0.8)) for index in range(30 * 600)]
    assert {later - earlier for earlier, later in pairwise(out)} == {3000}
    left_s = (len(out) - 1) * FRAME_S / 0.8
    timeline.begin_source(left_s + 4)
    returned = pts_of(timeline.stamp(picture(0), left_s + 4))
    assert 4.0 <= (returned - out[-1]) / 90_000 <= 4.0 + LARGEST_LEAD / 90_000
    assert (timeline.rebased, timeline.dropped) == (0, 0)


@pytest.mark.parametrize("jump_s", [-3600.0, -5.0, 3600.0])
def test_a_clock_that_jumps_every_minute_leaves_no_trace(jump_s: float) -> None:
    """Such as one that is set; to a reader time goes on, and sound keeps its distance."""
    timeline = Timeline()
    first, now_s = 1 << 32, 0.0
    for minute in range(30):
        for sent_ in sent(60, since_s=now_s, first=first, ppm=0, seed=minute):
            out = timeline.stamp(sent_.unit, sent_.arrived_s)
            if out is not None:
                assert abs(off_wall_s(out, sent_, 0.0)) <= 2 * JITTER_S + 0.1
        first += round((60 + jump_s) * 90_000)
        now_s += 60
    assert timeline.rebased == 29
    assert timeline.dropped <= 29 * 3 * JITTER_S * SOUNDS_PER_S


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["picture", "sound", "connect"]),
            st.one_of(st.integers(0, 30_000), st.integers(-(1 << 33), 1 << 33)),  # ticks
            st.sampled_from([0, 0, 3000, 6000, 1 << 20, -3000]),  # PTS minus DTS
            st.one_of(st.just(FRAME_S), st.floats(0, 100)),  # s
        ),
        max_size=60,
    ),
    st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_whatever_comes_time_goes_forward(steps: list[tuple[str, int, int, float]], wall: bool) -> None:
    timeline = Timeline()
    ticks, elapsed_s = 1 << 32, 0.0
    pictures: list[AccessUnit] = []
    sounds: list[AccessUnit] = []
    for what, ahead, reorder, step_s in steps:
        ticks, elapsed_s = ticks + ahead, elapsed_s + step_s
        now_s = elapsed_s if wall else None
        if what == "connect":
            timeline.begin_source(now_s)
        elif what == "picture":
            pictures += filter(None, [timeline.stamp(picture(ticks + reorder, ticks), now_s)])
        else:
            sounds += filter(None, [timeline.stamp(sound(ticks), now_s)])
    assert all(earlier.dts < later.dts for earlier, later in pairwise(pictures))
    assert all(earlier.pts < later.pts for earlier, later in pairwise(sounds))
    if pictures:
        assert pictures[0].pts == ORIGIN_TICKS


def test_a_timeline_that_was_elsewhere_goes_on_by_wall_time_and_never_back() -> None:
    latest = ORIGIN_TICKS + 20 * 90_000
    for position, first in ((latest + 450_000, latest + 450_000), (latest - 450_000, latest + FRAME_TICKS)):
        timeline = Timeline()
        timeline.begin_source(50.0)
        timeline.resume(latest, position, 100.0)
        assert timeline.stamp(sound(5), 100.0) is None, "it has no place before a picture"
        assert pts_of(timeline.stamp(picture(777), 100.0)) == first
        assert pts_of(timeline.stamp(picture(777 + 3000), 100.0 + FRAME_S)) == first + 3000


def test_a_timeline_that_had_no_picture_elsewhere_begins_at_the_origin() -> None:
    timeline = Timeline()
    timeline.resume(0, 450_000, 100.0)
    assert pts_of(timeline.stamp(picture(777), 100.0)) == ORIGIN_TICKS


# --- pictures that no source sent


def shown_until_six() -> Timeline:
    """A source sends for a second; five seconds follow in which something else is shown."""
    timeline = Timeline()
    for index in range(31):
        timeline.stamp(picture(3000 * index), index * FRAME_S)
    inserted = [timeline.insert(0, now_s) for now_s in (3.0, 4.0, 5.0, 6.0)]
    assert inserted == [ORIGIN_TICKS + seconds * 90_000 for seconds in (3, 4, 5, 6)], (
        "by the clock on the wall"
    )
    return timeline


def test_what_is_inserted_is_above_what_was_shown_whatever_the_wall_says() -> None:
    timeline = shown_until_six()
    assert timeline.insert(ORIGIN_TICKS + 900_000, 6.5) == ORIGIN_TICKS + 900_000 + FRAME_TICKS


def test_a_source_whose_clock_went_on_keeps_it_behind_what_was_inserted() -> None:
    timeline = shown_until_six()
    assert pts_of(timeline.stamp(picture(6 * 90_000 + 1), 6.1)) == ORIGIN_TICKS + 6 * 90_000 + 1
    assert timeline.rebased == 0


def test_a_source_that_returns_is_above_what_was_inserted_even_if_the_wall_stood_still() -> None:
    timeline = shown_until_six()
    timeline.begin_source(6.0)
    assert pts_of(timeline.stamp(picture(5), 6.0)) == ORIGIN_TICKS + 6 * 90_000 + FRAME_TICKS


def test_a_clock_that_stood_still_is_replaced_when_the_source_does_not_catch_up() -> None:
    timeline = shown_until_six()
    stamped = [
        (now_s, pts_of(timeline.stamp(picture(93_000 + 3000 * index), now_s)))
        for index, now_s in enumerate(6.1 + index * FRAME_S for index in range(60))
    ]
    behind = [now_s for now_s, pts in stamped if pts <= ORIGIN_TICKS + 6 * 90_000]
    assert behind[-1] - behind[0] == pytest.approx(CATCH_UP_S, abs=2 * FRAME_S)
    now_s, newest = stamped[-1]
    assert newest - ORIGIN_TICKS == pytest.approx(now_s * 90_000, abs=LARGEST_LEAD // 5)
    assert timeline.rebased == 1, "once"


def test_what_was_held_up_and_comes_at_once_keeps_its_clock() -> None:
    timeline = shown_until_six()
    for index in range(31, 181):
        timeline.stamp(picture(3000 * index), 6.1 + index / 500)
    assert pts_of(timeline.stamp(picture(3000 * 195), 6.5)) == ORIGIN_TICKS + 3000 * 195
    assert timeline.rebased == 0


def test_reordered_pictures_around_what_was_inserted_do_not_replace_a_clock() -> None:
    timeline = shown_until_six()
    at = 6 * 90_000
    for index, pts in enumerate([at + 3000, at - 3000, at, at + 12_000, at + 6000, at + 9000] * 20):
        timeline.stamp(picture(pts, at - 20_000 + index * 10), 6.1 + index * FRAME_S)
    assert timeline.rebased == 0


def test_sound_is_not_moved_by_what_is_inserted() -> None:
    timeline = shown_until_six()
    for index in range(200):
        at = 90_000 + index * 1920
        assert pts_of(timeline.stamp(sound(at), at / 90_000)) == ORIGIN_TICKS + at
    assert timeline.rebased == 0
