from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.media.clock import FRAME_TICKS, LARGEST_JUMP, ORIGIN_TICKS, Timeline
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
    assert pts_of(timeline.stamp(sound(91_500), 1.0)) == ORIGIN_TICKS + 1000 + 90_000 + 500
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


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["picture", "sound", "connect"]),
            st.one_of(st.integers(0, 30_000), st.integers(-(1 << 33), 1 << 33)),  # ticks
            st.sampled_from([0, 0, 3000, 6000, 1 << 20, -3000]),  # PTS minus DTS
            st.one_of(st.just(FRAME_S), st.floats(0, 100)),  # s
        ),
        max_size=60,
    )
)
@settings(max_examples=200, deadline=None)
def test_whatever_comes_time_goes_forward(
    steps: list[tuple[str, int, int, float]],
) -> None:
    timeline = Timeline()
    ticks, now_s = 1 << 32, 0.0
    pictures: list[AccessUnit] = []
    sounds: list[AccessUnit] = []
    for what, ahead, reorder, elapsed_s in steps:
        ticks, now_s = ticks + ahead, now_s + elapsed_s
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
