from __future__ import annotations

import io
from dataclasses import replace
from itertools import pairwise

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import InvalidError
from services.common.media import h264
from services.common.media.codec import VideoEncoder
from services.common.media.mpegts import CLOCK_HZ, AccessUnit, Codec
from services.ingest.transports.hls import playlist
from services.ingest.transports.hls.playlist import MediaName, Wanted
from services.ingest.transports.hls.shelf import Shelf
from services.ingest.transports.hls.slicer import Slicer
from tests.support.hls import Playlist, check, read
from tests.support.media import AAC_FRAME, moved, pictures, shown, sound, units_of

KEY, DELTA = pictures(2)
START = CLOCK_HZ


class Packaged:
    """A shelf that a session is written to, and what a player sees of it after every unit."""

    def __init__(self, *, target_s: int = 2, most_bytes: int = 1 << 24) -> None:
        self.shelf = Shelf(first_number=7, target_s=target_s, most_bytes=most_bytes)
        self.asked = 0
        self.slicer = self.session(resumes=False)

    def session(self, *, resumes: bool) -> Slicer:
        self.slicer = Slicer(self.shelf, ask_keyframe=self._ask, resumes=resumes)
        return self.slicer

    def _ask(self) -> None:
        self.asked += 1

    def write(self, units: list[AccessUnit], *, sound: bool = False) -> None:
        for unit in units:
            self.slicer.write(unit, sound=sound, unix_s=1000 + unit.pts / CLOCK_HZ)

    def end(self) -> None:
        self.slicer.stop()
        self.shelf.end()

    def read(self) -> Playlist:
        return read(playlist.media(self.shelf, "t"))

    def data(self, uri: str) -> bytes:
        name = MediaName.parse(uri)
        assert name is not None
        segment = self.shelf.segment(name.number)
        assert segment is not None
        parts = segment.parts if name.part is None else [segment.parts[name.part]]
        return b"".join(chunk for part in parts for chunk in part.chunks)


def steady(seconds: float, fps: float, *, every_s: float = 1.0, start: int = START) -> list[AccessUnit]:
    """Pictures at `fps`, a key frame each `every_s`."""
    units, key_at = [], 0.0
    for index in range(round(seconds * fps)):
        due = index / fps >= key_at - 1e-9
        key_at += every_s if due else 0
        units.append(moved(KEY if due else DELTA, start + round(index * CLOCK_HZ / fps)))
    return units


def between(video: list[AccessUnit], audio: list[AccessUnit]) -> list[AccessUnit]:
    return sorted([*video, *audio], key=lambda unit: unit.dts)


intervals = st.lists(
    st.tuples(
        st.sampled_from([750, 1500, 3000, 3600, 9000, 18_000, 40_000, 100_000, 400_000]), st.booleans()
    ),
    max_size=120,
)


@given(intervals, st.booleans(), st.sampled_from([1, 2, 4]))
def test_whatever_the_pictures_do_the_durations_keep_their_bounds(
    steps: list[tuple[int, bool]], audible: bool, target_s: int
) -> None:
    packaged = Packaged(target_s=target_s)
    at, video = START, [moved(KEY, START)]
    for step, key in steps:
        at += step
        video.append(moved(KEY if key else DELTA, at))
    units = video
    if audible:
        units = between(video, sound(min((at - START) // AAC_FRAME, 400), start=START))
    before = packaged.read()
    for unit in units:
        packaged.write([unit], sound=audible)
        now = packaged.read()
        check(now)
        assert now.sequence >= before.sequence, "the media sequence never goes back"
        assert now.newest >= before.newest
        assert now.discontinuity_sequence >= before.discontinuity_sequence
        known = {segment.number: segment.uri for segment in before.segments}
        assert all(known.get(each.number, each.uri) == each.uri for each in now.segments)
        before = now
    packaged.end()
    last = packaged.read()
    check(last)
    assert last.ended
    assert last.begun is None


@given(st.sampled_from([10, 15, 20, 24_000 / 1001, 24, 25, 30_000 / 1001, 30, 50, 60]), st.booleans())
def test_at_every_usual_rate_parts_are_at_least_85_percent_of_their_target(fps: float, audible: bool) -> None:
    packaged = Packaged()
    video = steady(4.5, fps)
    packaged.write(between(video, sound(200, start=START)) if audible else video, sound=audible)
    listed = packaged.read()
    assert len(listed.segments) >= 3
    for segment in listed.segments:
        assert all(seconds >= 0.85 * listed.part_target_s - 1e-4 for _, seconds, _ in segment.parts[:-1])
        assert sum(seconds for _, seconds, _ in segment.parts) == pytest.approx(segment.duration_s, abs=1e-3)
        assert [independent for _, _, independent in segment.parts] == [True] + [False] * (
            len(segment.parts) - 1
        )


def begin_of(data: bytes) -> int:
    return next(unit.pts for unit in units_of(data) if unit.codec is Codec.H264)


@given(st.lists(st.integers(3000, 9000), min_size=20, max_size=80), st.booleans())
def test_no_part_begins_with_a_gap_that_a_browser_would_take_for_a_seek(
    steps: list[int], audible: bool
) -> None:
    packaged = Packaged()
    video = [moved(KEY, START)]
    for index, step in enumerate(steps):
        video.append(moved(KEY if index % 15 == 14 else DELTA, video[-1].dts + step))
    heard = sound((video[-1].dts - START) // AAC_FRAME, start=START) if audible else []
    packaged.write(between(video, heard), sound=audible)
    intervals = {unit.pts: unit.pts - before.pts for before, unit in pairwise(video)}
    order = [unit.pts for unit in video]
    parts = packaged.read().parts
    for uri in [uri for uri, _, independent in parts if not independent]:
        begin = begin_of(packaged.data(uri))
        before = intervals.get(order[order.index(begin) - 1], 3000)
        assert intervals[begin] <= 2 * before


def test_what_a_part_may_not_say_of_a_late_picture_the_next_ones_say() -> None:
    packaged = Packaged()
    times = [0, 3600, 7200, 22_000, *range(25_600, 100_000, 3600)]
    packaged.write([moved(KEY if not at else DELTA, START + at) for at in times])
    packaged.write(steady(0.2, 25, start=START + 101_200))
    (segment,) = packaged.read().segments
    listed = [seconds for _, seconds, _ in segment.parts]
    assert listed[:3] == [0.22] * 3, "the first is 0.284 s long, the next ones 0.2 s"
    assert sum(listed) == pytest.approx(segment.duration_s, abs=1e-3)


def test_segments_are_cut_at_key_frames_and_together_are_the_stream() -> None:
    packaged = Packaged()
    video = steady(6.0, 25)
    packaged.write(between(video, sound(280, start=START)), sound=True)
    listed = packaged.read()
    assert [segment.number for segment in listed.segments] == [7, 8, 9, 10, 11]
    assert all(segment.duration_s == 1.0 for segment in listed.segments)
    assert not any(segment.discontinuity for segment in listed.segments)
    whole = b"".join(packaged.data(segment.uri) for segment in listed.segments)
    assert shown(whole) == [unit.pts for unit in video[:125]]
    assert [unit.pts for unit in units_of(whole) if unit.codec is Codec.AAC][:3] == [
        START,
        START + AAC_FRAME,
        START + 2 * AAC_FRAME,
    ]


def test_the_parts_of_a_segment_are_the_segment() -> None:
    packaged = Packaged()
    packaged.write(steady(3.0, 30))
    segment = packaged.read().segments[0]
    assert b"".join(packaged.data(uri) for uri, _, _ in segment.parts) == packaged.data(segment.uri)


def test_every_segment_and_every_independent_part_decodes_alone() -> None:
    packaged = Packaged()
    packaged.write(steady(4.0, 25))
    listed = packaged.read()
    for uri in [segment.uri for segment in listed.segments] + [
        uri for uri, _, alone in listed.parts if alone
    ]:
        with av.open(io.BytesIO(packaged.data(uri)), "r", format="mpegts") as container:
            frames = list(container.decode(container.streams.video[0]))
        assert frames
        assert not any(frame.is_corrupt for frame in frames)


def test_a_key_frame_is_asked_for_once_and_a_segment_does_not_wait_for_it_for_ever() -> None:
    packaged = Packaged()
    packaged.write(steady(3.0, 30, every_s=60))
    assert packaged.asked == 2, "for the first one is waited for: at 0.9 s, and at 1.9 s again"
    (segment,) = packaged.read().segments
    assert 2.4 < segment.duration_s < 2.5
    begun = packaged.read().begun
    assert begun is not None
    assert not begun.discontinuity
    assert not begun.parts[0][2], "it does not begin with a key frame, and does not say so"


def key_of(width: int, height: int, fps: int) -> AccessUnit:
    rgb = np.zeros((height, width, 3), np.uint8)
    (unit,) = VideoEncoder(width, height, 200_000, fps=fps).encode(rgb, 0, keyframe=True)
    return unit


def test_another_size_begins_a_segment_behind_a_discontinuity() -> None:
    packaged = Packaged()
    packaged.write(steady(1.2, 25))
    other = moved(key_of(96, 64, 25), START + 5 * CLOCK_HZ // 4)
    packaged.write([other, moved(DELTA, START + 13 * CLOCK_HZ // 10)])
    packaged.slicer.pause()
    listed = packaged.read()
    assert [segment.duration_s for segment in listed.segments] == [1.0, 0.25]
    assert listed.begun is not None
    assert listed.begun.discontinuity
    assert packaged.slicer.rendition().size == (96, 64)


def test_an_encoder_that_only_says_another_rate_is_no_discontinuity() -> None:
    slower = key_of(64, 48, 5)
    assert h264.parameter_sets(slower.data) != h264.parameter_sets(KEY.data)
    packaged = Packaged()
    packaged.write(steady(1.2, 25))
    packaged.write([moved(slower, START + 5 * CLOCK_HZ // 4), *steady(1.0, 25, start=START + 2 * CLOCK_HZ)])
    assert not any(segment.discontinuity for segment in packaged.read().segments)


def test_sound_that_begins_later_is_announced_behind_a_discontinuity() -> None:
    packaged = Packaged()
    packaged.write(steady(1.5, 25))
    late = between(steady(2.5, 25, start=START + 2 * CLOCK_HZ), sound(100, start=START + 2 * CLOCK_HZ))
    packaged.write(steady(0.5, 25, every_s=9, start=START + 3 * CLOCK_HZ // 2)[1:])
    packaged.write(late, sound=True)
    listed = packaged.read()
    assert [segment.discontinuity for segment in listed.segments] == [False, False, True, False]
    assert {unit.codec for unit in units_of(packaged.data(listed.segments[1].uri))} == {Codec.H264}
    assert {unit.codec for unit in units_of(packaged.data(listed.segments[2].uri))} == {Codec.H264, Codec.AAC}


def test_a_publisher_that_returns_with_another_size_and_sound_is_one_discontinuity() -> None:
    packaged = Packaged()
    packaged.write(between(steady(2.0, 25), sound(94, start=START)), sound=True)
    at = START + 5 * CLOCK_HZ
    mono = [
        replace(unit, data=unit.data[:3] + b"\x40" + unit.data[4:]) for unit in sound(200, start=at - 900)
    ]
    packaged.write(between(steady(4.5, 25, start=at), mono), sound=True)
    listed = packaged.read()
    assert [segment.discontinuity for segment in listed.segments] == [False, False, True, False, False, False]


def test_sound_of_another_form_is_announced_behind_a_discontinuity() -> None:
    packaged = Packaged()
    units = between(steady(4.5, 25), sound(200, start=START))
    mono = [
        replace(unit, data=unit.data[:3] + b"\x40" + unit.data[4:])
        if unit.codec is Codec.AAC and unit.pts >= START + 3 * CLOCK_HZ // 2
        else unit
        for unit in units
    ]
    packaged.write(mono, sound=True)
    assert [segment.discontinuity for segment in packaged.read().segments] == [False, False, True, False]


def test_after_a_gap_too_long_for_a_segment_the_next_key_frame_goes_on() -> None:
    packaged = Packaged()
    packaged.write(steady(1.5, 25))
    packaged.write(steady(1.0, 25, every_s=9, start=START + 10 * CLOCK_HZ)[1:])
    assert packaged.asked >= 1
    assert packaged.read().begun is None, "nothing can be decoded before it"
    packaged.write(steady(1.5, 25, start=START + 12 * CLOCK_HZ))
    listed = packaged.read()
    assert [(segment.duration_s, segment.discontinuity) for segment in listed.segments] == [
        (1.0, False),
        (0.52, False),
        (1.0, True),
    ]


def test_another_session_continues_the_numbers_behind_a_discontinuity() -> None:
    packaged = Packaged()
    packaged.write(steady(2.5, 25))
    packaged.end()
    ended = packaged.read()
    assert ended.ended
    packaged.session(resumes=True)
    packaged.write(steady(1.5, 25))
    listed = packaged.read()
    check(listed)
    assert not listed.ended
    assert [segment.number for segment in listed.segments] == [7, 8, 9, 10]
    assert [segment.discontinuity for segment in listed.segments] == [False, False, False, True]


def test_discontinuities_that_leave_the_playlist_are_counted() -> None:
    packaged = Packaged(target_s=1)
    packaged.write(steady(2.0, 25))
    packaged.end()
    packaged.session(resumes=True)
    packaged.write(steady(9.0, 25))
    listed = packaged.read()
    assert listed.discontinuity_sequence == 1
    assert not any(segment.discontinuity for segment in listed.segments)
    assert sum(segment.duration_s for segment in listed.segments) >= 3 * listed.target_s


def test_parts_are_listed_near_the_end_only() -> None:
    packaged = Packaged()
    packaged.write(steady(11.5, 25))
    with_parts = [bool(segment.parts) for segment in packaged.read().segments]
    assert with_parts == [False] * 4 + [True] * 6


@given(st.integers(20_000, 200_000))
def test_no_more_bytes_are_held_than_allowed(most_bytes: int) -> None:
    packaged = Packaged(most_bytes=most_bytes)
    for unit in steady(12.0, 10):
        packaged.write([unit])
        held = packaged.shelf.size - (packaged.shelf.open.size if packaged.shelf.open else 0)
        assert held <= most_bytes
    assert packaged.shelf.size == sum(segment.size for segment in packaged.shelf._all())


def test_what_left_the_playlist_can_still_be_fetched_for_a_while() -> None:
    packaged = Packaged(target_s=1)
    packaged.write(steady(9.0, 25))
    first = packaged.read().segments[0].number
    assert first > 7
    assert packaged.shelf.segment(first - 1) is not None
    packaged.write(steady(20.0, 25, start=START + 9 * CLOCK_HZ))
    assert packaged.shelf.segment(7) is None


def test_dates_follow_the_clock_of_the_session_and_not_the_jitter_of_arrivals() -> None:
    packaged = Packaged()
    for index, unit in enumerate(steady(5.0, 25)):
        late_s = 0.3 if index >= 75 else 0.0
        packaged.slicer.write(unit, sound=False, unix_s=1000 + index / 25 + late_s)
    dates = [segment.date for segment in packaged.read().segments]
    assert dates == [
        "1970-01-01T00:16:40.000Z",
        "1970-01-01T00:16:41.000Z",
        "1970-01-01T00:16:42.000Z",
        "1970-01-01T00:16:43.010Z",
    ]


def test_what_a_player_wants_to_know_first_is_read_from_the_stream() -> None:
    packaged = Packaged()
    packaged.write(between(steady(2.5, 25), sound(100, start=START)), sound=True)
    rendition = packaged.slicer.rendition()
    assert rendition.size == (64, 48)
    assert rendition.codecs[0].startswith("avc1.42")
    assert rendition.codecs[1:] == ("mp4a.40.2",)
    lines = playlist.multivariant(rendition, "live.m3u8").splitlines()
    assert lines[-1] == "live.m3u8"
    assert "RESOLUTION=64x48" in lines[-2]


# --- blocking reload


@pytest.fixture
def packaged() -> Packaged:
    """Segments 7 and 8 of five parts each are whole, and two parts of 9."""
    found = Packaged()
    found.write(steady(2.5, 25))
    assert found.read().newest == (9, 2)
    return found


@pytest.mark.parametrize(
    ("number", "part", "there"),
    [
        (None, None, True),
        (3, None, True),
        (8, None, True),
        (9, None, False),
        (10, None, False),
        (8, 4, True),
        (8, 5, True),  # behind its last part: the first of the next
        (9, 1, True),
        (9, 2, False),
        (10, 0, False),
    ],
)
def test_a_request_waits_for_exactly_what_it_names(
    packaged: Packaged, number: int | None, part: int | None, there: bool
) -> None:
    wanted = Wanted(number, part).checked(packaged.shelf)
    assert wanted.met(packaged.shelf) is there
    packaged.end()
    assert wanted.met(packaged.shelf), "nothing is waited for after the end"


def test_a_part_behind_the_last_one_is_the_first_of_the_next_segment(packaged: Packaged) -> None:
    wanted = Wanted(9, 5)
    packaged.write(steady(0.5, 25, every_s=9, start=START + 5 * CLOCK_HZ // 2)[1:])
    assert packaged.read().newest == (9, 4)
    packaged.write(steady(0.1, 25, start=START + 3 * CLOCK_HZ))
    assert packaged.read().newest == (10, 0), "9 had five parts"
    assert not wanted.met(packaged.shelf)
    packaged.write(steady(0.4, 25, every_s=9, start=START + 31 * CLOCK_HZ // 10)[1:])
    assert wanted.met(packaged.shelf)


@pytest.mark.parametrize(
    ("number", "part", "field"), [(None, 1, "_HLS_part"), (11, None, "_HLS_msn"), (9, 40, "_HLS_part")]
)
def test_what_no_player_asks_that_has_read_the_playlist_is_refused(
    packaged: Packaged, number: int | None, part: int | None, field: str
) -> None:
    with pytest.raises(InvalidError) as refused:
        Wanted(number, part).checked(packaged.shelf)
    assert refused.value.details["field"] == field


@given(st.text(max_size=40))
def test_a_name_of_a_file_is_what_it_was_parsed_from(text: str) -> None:
    name = MediaName.parse(text)
    assert name is None or MediaName.parse(str(name)) == name
