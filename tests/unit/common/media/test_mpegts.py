from __future__ import annotations

import io
import random
import struct
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.errors import InvalidError
from services.common.media import h264, mpegts
from services.common.media.mpegts import AccessUnit, Codec, Demuxer, DemuxStats, Muxer

SAMPLE = Path(__file__).parents[3] / "data" / "bigbuckbunny.mp4"
INTACT = DemuxStats(resyncs=0, continuity_errors=0, damaged_units=0, bytes_skipped=0, oversized_units=0)
TICK = Fraction(1, 90_000)

Timed = list[tuple[int, int, bytes]]


@cache
def made_by_libav(audio: str, b_frames: int = 0, frames: int = 60, pes_payload_size: int = 2930) -> bytes:
    """A transport stream from libav's encoders and its muxer: 320x180 at 30 frames/s, and stereo."""
    out = io.BytesIO()
    with av.open(out, "w", format="mpegts", options={"pes_payload_size": str(pes_payload_size)}) as container:
        video = container.add_stream("libx264", rate=30)
        video.width, video.height, video.pix_fmt = 320, 180, "yuv420p"
        video.time_base = video.codec_context.time_base = TICK
        video.codec_context.max_b_frames = b_frames
        video.codec_context.gop_size = 15
        video.codec_context.options = {"preset": "ultrafast", "bf": str(b_frames)}
        sound = container.add_stream(audio, rate=48_000)
        assert isinstance(sound, av.AudioStream)
        noise = np.random.default_rng(7)
        for index in range(frames):
            pixels = np.full((180, 320, 3), index * 4 % 256, np.uint8)
            pixels[:40] = noise.integers(0, 256, (40, 320, 3), dtype=np.uint8)
            picture = av.VideoFrame.from_ndarray(pixels)
            picture.pts, picture.time_base = 90_000 + index * 3000, TICK
            container.mux(video.encode(picture))
            samples = noise.normal(0, 0.1, (2, 1600)).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(samples, "fltp", "stereo")
            frame.sample_rate, frame.pts, frame.time_base = 48_000, 48_000 + index * 1600, Fraction(1, 48_000)
            container.mux(sound.encode(frame))
        container.mux(video.encode(None))
        container.mux(sound.encode(None))
    return out.getvalue()


@cache
def remuxed_sample() -> bytes:
    out = io.BytesIO()
    with av.open(str(SAMPLE), "r") as source, av.open(out, "w", format="mpegts") as container:
        streams = {stream: container.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream]
                container.mux(packet)
    return out.getvalue()


def read_by_libav(stream: bytes) -> dict[str, Timed]:
    """Per codec, what libav's demuxer reads: times and bytes, pictures without their delimiters."""
    found: dict[str, Timed] = {}
    with av.open(io.BytesIO(stream), "r") as container:
        for packet in container.demux():
            if packet.size:
                assert packet.pts is not None
                assert packet.dts is not None
                timed = packet.pts, packet.dts, h264.strip_delimiter(bytes(packet))
                found.setdefault(packet.stream.codec_context.name, []).append(timed)
    return found


def read(stream: bytes) -> list[AccessUnit]:
    demuxer = Demuxer()
    units = demuxer.feed(stream) + demuxer.end_segment()
    assert demuxer.lost == INTACT
    return units


def timed(units: Sequence[AccessUnit], codec: Codec) -> Timed:
    return [(unit.pts, unit.dts, unit.data) for unit in units if unit.codec is codec]


def picture(index: int, size: int = 4000, *, keyframe: bool = False, pts: int | None = None) -> AccessUnit:
    """What looks like a picture to whoever does not decode it; no two are alike."""
    head = (
        b"\x00\x00\x00\x01\x67\x42\x00\x00\x00\x01\x68\xce\x00\x00\x00\x01\x65"
        if keyframe
        else b"\x00\x00\x00\x01\x41"
    )
    body = bytes(random.Random(index).choices(range(1, 256), k=size))
    pts = 90_000 + 3000 * index if pts is None else pts
    return AccessUnit(Codec.H264, pts, pts, head + body, keyframe)


def opus(index: int, size: int = 160) -> AccessUnit:
    pts = 90_000 + 1800 * index
    packet = b"\xfc" + bytes(random.Random(index).choices(range(256), k=size))  # CELT, 20 ms, one frame
    return AccessUnit(Codec.OPUS, pts, pts, packet, keyframe=True)


def adts(index: int, size: int = 200) -> bytes:
    length = size + 7
    head = struct.pack(
        ">BBBBBBB", 0xFF, 0xF1, 0x4C, 0x80 | length >> 11, length >> 3 & 0xFF, (length & 7) << 5 | 0x1F, 0xFC
    )
    return head + bytes(random.Random(index).choices(range(200), k=size))


def packets_of(stream: bytes) -> list[bytes]:
    assert len(stream) % 188 == 0
    return [stream[at : at + 188] for at in range(0, len(stream), 188)]


def pid_of(packet: bytes) -> int:
    return int.from_bytes(packet[1:3], "big") & 0x1FFF


def program_map(*streams: tuple[int, int, bytes]) -> bytes:
    entries = b"".join(
        struct.pack(">BHH", kind, 0xE000 | pid, 0xF000 | len(descriptors)) + descriptors
        for kind, pid, descriptors in streams
    )
    return mpegts._section(2, 1, struct.pack(">HH", 0xFFFF, 0xF000) + entries)


def program_association(pid: int = 0x1000) -> bytes:
    return mpegts._section(0, 1, struct.pack(">HH", 1, 0xE000 | pid))


def packetized(pid: int, payload: bytes) -> bytes:
    return mpegts._Track(pid).packets(payload)


def tables(*streams: tuple[int, int, bytes]) -> bytes:
    association = mpegts._section_payload(program_association())
    return packetized(0, association) + packetized(0x1000, mpegts._section_payload(program_map(*streams)))


def pes(payload: bytes, pts: int) -> bytes:
    return struct.pack(">IHBBB", 0x1C0, len(payload) + 8, 0x84, 0x80, 5) + mpegts._stamp(2, pts) + payload


# --- against libav --------------------------------------------------------------------------------


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
    stream = remuxed_sample()
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
    counters: dict[int, int] = {}
    for packet in packets_of(b"".join(segments)):
        if packet[3] & 0x10:
            assert packet[3] & 15 == (counters.get(pid_of(packet), -1) + 1) & 15
            counters[pid_of(packet)] = packet[3] & 15


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


def test_a_picture_above_64_kb_comes_out_with_the_next_one_or_at_the_segments_end() -> None:
    muxer, demuxer = Muxer(), Demuxer()
    first, second = picture(0, size=70_000, keyframe=True), picture(1, size=66_000)
    assert demuxer.feed(muxer.begin_segment() + muxer.write(first)) == []
    assert demuxer.feed(muxer.write(second)) == [first]
    assert demuxer.end_segment() == [second]
    assert demuxer.lost == INTACT


def test_a_segment_cut_within_a_packet_loses_the_unit_that_it_cut() -> None:
    muxer, demuxer = Muxer(), Demuxer()
    demuxer.feed(muxer.begin_segment() + muxer.write(picture(0, size=70_000))[:-100])
    assert demuxer.end_segment() == []
    assert demuxer.lost.damaged_units == 1
    assert demuxer.lost.bytes_skipped == 88
    following = picture(1, keyframe=True)
    assert demuxer.feed(muxer.begin_segment() + muxer.write(following)) == [following]


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


# --- what the muxer writes ------------------------------------------------------------------------


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


# --- damage ---------------------------------------------------------------------------------------


def test_a_lost_packet_costs_one_unit() -> None:
    muxer, demuxer = Muxer(), Demuxer()
    units = [picture(index, keyframe=index == 0) for index in range(5)]
    written = [muxer.write(unit) for unit in units]
    written[2] = written[2][: 188 * 5] + written[2][188 * 6 :]
    assert demuxer.feed(muxer.begin_segment() + b"".join(written)) == units[:2] + units[3:]
    assert demuxer.lost == DemuxStats(0, 1, 1, 0, 0)


def test_a_lost_first_packet_costs_one_unit() -> None:
    muxer, demuxer = Muxer(), Demuxer()
    units = [picture(index, keyframe=index == 0) for index in range(3)]
    written = [muxer.write(unit) for unit in units]
    assert demuxer.feed(muxer.begin_segment() + written[0] + written[1][188:] + written[2]) == [
        units[0],
        units[2],
    ]
    assert demuxer.lost.continuity_errors == 1


def test_a_repeated_packet_changes_nothing() -> None:
    muxer, demuxer = Muxer(), Demuxer()
    units = [picture(0, keyframe=True), picture(1, size=50), picture(2)]
    stream = muxer.begin_segment() + b"".join(muxer.write(unit) for unit in units)
    assert demuxer.feed(b"".join(packet * 2 for packet in packets_of(stream))) == units
    assert demuxer.lost == INTACT


def test_an_announced_discontinuity_is_no_error() -> None:
    demuxer = Demuxer()
    before, after = picture(0, size=70_000, keyframe=True), picture(1, keyframe=True)
    demuxer.feed(Muxer().begin_segment() + Muxer().write(before))
    restarted = bytearray(Muxer().write(after))
    restarted[5] |= 0x80
    assert demuxer.feed(bytes(restarted)) == [before, after]
    assert demuxer.lost == INTACT


def test_garbage_between_packets_is_skipped_and_counted() -> None:
    muxer, demuxer = Muxer(), Demuxer()
    units = [picture(index, keyframe=index == 0) for index in range(3)]
    demuxer.feed(muxer.begin_segment())
    garbage = bytes(range(72)) * 9  # 0x47 is in it, and not 188 bytes apart
    assert demuxer.feed(muxer.write(units[0]) + garbage + muxer.write(units[1])) == units[:2]
    assert demuxer.lost == DemuxStats(1, 0, 0, len(garbage), 0)
    assert demuxer.feed(muxer.write(units[2])) == units[2:]


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=400),
            st.tuples(
                st.sampled_from([0, 0x100, 0x101, 0x1000]), st.integers(0, 0xFF), st.binary(max_size=184)
            ).map(
                lambda parts: (struct.pack(">BHB", 0x47, 0x4000 | parts[0], parts[1]) + parts[2]).ljust(
                    188, b"\x00"
                )
            ),
            st.binary(max_size=40).map(
                lambda data: packetized(0x100, b"\x00\x00\x01\xe0\x00\x00\x84\xc0\x0a" + data + b"\xff")
            ),
            st.binary(max_size=60).map(lambda data: packetized(0x101, pes(data + b"\x00", 0))),
            st.binary(max_size=60).map(
                lambda data: packetized(0x1000, mpegts._section_payload(mpegts._section(2, 1, data)))
            ),
            st.just(tables((0x1B, 0x100, b""), (0x0F, 0x101, b""))),
            st.just(tables((0x1B, 0x100, b""), (0x06, 0x101, b"\x05\x04Opus"))),
        )
    )
)
@settings(max_examples=200, deadline=None)
def test_arbitrary_bytes_never_raise(pieces: list[bytes]) -> None:
    demuxer = Demuxer()
    demuxer.feed(Muxer(audio=Codec.AAC).begin_segment())
    for piece in pieces:
        demuxer.feed(piece)
    demuxer.end_segment()


@given(seed=st.integers(0, 1 << 32))
@settings(max_examples=60, deadline=None)
def test_a_damaged_stream_heals(seed: int) -> None:
    chance = random.Random(seed)
    stream = made_by_libav(chance.choice(["aac", "libopus"]))
    packets = packets_of(stream)
    middle = len(packets) // 2
    damaged = bytearray()
    for index, packet in enumerate(packets):
        if index >= middle or index < 3 or chance.random() > 0.2:
            damaged += packet
        elif chance.random() > 0.5:
            flipped = bytearray(packet)
            for _ in range(chance.randint(1, 8)):
                flipped[chance.randrange(188)] ^= 1 << chance.randrange(8)
            damaged += flipped[: chance.choice([188, 188, 100])]
    demuxer, fresh = Demuxer(), Demuxer()
    units = demuxer.feed(bytes(damaged)) + demuxer.end_segment()
    fresh.feed(b"".join(packets[:3]))
    undamaged = fresh.feed(b"".join(packets[middle:])) + fresh.end_segment()
    for codec in (Codec.H264, fresh.streams[1]):
        healed = timed(undamaged, codec)[1:]
        assert len(healed) > 10
        assert timed(units, codec)[-len(healed) :] == healed


def test_a_unit_without_an_end_is_dropped_at_4_mib() -> None:
    muxer, demuxer = Muxer(), Demuxer()
    demuxer.feed(muxer.begin_segment())
    endless = AccessUnit(
        Codec.H264, 90_000, 90_000, b"\x00\x00\x00\x01\x65" + b"\x88" * (5 << 20), keyframe=True
    )
    for packet in packets_of(muxer.write(endless)):
        assert demuxer.feed(packet) == []
        assert demuxer._media[0x100]._size <= mpegts.LARGEST_UNIT + 188
    assert demuxer._media[0x100]._parts == []
    following = picture(1)
    assert demuxer.feed(muxer.write(following)) == [following]
    assert demuxer.lost == DemuxStats(0, 0, 0, 0, 1)


@pytest.mark.parametrize("control", [0x80, 0xC0])
def test_scrambled_and_null_packets_are_ignored(control: int) -> None:
    muxer, demuxer = Muxer(), Demuxer()
    unit = picture(0, keyframe=True)
    written = packets_of(muxer.write(unit))
    scrambled = b"\x47\x01\x00" + bytes((control | 0x10,)) + bytes(184)
    null = b"\x47\x1f\xff\x10" + bytes(184)
    stream = muxer.begin_segment() + b"".join(packet + null + scrambled for packet in written)
    assert demuxer.feed(stream) == [unit]
    assert demuxer.lost == INTACT


def test_the_header_of_a_pes_packet_may_be_cut_by_the_end_of_a_packet() -> None:
    demuxer, track = Demuxer(), mpegts._Track(0x100)
    demuxer.feed(Muxer().begin_segment())
    unit = picture(0, size=900, keyframe=True)
    body = b"\x80\x80\x05" + mpegts._stamp(2, unit.pts) + unit.data
    whole = b"\x00\x00\x01\xe0" + struct.pack(">H", len(body)) + body
    stream = track.packets(whole, adaptation=b"\x00" + b"\xff" * 178)
    assert stream[188 - 4 : 188] == whole[:4]
    assert demuxer.feed(stream) == [unit]


def test_a_pes_packet_with_a_delimiter_and_no_picture_is_dropped() -> None:
    demuxer = Demuxer()
    demuxer.feed(Muxer().begin_segment())
    empty = struct.pack(">IHBBB", 0x1E0, 8, 0x84, 0x80, 5) + mpegts._stamp(2, 0)
    assert demuxer.feed(packetized(0x100, empty)) == []
    assert demuxer.lost.damaged_units == 1


def test_a_picture_without_a_time_is_dropped() -> None:
    demuxer = Demuxer()
    demuxer.feed(Muxer().begin_segment())
    body = b"\x80\x00\x00" + picture(0, size=50).data
    assert demuxer.feed(packetized(0x100, b"\x00\x00\x01\xe0" + struct.pack(">H", len(body)) + body)) == []
    assert demuxer.lost.damaged_units == 1


# --- tables ---------------------------------------------------------------------------------------


def test_the_checksum_is_crc_32_mpeg_2() -> None:
    assert mpegts.crc32(b"123456789") == 0x0376E6E7


def test_a_program_map_over_several_packets_is_read() -> None:
    filler = b"\x52" + bytes((250,)) + bytes(250)
    section = program_map(
        (0x1B, 0x200, filler), (0x06, 0x201, filler + b"\x05\x04Opus\x7f\x02\x80\x02"), (0x06, 0x202, b"")
    )
    demuxer = Demuxer()
    demuxer.feed(packetized(0, mpegts._section_payload(program_association())))
    pieces = packets_of(packetized(0x1000, (b"\x00" + section).ljust(184 * 4, b"\xff")))
    for piece in pieces[:2]:
        demuxer.feed(piece)
        assert demuxer.streams == ()
    demuxer.feed(b"".join(pieces[2:]))
    assert demuxer.streams == (Codec.H264, Codec.OPUS, Codec.OTHER)


def test_a_second_section_may_start_in_the_packet_in_which_the_first_ends() -> None:
    track = mpegts._Track(0x1000)
    first = program_map((0x1B, 0x200, b"\x52" + bytes((240,)) + bytes(240)))
    second = program_map((0x24, 0x200, b""))
    head, tail = (b"\x00" + first)[:184], first[183:]
    demuxer = Demuxer()
    demuxer.feed(packetized(0, mpegts._section_payload(program_association())))
    demuxer.feed(track.packets(head))
    demuxer.feed(track.packets((bytes((len(tail),)) + tail + second).ljust(184, b"\xff")))
    assert demuxer.streams == (Codec.HEVC,)


def test_a_table_with_a_wrong_checksum_is_not_followed() -> None:
    demuxer = Demuxer()
    demuxer.feed(tables((0x1B, 0x100, b"")))
    section = bytearray(program_map((0x24, 0x100, b"")))
    section[-1] ^= 1
    demuxer.feed(packetized(0x1000, mpegts._section_payload(bytes(section))))
    assert demuxer.streams == (Codec.H264,)


def test_the_map_of_another_program_is_not_followed() -> None:
    demuxer = Demuxer()
    demuxer.feed(tables((0x1B, 0x100, b"")))
    entry = struct.pack(">HHBHH", 0xFFFF, 0xF000, 0x24, 0xE100, 0xF000)
    demuxer.feed(packetized(0x1000, mpegts._section_payload(mpegts._section(2, 2, entry))))
    assert demuxer.streams == (Codec.H264,)


def test_a_program_map_that_is_not_yet_in_force_is_not_followed() -> None:
    demuxer = Demuxer()
    demuxer.feed(tables((0x1B, 0x100, b"")))
    section = program_map((0x24, 0x100, b""))
    body = section[:5] + b"\xc0" + section[6:-4]
    demuxer.feed(packetized(0x1000, mpegts._section_payload(body + mpegts.crc32(body).to_bytes(4, "big"))))
    assert demuxer.streams == (Codec.H264,)


def test_a_stream_may_move_to_another_pid_and_another_program_map() -> None:
    demuxer = Demuxer()
    before, after = picture(0, size=70_000, keyframe=True), picture(1, keyframe=True)
    assert demuxer.feed(tables((0x1B, 0x100, b"")) + Muxer().write(before)) == []
    moved = program_map((0x1B, 0x300, b""))
    units = demuxer.feed(packetized(0, mpegts._section_payload(program_association(0x100))))
    units += demuxer.feed(packetized(0x100, mpegts._section_payload(moved)))
    assert units == [before]
    packets = [
        struct.pack(">BH", 0x47, packet[1] << 8 & 0x4000 | 0x300) + packet[3:]
        for packet in packets_of(Muxer().write(after))
    ]
    assert demuxer.feed(b"".join(packets)) == [after]
    assert demuxer.lost == INTACT


def test_repeated_tables_interrupt_nothing() -> None:
    muxer, demuxer = Muxer(), Demuxer()
    unit = picture(0, size=70_000, keyframe=True)
    packets = packets_of(muxer.write(unit))
    stream = b"".join(muxer.begin_segment() + packet for packet in packets)
    assert demuxer.feed(stream) + demuxer.end_segment() == [unit]
    assert demuxer.lost == INTACT


def test_media_before_the_tables_is_ignored() -> None:
    muxer, demuxer = Muxer(), Demuxer()
    assert demuxer.feed(muxer.write(picture(0, keyframe=True))) == []
    following = picture(1, keyframe=True)
    assert demuxer.feed(muxer.begin_segment() + muxer.write(following)) == [following]
    assert demuxer.lost == INTACT


# --- audio framing --------------------------------------------------------------------------------


def test_many_adts_frames_in_one_pes_packet_are_told_apart() -> None:
    frames = [adts(index) for index in range(5)]
    demuxer = Demuxer()
    units = demuxer.feed(
        tables((0x0F, 0x101, b"")) + packetized(0x101, pes(b"".join(frames), mpegts.WRAP - 2000))
    )
    assert [unit.data for unit in units] == frames
    assert [unit.pts for unit in units] == [
        (mpegts.WRAP - 2000 + 1920 * index) % mpegts.WRAP for index in range(5)
    ]


@pytest.mark.parametrize("cut", [3, 100, 206])
def test_an_adts_frame_may_be_cut_by_the_end_of_a_pes_packet(cut: int) -> None:
    frames = [adts(index) for index in range(6)]
    track, demuxer = mpegts._Track(0x101), Demuxer()
    demuxer.feed(tables((0x0F, 0x101, b"")))
    whole = b"".join(frames)
    at = 2 * 207 + cut
    units = demuxer.feed(track.packets(pes(whole[:at], 9000)))
    units += demuxer.feed(track.packets(pes(whole[at:], 9000 + 3 * 1920)))
    assert timed(units, Codec.AAC) == [
        (9000 + 1920 * index,) * 2 + (frame,) for index, frame in enumerate(frames)
    ]
    assert demuxer.lost == INTACT


def test_a_reader_that_joins_within_an_adts_frame_starts_at_the_next_one() -> None:
    frames = [adts(index) for index in range(3)]
    demuxer = Demuxer()
    units = demuxer.feed(tables((0x0F, 0x101, b"")) + packetized(0x101, pes(b"".join(frames)[50:], 9000)))
    assert timed(units, Codec.AAC) == [(9000, 9000, frames[1]), (10_920, 10_920, frames[2])]
    assert demuxer.lost.damaged_units == 1


def test_what_follows_a_broken_adts_frame_waits_for_the_next_pes_packet() -> None:
    frames = [adts(index) for index in range(3)]
    track, demuxer = mpegts._Track(0x101), Demuxer()
    demuxer.feed(tables((0x0F, 0x101, b"")))
    assert len(demuxer.feed(track.packets(pes(frames[0] + b"\x00" * 207 + frames[1], 9000)))) == 1
    assert len(demuxer.feed(track.packets(pes(frames[2], 20_000)))) == 1
    assert demuxer.lost.damaged_units == 1


def test_a_gap_does_not_join_the_halves_of_two_adts_frames() -> None:
    frames = [adts(index) for index in range(4)]
    track, demuxer = mpegts._Track(0x101), Demuxer()
    demuxer.feed(tables((0x0F, 0x101, b"")))
    demuxer.feed(track.packets(pes(frames[0][:100], 0)))
    track.packets(pes(frames[1], 1920))
    units = demuxer.feed(track.packets(pes(frames[2] + frames[3], 3840)))
    assert timed(units, Codec.AAC) == [(3840, 3840, frames[2]), (5760, 5760, frames[3])]


@pytest.mark.parametrize(
    ("packet", "ticks"),
    [
        (b"\x00", 900),  # SILK, 10 ms
        (b"\x18", 5400),  # SILK, 60 ms
        (b"\x60", 900),  # hybrid, 10 ms
        (b"\xe0", 225),  # CELT, 2.5 ms
        (b"\xf9", 3600),  # CELT, 20 ms, two frames
        (b"\xfb\x06", 10_800),  # CELT, 20 ms, six frames
        (b"\xfb", 0),
        (b"", 0),
    ],
)
def test_an_opus_packet_says_how_long_it_plays(packet: bytes, ticks: int) -> None:
    assert mpegts.opus_ticks(packet) == ticks


def test_several_opus_packets_in_one_pes_packet_are_told_apart() -> None:
    first, second, third = opus(0, 300).data, opus(1, 254).data, opus(2, 10).data
    framed = (
        b"\x7f\xf0\xff" + bytes((len(first) - 255,)) + b"\x00\x10" + first  # with a start trim
        + b"\x7f\xe0\xff\x00" + second
        + b"\x7f\xe4" + bytes((len(third),)) + b"\x02\xaa\xbb" + third  # with a control extension
    )  # fmt: skip
    demuxer = Demuxer()
    units = demuxer.feed(tables((0x06, 0x101, b"\x05\x04Opus")) + packetized(0x101, pes(framed, 9000)))
    assert timed(units, Codec.OPUS) == [
        (9000, 9000, first),
        (10_800, 10_800, second),
        (12_600, 12_600, third),
    ]


@pytest.mark.parametrize("framed", [b"\x7f\xe0\x20abc", b"\x12\x34\x03abc", b"\x7f", b"\x7f\xe0\xff"])
def test_broken_opus_framing_is_counted(framed: bytes) -> None:
    demuxer = Demuxer()
    assert demuxer.feed(tables((0x06, 0x101, b"\x05\x04Opus")) + packetized(0x101, pes(framed, 9000))) == []
    assert demuxer.lost.damaged_units == 1
