from __future__ import annotations

import io
from dataclasses import replace
from itertools import pairwise

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.errors import InvalidError
from services.common.media import h264, mpegts
from services.common.media.mpegts import AccessUnit, Codec, Demuxer, Muxer
from tests.support.transport import (
    INTACT,
    Timed,
    aac,
    counters_are_continuous,
    made_by_libav,
    opus,
    packets_of,
    picture,
    pid_of,
    read,
    timed,
)


def clocks_of(stream: bytes) -> list[int]:
    return [
        int.from_bytes(packet[6:12], "big") >> 15
        for packet in packets_of(stream)
        if packet[3] & 0x20 and packet[4] and packet[5] & 0x10
    ]


def test_a_key_frame_starts_with_a_random_access_point_and_the_clock() -> None:
    muxer = Muxer()
    muxer.write(picture(0, keyframe=True))
    packet = muxer.write(picture(1, keyframe=True))[:188]
    assert packet[1] & 0x40
    assert packet[5] & 0x50 == 0x50
    assert clocks_of(packet) == [90_000 + 3000 - mpegts.PCR_LEAD]


def test_the_clock_comes_at_least_every_100_ms_and_never_steps_back() -> None:
    muxer = Muxer(audio=Codec.OPUS)
    video = b"".join(muxer.write(picture(index, keyframe=index % 30 == 0)) for index in range(120))
    steps = np.diff(clocks_of(video))
    assert steps.min() >= 0
    assert steps.max() <= 9000
    audio_alone = b"".join(muxer.write(opus(index)) for index in range(200, 300))
    assert np.diff(clocks_of(audio_alone)).max() <= 9000
    late_key_frame = muxer.write(picture(0, pts=90_000 + 1800 * 298, keyframe=True))
    assert clocks_of(audio_alone + late_key_frame) == sorted(clocks_of(audio_alone + late_key_frame))


def test_the_muxer_writes_33_bits_and_unwrap_puts_the_others_back() -> None:
    muxer, demuxer = Muxer(), Demuxer()
    demuxer.feed(muxer.begin_segment())
    previous = start = 3 * mpegts.WRAP - 45_000
    for index in range(30):
        unit = picture(index, pts=start + 3000 * index, keyframe=index % 10 == 0)
        (raw,) = demuxer.feed(muxer.write(unit))
        assert 0 <= raw.pts < mpegts.WRAP
        previous = mpegts.unwrap(previous, raw.pts)
        assert previous == unit.pts


@given(previous=st.integers(-(1 << 40), 1 << 40), step=st.integers(-(1 << 32), (1 << 32) - 1))
def test_unwrap_gives_the_nearest(previous: int, step: int) -> None:
    assert mpegts.unwrap(previous, (previous + step) % mpegts.WRAP) == previous + step


def test_an_audio_unit_too_large_for_a_pes_packet_is_invalid() -> None:
    with pytest.raises(InvalidError):
        Muxer(audio=Codec.OPUS).write(opus(0, size=66_000))


@given(sizes=st.lists(st.integers(1, 800), min_size=1, max_size=20))
@settings(max_examples=50, deadline=None)
def test_units_of_every_size_fill_whole_packets(sizes: list[int]) -> None:
    muxer = Muxer(audio=Codec.OPUS)
    units = [
        opus(index, size)
        if index % 2
        else picture(index, size, keyframe=index % 4 == 0, pts=90_000 + 5000 * index)
        for index, size in enumerate(sizes)
    ]
    assert read(muxer.begin_segment() + b"".join(muxer.write(unit) for unit in units)) == units


# --- segments -------------------------------------------------------------------------------------


def test_a_segment_starts_with_both_tables_and_what_a_decoder_needs() -> None:
    muxer = Muxer(audio=Codec.AAC)
    written = muxer.begin_segment() + muxer.write(picture(0, keyframe=True))
    assert [pid_of(packet) for packet in packets_of(written)][:3] == [0, mpegts.PMT_PID, mpegts.VIDEO_PID]
    (unit,) = read(written)
    assert [nal[0] & 0x1F for nal in h264.nal_units(unit.data)] == [h264.SPS, h264.PPS, h264.IDR]


def test_the_key_frame_that_begins_a_segment_gets_the_parameter_sets_that_it_lacks() -> None:
    muxer = Muxer()
    with_sets = picture(0, keyframe=True)
    sets = h264.parameter_sets(with_sets.data)
    without = replace(picture(1, keyframe=True), data=with_sets.data[len(sets) :])
    first = read(muxer.begin_segment() + muxer.write(with_sets) + muxer.write(without))
    assert first == [with_sets, without], "a reader of this segment has them"
    (second,) = read(muxer.begin_segment() + muxer.write(without))
    assert second.data == sets + without.data
    (inter,) = read(muxer.begin_segment() + muxer.write(picture(2)))
    assert inter == picture(2), "nobody can begin here"


def test_segments_over_a_wrap_are_one_stream_to_libav() -> None:
    """Each is decoded alone, and all of them as one."""
    muxer = Muxer(audio=Codec.AAC)
    shift = mpegts.WRAP - 90_000 - 45_000
    segments: list[bytes] = []
    for unit in read(made_by_libav("aac", 2)):
        if unit.codec is Codec.H264 and unit.keyframe:
            segments.append(muxer.begin_segment())
        segments[-1] += muxer.write(replace(unit, pts=unit.pts + shift, dts=unit.dts + shift))
    assert len(segments) == 4
    whole = b"".join(segments)
    assert counters_are_continuous(whole)
    with av.open(io.BytesIO(whole), "r") as container:
        times = [frame.pts or 0 for frame in container.decode(video=0)]
    assert [later - earlier for earlier, later in pairwise(times)] == [3000] * 59
    alone = 0
    for segment in segments:
        with av.open(io.BytesIO(segment), "r") as container:
            alone += sum(1 for _ in container.decode(video=0))
    assert alone == 60


def test_the_clock_runs_on_over_a_wrap() -> None:
    muxer = Muxer()
    start = mpegts.WRAP - 30_000
    stream = b"".join(muxer.write(picture(index, pts=start + 3000 * index)) for index in range(60))
    clocks = clocks_of(stream)
    assert min(clocks) < 9000 < mpegts.WRAP - 60_000 < max(clocks)
    assert all(0 <= (later - earlier) % mpegts.WRAP <= 9000 for earlier, later in pairwise(clocks))


# --- the sound changes ----------------------------------------------------------------------------


def version_of(tables: bytes) -> int:
    return packets_of(tables)[1][10] >> 1 & 0x1F


def test_sound_may_come_change_and_go_with_a_segment() -> None:
    muxer, demuxer = Muxer(), Demuxer()
    expected: list[AccessUnit] = []
    stream = b""
    for index, codec in enumerate([None, Codec.AAC, Codec.OPUS, Codec.AAC, None]):
        muxer.change_audio(codec)
        stream += muxer.begin_segment()
        assert muxer.audio is codec
        units = [picture(index, keyframe=True)]
        units += [] if codec is None else [aac(index) if codec is Codec.AAC else opus(index)]
        expected += units
        stream += b"".join(muxer.write(unit) for unit in units)
        assert demuxer.feed(stream) == units
        assert demuxer.streams == (Codec.H264,) if codec is None else (Codec.H264, codec)
        stream = b""
    assert demuxer.lost == INTACT


def test_the_old_sound_goes_on_until_the_segments_end() -> None:
    muxer = Muxer(audio=Codec.AAC)
    muxer.begin_segment()
    muxer.change_audio(Codec.OPUS)
    announced = [muxer.audio]
    muxer.write(aac(0))
    muxer.begin_segment()
    announced.append(muxer.audio)
    muxer.write(opus(0))
    assert announced == [Codec.AAC, Codec.OPUS]


def test_a_change_of_sound_is_a_new_version_of_the_table() -> None:
    muxer = Muxer()
    versions = [version_of(muxer.begin_segment())]
    for index in range(33):
        muxer.change_audio(Codec.AAC if index % 2 else Codec.OPUS, channels=1)
        versions.append(version_of(muxer.begin_segment()))
    assert versions == [index % 32 for index in range(34)]
    muxer.change_audio(Codec.OPUS, channels=1)
    assert version_of(muxer.begin_segment()) == 1, "it is what was announced already"
    muxer.change_audio(Codec.OPUS, channels=2)
    assert version_of(muxer.begin_segment()) == 2


def test_libav_follows_a_sound_that_appears_later() -> None:
    """With the picture of all segments, and the sound of those that have it; counters run on."""
    units = read(made_by_libav("libopus"))
    keyframes = [unit.pts for unit in units if unit.codec is Codec.H264 and unit.keyframe]
    muxer = Muxer()
    stream = b""
    expected: list[AccessUnit] = []
    for unit in units:
        if unit.pts == keyframes[1]:
            muxer.change_audio(Codec.OPUS)
        if unit.codec is Codec.H264 and unit.keyframe:
            stream += muxer.begin_segment()
        if unit.codec is Codec.H264 or muxer.audio is not None:
            stream += muxer.write(unit)
            expected.append(unit)
    assert counters_are_continuous(stream)
    assert read(stream) == expected
    found: dict[str, Timed] = {}
    with av.open(io.BytesIO(stream), "r") as container:
        for packet in container.demux():
            if packet.size:
                assert packet.pts is not None
                assert packet.dts is not None
                data = h264.strip_delimiter(bytes(packet))
                found.setdefault(packet.stream.codec_context.name, []).append((packet.pts, packet.dts, data))
    assert found["h264"] == timed(expected, Codec.H264)
    assert found["opus"] == timed(expected, Codec.OPUS)
    assert 0 < len(found["opus"]) < len(timed(units, Codec.OPUS))
