from __future__ import annotations

import io
from dataclasses import replace
from itertools import pairwise

import av
import pytest

from services.common.media import h264
from services.common.media.mpegts import CLOCK_HZ, AccessUnit, Codec, Demuxer, Muxer
from services.common.trickle.channel import Channel
from services.common.trickle.protocol import ChannelLimits
from services.ingest.bridge.cutter import CUT_TICKS, FORCED_CUT_TICKS, SEGMENT_BYTES, SegmentCutter
from tests.support.media import FRAME, pictures, sound
from tests.support.transport import aac, counters_are_continuous, opus, packets_of, pid_of
from tests.support.transport import picture as fake

LIMITS = ChannelLimits(
    depth=50, segment_bytes=SEGMENT_BYTES + 2**20, channel_bytes=64 * 2**20, history_s=600.0
)


async def segments_of(channel: Channel) -> list[bytes]:
    """All of them, once the channel is closed."""
    channel.close()
    return [b"".join([data async for data in segment]) async for segment in channel.read(0)]


def cutter_of(audio: Codec | None = None) -> tuple[SegmentCutter, Channel]:
    channel = Channel(LIMITS)
    return SegmentCutter(channel, Muxer(audio=audio)), channel


def units_of(segment: bytes) -> list[AccessUnit]:
    demuxer = Demuxer()
    return demuxer.feed(segment) + demuxer.end_segment()


async def test_a_segment_is_cut_at_the_first_key_frame_after_a_second() -> None:
    cutter, channel = cutter_of()
    units = pictures(100, every=10)  # 25 a second, a key frame every 0.4 s
    for unit in units:
        cutter.write(unit)
    cutter.end()
    segments = [units_of(segment) for segment in await segments_of(channel)]
    assert [len(segment) for segment in segments] == [30, 30, 30, 10]
    assert all(segment[0].keyframe for segment in segments)
    assert [unit for segment in segments for unit in segment] == units


async def test_every_segment_starts_with_its_tables_and_a_picture_that_decodes_alone() -> None:
    cutter, channel = cutter_of(Codec.AAC)
    for unit in sorted([*pictures(100, every=25), *sound(180)], key=lambda unit: unit.dts):
        cutter.write(unit)
    cutter.end()
    segments = await segments_of(channel)
    assert len(segments) == 4
    for segment in segments:
        assert [pid_of(packet) for packet in packets_of(segment)][:3] == [0, 0x1000, 0x100]
        first = next(unit for unit in units_of(segment) if unit.codec is Codec.H264)
        kinds = [nal[0] & 0x1F for nal in h264.nal_units(first.data)]
        assert kinds[:2] + kinds[-1:] == [h264.SPS, h264.PPS, h264.IDR]
        with av.open(io.BytesIO(segment), "r") as container:
            assert len(list(container.decode(video=0))) == 25
    assert counters_are_continuous(b"".join(segments))
    with av.open(io.BytesIO(b"".join(segments)), "r") as container:
        times = [frame.pts or 0 for frame in container.decode(video=0)]
    assert [later - earlier for earlier, later in pairwise(times)] == [FRAME] * 99


async def test_a_publisher_that_sends_its_parameter_sets_once_is_cut_into_readable_segments() -> None:
    cutter, channel = cutter_of()
    first, *others = pictures(75, every=25)
    sets = h264.parameter_sets(first.data)
    cutter.write(first)
    for unit in others:
        cutter.write(replace(unit, data=unit.data.replace(sets, b"")))
    cutter.end()
    segments = await segments_of(channel)
    assert len(segments) == 3
    assert all(h264.has_parameter_sets(units_of(segment)[0].data) for segment in segments)


async def test_without_key_frames_it_is_cut_all_the_same() -> None:
    cutter, channel = cutter_of()
    for unit in pictures(250, every=1000):
        cutter.write(unit)
    cutter.end()
    segments = [units_of(segment) for segment in await segments_of(channel)]
    assert [len(segment) for segment in segments] == [100, 100, 50]
    assert [segment[0].keyframe for segment in segments] == [True, False, False]
    assert FORCED_CUT_TICKS == 100 * FRAME


async def test_a_segment_does_not_grow_beyond_what_its_channel_takes() -> None:
    cutter, channel = cutter_of()
    large = b"\x88" * (SEGMENT_BYTES // 2 - 100_000)
    for index in range(5):
        unit = fake(index, 0, keyframe=index == 0)
        cutter.write(replace(unit, data=unit.data + large))
    cutter.end()
    segments = await segments_of(channel)
    assert [len(units_of(segment)) for segment in segments] == [2, 2, 1]
    assert all(len(segment) <= LIMITS.segment_bytes for segment in segments)


async def test_sound_before_the_first_picture_is_dropped() -> None:
    cutter, channel = cutter_of(Codec.AAC)
    cutter.write(aac(0))
    cutter.write(fake(1, keyframe=True))
    cutter.write(aac(2))
    cutter.end()
    (segment,) = await segments_of(channel)
    assert units_of(segment) == [fake(1, keyframe=True), aac(2)]


async def test_a_new_sound_begins_with_a_segment_that_announces_it() -> None:
    cutter, channel = cutter_of()
    expected: list[AccessUnit] = []
    for index in range(4):
        cutter.write(replace(fake(index, keyframe=True), pts=index * CUT_TICKS, dts=index * CUT_TICKS))
        if index == 1:
            cutter.muxer.change_audio(Codec.OPUS)
        cutter.write(opus(index))
        expected += [opus(index)] if index > 1 else []
    cutter.end()
    segments = await segments_of(channel)
    heard = [unit for segment in segments for unit in units_of(segment) if unit.codec is Codec.OPUS]
    assert len(segments) == 4
    assert heard == expected


async def test_a_segment_that_others_ended_is_followed_by_another_one() -> None:
    cutter, channel = cutter_of(Codec.AAC)
    cutter.write(fake(0, keyframe=True))
    channel.begin_segment(reset=True).end()
    cutter.write(aac(0))
    cutter.write(fake(1, keyframe=True))
    cutter.end()
    segments = [units_of(segment) for segment in await segments_of(channel)]
    assert segments[0] == [fake(0, keyframe=True)]
    assert segments[-1][-1] == fake(1, keyframe=True)


@pytest.mark.parametrize("start", [0, (1 << 33) - CLOCK_HZ])
async def test_cuts_do_not_depend_on_where_the_clock_stands(start: int) -> None:
    cutter, channel = cutter_of()
    for unit in pictures(75, start=start, every=25):
        cutter.write(unit)
    cutter.end()
    assert [len(units_of(segment)) for segment in await segments_of(channel)] == [25, 25, 25]
