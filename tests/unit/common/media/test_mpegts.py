from __future__ import annotations

import io
from dataclasses import replace
from itertools import cycle

import av
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.media import mpegts
from services.common.media.mpegts import AccessUnit, Codec, Demuxer, DemuxStats, Muxer
from services.common.media.mpegts.packets import Track
from tests.support.transport import (
    DATA,
    INTACT,
    adts,
    counters_are_continuous,
    made_by_libav,
    opus,
    packets_of,
    picture,
    read,
    read_by_libav,
    timed,
    unbounded,
    untold,
)


@pytest.mark.parametrize("b_frames", [0, 2])
@pytest.mark.parametrize(("encoder", "codec"), [("aac", Codec.AAC), ("libopus", Codec.OPUS)])
def test_libavs_streams_are_read_as_libav_reads_them(encoder: str, codec: Codec, b_frames: int) -> None:
    stream = made_by_libav(encoder, b_frames)
    reference = read_by_libav(stream)
    units = read(stream)
    assert timed(units, Codec.H264) == reference["h264"]
    assert timed(units, codec) == reference["aac" if codec is Codec.AAC else "opus"]
    assert len(timed(units, Codec.H264)) == 60
    assert any(unit.pts != unit.dts for unit in units) == (b_frames > 0)
    assert sum(unit.keyframe for unit in units if unit.codec is Codec.H264) >= 4


def test_the_sample_is_read_as_libav_reads_it() -> None:
    out = io.BytesIO()
    with av.open(str(DATA / "bigbuckbunny.mp4")) as source, av.open(out, "w", format="mpegts") as container:
        streams = {stream: container.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream]
                container.mux(packet)
    stream = out.getvalue()
    reference = read_by_libav(stream)
    units = read(stream)
    assert timed(units, Codec.H264) == reference["h264"]
    assert timed(units, Codec.AAC) == reference["aac"]


@pytest.mark.parametrize("b_frames", [0, 2])
@pytest.mark.parametrize(("encoder", "codec"), [("aac", Codec.AAC), ("libopus", Codec.OPUS)])
def test_libav_reads_and_decodes_what_the_muxer_writes(encoder: str, codec: Codec, b_frames: int) -> None:
    units = read(made_by_libav(encoder, b_frames))
    muxer = Muxer(audio=codec)
    stream = muxer.begin_segment() + b"".join(muxer.write(unit) for unit in units)
    reference = read_by_libav(stream)
    assert reference["h264"] == timed(units, Codec.H264)
    assert reference["aac" if codec is Codec.AAC else "opus"] == timed(units, codec)
    with av.open(io.BytesIO(stream), "r") as container:
        assert container.streams.audio[0].codec_context.channels == 2
        decoded = [frame.pts for frame in container.decode(video=0)]
    assert decoded == sorted(pts for pts, _, _ in reference["h264"])


def test_units_survive_the_muxer_and_the_demuxer() -> None:
    units = read(made_by_libav("libopus", 2))
    muxer = Muxer(audio=Codec.OPUS)
    assert read(muxer.begin_segment() + b"".join(muxer.write(unit) for unit in units)) == units


def test_every_segment_decodes_alone_and_all_of_them_as_one() -> None:
    units = read(made_by_libav("aac"))
    muxer = Muxer(audio=Codec.AAC)
    segments: list[bytes] = []
    for unit in units:
        if unit.codec is Codec.H264 and unit.keyframe:
            segments.append(muxer.begin_segment())
        if segments:
            segments[-1] += muxer.write(unit)
    assert len(segments) == 4
    decoded = 0
    for segment in segments:
        with av.open(io.BytesIO(segment), "r") as container:
            frames = list(container.decode(video=0))
        decoded += len(frames)
        assert frames[0].key_frame
    assert decoded == 60
    assert len(timed(read(b"".join(segments)), Codec.H264)) == 60
    assert counters_are_continuous(b"".join(segments))


@pytest.mark.parametrize(("encoder", "codec"), [("libx265", Codec.HEVC), ("mpeg2video", Codec.MPEG2)])
def test_a_codec_that_we_cannot_pass_on_has_a_name(encoder: str, codec: Codec) -> None:
    out = io.BytesIO()
    with av.open(out, "w", format="mpegts") as container:
        video = container.add_stream(encoder, rate=30)
        assert isinstance(video, av.VideoStream)
        video.width, video.height, video.pix_fmt = 320, 192, "yuv420p"
        if encoder == "libx265":
            video.codec_context.options = {"preset": "ultrafast", "x265-params": "log-level=none:pools=none"}
        for _ in range(3):
            container.mux(video.encode(av.VideoFrame(320, 192, "yuv420p")))
        container.mux(video.encode(None))
    demuxer = Demuxer()
    assert demuxer.feed(out.getvalue()) + demuxer.end_segment() == []
    assert demuxer.streams == (codec,)


# --- when units come out --------------------------------------------------------------------------


def test_a_unit_comes_out_with_its_last_byte() -> None:
    muxer, demuxer = Muxer(audio=Codec.OPUS), Demuxer()
    demuxer.feed(muxer.begin_segment())
    for unit in [
        picture(0, keyframe=True),
        opus(0),
        picture(1, size=20),
        opus(1, size=600),
        picture(2, size=60_000),
    ]:
        written = muxer.write(unit)
        assert demuxer.feed(written[:-1]) == []
        assert demuxer.feed(written[-1:]) == [unit]


@pytest.mark.parametrize("keyframe", [True, False])
def test_a_picture_above_64_kb_comes_out_with_its_last_byte_too(keyframe: bool) -> None:
    """Its length has no room in the stream: the muxer sees to it that the last packet has stuffing."""
    muxer, demuxer = Muxer(), Demuxer()
    demuxer.feed(muxer.begin_segment() + muxer.write(picture(0, keyframe=True)))
    largest = picture(1, size=66_000, keyframe=keyframe)
    for shorter in range(185):  # whatever is left for the last packet
        unit = replace(largest, data=largest.data[: len(largest.data) - shorter])
        written = muxer.write(unit)
        assert b"\x00\x00\x01\xe0\x00\x00" in written[:188]
        assert demuxer.feed(written[:-1]) == []
        assert demuxer.feed(written[-1:]) == [unit]
    assert demuxer.lost == INTACT


def test_what_does_not_tell_its_end_waits_for_the_next_picture_or_the_segments_end() -> None:
    track, demuxer = Track(0x100), Demuxer()
    demuxer.feed(Muxer().begin_segment())
    (first, first_pes), (second, second_pes) = untold(0), untold(1)
    assert demuxer.feed(track.packets(first_pes)) == []
    assert demuxer.feed(track.packets(second_pes)) == [first]
    assert demuxer.end_segment() == [second]
    assert demuxer.lost == INTACT


@pytest.mark.parametrize("left", range(1, 184))
def test_stuffing_tells_the_end_of_a_picture_that_does_not_say_its_length(left: int) -> None:
    """Not where two bytes are stuffed: so does GStreamer, in the last packet but one."""
    track, demuxer = Track(0x100), Demuxer()
    demuxer.feed(Muxer().begin_segment())
    unit, whole = untold(0)
    unit, whole = replace(unit, data=unit.data[: left - 184]), whole[: left - 184]
    stream = track.packets(whole)
    assert demuxer.feed(stream[:-1]) == []
    assert demuxer.feed(stream[-1:]) == ([] if left == 182 else [unit])
    assert demuxer.end_segment() == ([unit] if left == 182 else [])


def test_a_clock_between_two_packets_of_a_picture_is_not_its_end() -> None:
    demuxer = Demuxer()
    demuxer.feed(Muxer().begin_segment())
    unit, whole = untold(0)
    first, *rest = packets_of(Track(0x100).packets(whole[:400], adaptation=b"\x10" + bytes(6)))
    assert demuxer.feed(first) == []
    assert demuxer.feed(b"".join(rest))[0].data == unit.data[: 400 - len(whole)]


def test_a_packet_for_the_header_alone_is_not_the_end_of_its_picture() -> None:
    demuxer, track = Demuxer(), Track(0x100)
    demuxer.feed(Muxer().begin_segment())
    unit = picture(0, keyframe=True)
    whole = unbounded(unit)
    head, body = whole[:20], whole[20:]
    assert demuxer.feed(track.packets(head)) == []
    continued = bytearray(track.packets(body))
    continued[1] &= ~0x40
    assert demuxer.feed(bytes(continued)) == [], "this muxer's stuffing says nothing"
    assert demuxer.end_segment() == [unit]
    assert demuxer.lost == INTACT


def test_who_stuffs_in_the_middle_of_a_picture_is_not_believed_again() -> None:
    demuxer, track = Demuxer(), Track(0x100)
    demuxer.feed(Muxer().begin_segment())
    units = [picture(index, keyframe=True) for index in range(3)]
    halves = [(unbounded(unit)[:1000], unbounded(unit)[1000:]) for unit in units]
    given: list[list[AccessUnit]] = []
    for begin, end in halves:
        given.append(demuxer.feed(track.packets(begin)))
        continued = bytearray(track.packets(end))
        continued[1] &= ~0x40
        given.append(demuxer.feed(bytes(continued)))
    assert [[unit.pts for unit in some] for some in given] == [[90_000], [], [], [], [93_000], []]
    assert given[4] == [units[1]]
    assert demuxer.end_segment() == [units[2]]
    assert demuxer.lost == DemuxStats(late_payload=17)


def test_a_loss_after_a_picture_is_not_mistaken_for_more_of_it() -> None:
    demuxer, track = Demuxer(), Track(0x100)
    demuxer.feed(Muxer().begin_segment())
    units = [picture(index, keyframe=True) for index in range(3)]
    first, second, third = (track.packets(unbounded(unit)) for unit in units)
    assert demuxer.feed(first + second[188:] + third) == [units[0], units[2]]
    assert demuxer.lost == DemuxStats(continuity_errors=1)


def test_a_segment_cut_within_a_packet_loses_the_unit_that_it_cut() -> None:
    muxer, demuxer = Muxer(), Demuxer()
    demuxer.feed(muxer.begin_segment() + muxer.write(picture(0, size=70_000))[:-100])
    assert demuxer.end_segment() == []
    assert demuxer.lost.damaged_units == 1
    assert demuxer.lost.bytes_skipped == 88
    following = picture(1, keyframe=True)
    assert demuxer.feed(muxer.begin_segment() + muxer.write(following)) == [following]


def test_a_segment_may_count_its_packets_anew() -> None:
    demuxer = Demuxer()
    for index in range(3):
        muxer = Muxer(audio=Codec.OPUS)
        units = [picture(index, size=3000 * index, keyframe=True), opus(index)]
        stream = muxer.begin_segment() + b"".join(muxer.write(unit) for unit in units)
        assert demuxer.feed(stream) + demuxer.end_segment() == units
    assert demuxer.lost == INTACT


@st.composite
def arbitrary_units(draw: st.DrawFn) -> list[AccessUnit]:
    """Units in their order, of one codec of sound, that may cross where 33 bits end."""
    codec = draw(st.sampled_from([Codec.AAC, Codec.OPUS]))
    dts = draw(st.sampled_from([0, 1 << 32, mpegts.WRAP - 9000]))
    units: list[AccessUnit] = []
    for _ in range(draw(st.integers(1, 12))):
        dts += draw(st.integers(1, 9000))
        body = draw(st.binary(min_size=1, max_size=600)) * draw(st.sampled_from([1, 1, 1, 7, 120]))
        if draw(st.booleans()):
            keyframe = draw(st.booleans())
            head = picture(0, 0, keyframe=keyframe).data
            pts = dts + draw(st.sampled_from([0, 0, 3000, 90_000]))
            units.append(AccessUnit(Codec.H264, pts, dts, head + body, keyframe))
        elif codec is Codec.AAC:
            body = body[:8000]
            units.append(AccessUnit(codec, dts, dts, adts(0, len(body))[:7] + body, keyframe=True))
        else:
            units.append(AccessUnit(codec, dts, dts, body[:60_000], keyframe=True))
    return units


@given(
    units=arbitrary_units(),
    cuts=st.lists(st.integers(1, 3000), min_size=1, max_size=20),
    segments=st.sets(st.integers(0, 11)),
)
def test_what_is_written_is_what_is_read(
    units: list[AccessUnit], cuts: list[int], segments: set[int]
) -> None:
    """Arbitrary units, cut into arbitrary pieces and segments, over the wrap of the clock."""
    sound = next((unit.codec for unit in units if unit.codec is not Codec.H264), None)
    muxer, demuxer = Muxer(audio=sound), Demuxer()
    stream = muxer.begin_segment()
    for index, unit in enumerate(units):
        stream += (muxer.begin_segment() if index in segments else b"") + muxer.write(unit)
    found: list[AccessUnit] = []
    position = 0
    for cut in cycle(cuts):
        found += demuxer.feed(stream[position : position + cut])
        position += cut
        if position >= len(stream):
            break
    expected = [replace(unit, pts=unit.pts % mpegts.WRAP, dts=unit.dts % mpegts.WRAP) for unit in units]
    assert found == expected
    assert demuxer.lost == INTACT
    assert counters_are_continuous(stream)


@given(cuts=st.lists(st.integers(1, 2000), min_size=1, max_size=50))
@settings(max_examples=50, deadline=None)
def test_units_do_not_depend_on_how_the_bytes_are_cut(cuts: list[int]) -> None:
    stream = made_by_libav("libopus", 2)
    damaged = bytearray(stream[: 188 * 300])
    damaged[188 * 100 + 7 : 188 * 104 + 90] = b""
    damaged[188 * 200] = 0
    for data in (stream, bytes(damaged)):
        whole, pieces = Demuxer(), Demuxer()
        expected = whole.feed(data) + whole.end_segment()
        units: list[AccessUnit] = []
        position = index = 0
        while position < len(data):
            step = cuts[index % len(cuts)]
            units += pieces.feed(data[position : position + step])
            position, index = position + step, index + 1
        assert units + pieces.end_segment() == expected
        assert pieces.lost == whole.lost
