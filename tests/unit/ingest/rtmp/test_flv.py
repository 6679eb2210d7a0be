"""FLV's sounds and pictures become access units and back; what cannot be used costs itself and no more."""

from __future__ import annotations

import contextlib
import io
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import InvalidError
from services.common.media import h264
from services.common.media.codec import VideoDecoder
from services.common.media.mpegts import CLOCK_HZ, AccessUnit, Codec
from services.common.media.sound import AudioDecoder
from services.ingest.transports.rtmp import aac, avc, tags
from services.ingest.transports.rtmp.chunks import Kind, Message
from services.ingest.transports.rtmp.units import TagReader, TagWriter
from tests.support.media import FRAME, pictures, sound
from tests.support.rtmp import flv, messages_of

SETS = h264.parameter_sets(pictures(1)[0].data)
CONFIG = tags.write_video(tags.Part.CONFIG, avc.config_record(SETS), keyframe=True)
AAC = aac.AacConfig(1, 3, 2)
AAC_CONFIG = tags.write_aac(tags.Part.CONFIG, aac.specific_config(AAC))


def video(payload: bytes, at_ms: int = 0) -> Message:
    return Message(Kind.VIDEO, payload, at_ms)


def audio(payload: bytes, at_ms: int = 0) -> Message:
    return Message(Kind.AUDIO, payload, at_ms)


def picture(unit: AccessUnit, later_ms: int = 0) -> bytes:
    body = avc.from_annex_b(unit.data)
    return tags.write_video(tags.Part.MEDIA, body, keyframe=unit.keyframe, shown_after_ms=later_ms)


def same(unit: AccessUnit) -> tuple[int, int, bool, list[bytes]]:
    """What a picture is, whichever start codes it has."""
    return unit.pts, unit.dts, unit.keyframe, list(h264.nal_units(unit.data))


def read(messages: list[Message]) -> tuple[TagReader, list[AccessUnit]]:
    reader = TagReader()
    return reader, [unit for one in messages if (unit := reader.read(one)) is not None]


# --- what libav writes


def test_what_libav_writes_can_be_decoded_and_shown_at_its_times(tmp_path: Path) -> None:
    path = flv(tmp_path / "clip.flv", seconds=2.0)
    reader, units = read(messages_of(path))
    assert (reader.damaged, reader.left_out) == (0, "")
    assert reader.streams == (Codec.H264, Codec.AAC)
    decoder, ear = VideoDecoder(), AudioDecoder(Codec.AAC)
    frames = [
        frame for unit in units if unit.codec is Codec.H264 for frame in decoder.decode(unit.data, unit.pts)
    ]
    frames += decoder.flush()
    heard = [part for unit in units if unit.codec is Codec.AAC for part in ear.decode(unit.data, unit.pts)]
    assert (decoder.errors, ear.errors) == (0, 0)
    assert [frame.pts - frames[0].pts for frame in frames] == [index * FRAME for index in range(50)]
    assert sum(part.samples.shape[1] for part in heard) > 90_000


def test_pictures_that_are_decoded_out_of_their_order_keep_both_times(tmp_path: Path) -> None:
    path = flv(tmp_path / "clip.flv", seconds=2.0, audio=None, b_frames=2)
    _, units = read(messages_of(path))
    assert len(units) == 50
    dts, pts = [unit.dts for unit in units], [unit.pts for unit in units]
    assert dts == sorted(set(dts))
    assert pts != sorted(pts), "there are B-frames"
    assert [later - pts[0] for later in sorted(pts)] == [index * FRAME for index in range(50)]
    with av.open(str(path)) as container:
        wanted = [(packet.pts, packet.dts) for packet in container.demux(video=0) if packet.pts is not None]
    assert [(unit.pts // 90, unit.dts // 90) for unit in units] == wanted


def test_every_key_frame_has_its_parameter_sets_and_only_key_frames_are_one(tmp_path: Path) -> None:
    _, units = read(messages_of(flv(tmp_path / "clip.flv", seconds=2.0, audio=None)))
    keys = [unit for unit in units if unit.keyframe]
    assert len(keys) >= 2
    assert all(h264.has_parameter_sets(unit.data) for unit in keys)
    assert [h264.is_keyframe(unit.data) for unit in units] == [unit.keyframe for unit in units]


def test_opus_in_an_enhanced_tag_is_carried() -> None:
    with av.open(io.BytesIO(), "w", format="flv") as container:
        stream = container.add_stream("libopus", rate=48_000, layout="stereo")
        assert isinstance(stream, av.AudioStream)
    packet = b"\xfc\xff\xfe"
    head = b"OpusHead\x01\x02\x38\x01\x80\xbb\x00\x00\x00\x00\x00"
    reader, units = read([video(CONFIG), audio(b"\x90Opus" + head), audio(b"\x91Opus" + packet, 20)])
    assert reader.streams == (Codec.H264, Codec.OPUS)
    assert units == [AccessUnit(Codec.OPUS, 1800, 1800, packet, keyframe=True)]


# --- there and back


@given(st.lists(st.binary(min_size=1, max_size=50), min_size=1, max_size=5), st.integers(1, 4))
def test_units_with_lengths_become_units_with_start_codes(bodies: list[bytes], length_size: int) -> None:
    units = [b"\x41" + body.replace(b"\x00", b"\x01") for body in bodies]
    data = b"".join(len(unit).to_bytes(length_size, "big") + unit for unit in units)
    annex_b, keyframe = avc.to_annex_b(data, length_size)
    assert list(h264.nal_units(annex_b)) == units
    assert not keyframe
    if length_size == 4:
        assert avc.from_annex_b(annex_b) == data


def test_a_picture_goes_there_and_back_as_it_was() -> None:
    reader, units = read([video(CONFIG), *(video(picture(unit), unit.dts // 90) for unit in pictures(30))])
    assert [same(unit) for unit in units] == [same(unit) for unit in pictures(30)]
    assert reader.damaged == 0


def test_delimiters_and_empty_units_are_left_out() -> None:
    body = b"\x00\x00\x00\x02\x09\xf0" + bytes(4) + b"\x00\x00\x00\x03\x65\x88\x84"
    assert avc.to_annex_b(body, 4) == (b"\x00\x00\x00\x01\x65\x88\x84", True)


@pytest.mark.parametrize("channels", [1, 2, 6, 7])
@pytest.mark.parametrize("rate_index", [3, 4, 8, 12])
def test_an_aac_configuration_goes_there_and_back(rate_index: int, channels: int) -> None:
    config = aac.AacConfig(1, rate_index, channels)
    assert aac.read_config(aac.specific_config(config)) == config
    assert aac.from_adts(aac.to_adts(config, b"sound")) == (config, b"sound")


def test_an_adts_header_is_the_one_that_everybody_writes() -> None:
    (unit,) = sound(1)
    config, frame = aac.from_adts(unit.data)
    assert aac.to_adts(config, frame) == unit.data
    checked = unit.data[:1] + b"\xf0" + unit.data[2:7] + b"CR" + frame
    assert aac.from_adts(checked) == (config, frame)


@pytest.mark.parametrize(
    ("raw", "config"),
    [
        (b"\x2b\x11\x88\x00", aac.AacConfig(1, 6, 2)),  # HE-AAC, 24 kHz that are played as 48
        (b"\x17\x80\x56\x22\x10", aac.AacConfig(1, 4, 2)),  # 44.1 kHz in words
    ],
    ids=["he-aac", "a rate of its own"],
)
def test_what_other_encoders_say_of_their_aac_is_understood(raw: bytes, config: aac.AacConfig) -> None:
    assert aac.read_config(raw) == config


@pytest.mark.parametrize(
    "raw",
    [b"", b"\x12", b"\xf8\x00\x00", b"\x12\x00", b"\x17\x80\x00\x00\x10", b"\x17\x00", b"\x2f\x11"],
    ids=["nothing", "half", "type 32", "no channels", "1 Hz", "rate 14", "half of HE-AAC"],
)
def test_aac_that_adts_cannot_say_is_left_out_by_its_name_and_pictures_go_on(raw: bytes) -> None:
    with pytest.raises(InvalidError):
        aac.read_config(raw)
    messages = [
        video(CONFIG),
        audio(b"\xaf\x00" + raw),
        audio(b"\xaf\x01sound"),
        video(picture(pictures(1)[0])),
    ]
    reader, units = read(messages)
    assert reader.left_out
    assert [unit.codec for unit in units] == [Codec.H264]
    assert reader.streams == (Codec.H264,)


# --- time


def test_time_goes_on_past_24_bits_32_bits_and_libavs_31() -> None:
    for before, after, step_ms in (
        (0xFFFFFFFF - 10, 20, 31),
        (0x00FFFFFF, 0x01000010, 17),
        (0x7FFFFFFF, 39, 40),
        (0x7FFFFFFF, 0x80000000, 1),
    ):
        reader = TagReader()
        reader.read(video(CONFIG))
        first, second = (reader.read(video(picture(pictures(1)[0]), stamp)) for stamp in (before, after))
        assert first is not None
        assert second is not None
        assert second.dts - first.dts == step_ms * 90


@given(st.lists(st.integers(-5000, 60_000), max_size=30), st.integers(0, 0xFFFFFFFF))
def test_time_follows_its_publisher_wherever_it_begins(steps: list[int], begin: int) -> None:
    reader = TagReader()
    reader.read(video(CONFIG))
    payload, at, dts = picture(pictures(1)[0]), begin, None
    for step in [0, *steps]:
        at += step
        unit = reader.read(video(payload, at & 0xFFFFFFFF))
        assert unit is not None
        assert dts is None or unit.dts - dts == step * 90
        dts = unit.dts


@pytest.mark.parametrize("later_ms", [-40, 0, 80, (1 << 23) - 1])
def test_a_composition_time_has_a_sign(later_ms: int) -> None:
    _, (unit,) = read([video(CONFIG), video(picture(pictures(1)[0], later_ms), 1000)])
    assert (unit.dts, unit.pts) == (90_000, 90_000 + later_ms * 90)


# --- what cannot be used


@pytest.mark.parametrize(
    ("payload", "name"),
    [
        (b"\x1c\x00\x00\x00\x00", "HEVC"),
        (b"\x12\x00", "Sorenson H.263"),
        (b"\x1f\x00", "video codec 15"),
        (b"\x90hvc1\x01", "HEVC"),
        (b"\x90av01\x81", "AV1"),
        (b"\x90vp09\x01", "VP9"),
        (b"\x90what\x01", "another codec"),
        (b"\x96\x00avc1", "several tracks"),
    ],
)
def test_video_that_is_not_h264_is_refused_by_its_name(payload: bytes, name: str) -> None:
    with pytest.raises(InvalidError) as refusal:
        TagReader().read(video(payload))
    assert refusal.value.reason == "UNSUPPORTED_CODEC"
    assert name in refusal.value.message


@pytest.mark.parametrize(
    ("payload", "name"),
    [
        (b"\x2f\xff\xfb", "MP3"),
        (b"\xb2\x00", "Speex"),
        (b"\x30\x00", "PCM"),
        (b"\x62\x00", "Nellymoser"),
        (b"\x90.mp3\x00", "MP3"),
        (b"\x91ac-3\x00", "AC-3"),
        (b"\x90xxxx\x00", "unknown"),
        (b"\x95\x00mp4a", "several tracks"),
    ],
)
def test_sound_that_is_not_carried_is_left_out_by_its_name(payload: bytes, name: str) -> None:
    reader, units = read([video(CONFIG), audio(payload), video(picture(pictures(1)[0]))])
    assert reader.left_out == name
    assert (len(units), reader.streams, reader.damaged) == (1, (Codec.H264,), 0)


def test_enhanced_tags_of_h264_are_read_in_each_of_their_forms() -> None:
    (unit,) = pictures(1)
    body = avc.from_annex_b(unit.data)
    config = b"\x90avc1" + avc.config_record(SETS)
    _, units = read([video(config), video(b"\x91avc1\x00\x00\x28" + body, 10), video(b"\x93avc1" + body, 50)])
    assert [(one.dts, one.pts) for one in units] == [(900, 900 + 3600), (4500, 4500)]


def test_pictures_that_are_cut_off_or_come_too_early_are_counted_and_left_out() -> None:
    (unit,) = pictures(1)
    whole = picture(unit)
    messages = [
        video(whole),
        audio(b"\xaf\x01x"),
        video(CONFIG),
        video(whole[:-1]),
        video(whole[:7]),
        video(whole),
    ]
    reader, units = read(messages)
    assert len(units) == 1
    assert reader.damaged == 4


@pytest.mark.parametrize(
    "payload", [b"", b"\x17", b"\x17\x02\x00\x00\x00", b"\x57\x01\x00\x00\x00", b"\x92avc1"]
)
def test_tags_that_say_nothing_about_a_picture_are_passed_over(payload: bytes) -> None:
    assert TagReader().read(video(payload)) is None
    assert TagReader().read(audio(b"")) is None
    assert TagReader().read(audio(b"\xaf\x02")) is None
    assert TagReader().read(Message(Kind.DATA, payload)) is None


@pytest.mark.parametrize("cut", range(1, 30))
def test_a_configuration_that_is_cut_off_is_refused(cut: int) -> None:
    record = avc.config_record(SETS)
    assert len(record) > 30
    with pytest.raises(InvalidError):
        avc.read_config(record[:cut])


def test_an_empty_configuration_is_waited_out() -> None:
    reader, units = read([video(b"\x17\x00\x00\x00\x00"), video(CONFIG), video(picture(pictures(1)[0]))])
    assert (len(units), reader.damaged) == (1, 0)


def test_a_configuration_that_changes_is_in_the_next_key_frame() -> None:
    other = SETS.replace(b"\x67\x42", b"\x67\x4d")
    config = tags.write_video(tags.Part.CONFIG, avc.config_record(other), keyframe=True)
    payload = picture(pictures(1)[0])
    _, (first, second) = read([video(CONFIG), video(payload), video(config), video(payload, 40)])
    assert h264.parameter_sets(first.data) == SETS
    assert h264.parameter_sets(second.data) == other


@given(st.sampled_from([Kind.VIDEO, Kind.AUDIO]), st.binary(max_size=200))
def test_garbage_is_refused_counted_or_passed_over_and_nothing_worse(kind: Kind, data: bytes) -> None:
    reader = TagReader()
    reader.read(video(CONFIG))
    reader.read(audio(AAC_CONFIG))
    for payload in (data, b"\x17\x01\x00\x00\x00" + data, b"\x17\x00\x00\x00\x00" + data, b"\xaf\x00" + data):
        with contextlib.suppress(InvalidError):
            reader.read(Message(kind, payload))


@given(st.binary(max_size=100))
def test_a_picture_of_garbage_becomes_no_half_of_one(data: bytes) -> None:
    with contextlib.suppress(InvalidError):
        annex_b, _ = avc.to_annex_b(data, 2)
        assert len(annex_b) <= 2 * len(data) + 4


def test_more_units_than_a_picture_has_are_refused() -> None:
    with pytest.raises(InvalidError):
        avc.to_annex_b(bytes(4 * 5000), 4)


# --- writing


def written(units: list[AccessUnit]) -> list[Message]:
    writer = TagWriter(7)
    return [message for unit in units for message in writer.write(unit)]


def test_what_is_written_is_read_again_from_zero_on() -> None:
    units = sorted([*pictures(30, start=900_000), *sound(30, start=900_000)], key=lambda unit: unit.pts)
    messages = written(units)
    assert {message.stream for message in messages} == {7}
    reader, got = read(messages)
    assert reader.damaged == 0
    shown = [unit for unit in got if unit.codec is Codec.H264]
    assert [same(unit) for unit in shown] == [same(unit) for unit in pictures(30)]
    heard = [unit for unit in got if unit.codec is Codec.AAC]
    assert [unit.data for unit in heard] == [unit.data for unit in sound(30)]
    assert all(abs(unit.pts - one.pts) <= 90 for unit, one in zip(heard, sound(30), strict=True))


def test_sound_and_pictures_before_the_first_key_frame_are_left_out() -> None:
    units = pictures(26, start=90_000)
    messages = written([*sound(1, start=89_000), *units[1:25], *sound(1, start=90_000), units[25]])
    assert [message.kind for message in messages] == [Kind.DATA, Kind.VIDEO, Kind.VIDEO]
    assert written([units[0], *sound(1, start=80_000)])[-1].kind == Kind.VIDEO


def test_new_parameter_sets_and_another_sound_are_said_before_they_are_used() -> None:
    (unit,) = pictures(1)
    other = AccessUnit(Codec.H264, FRAME, FRAME, unit.data.replace(b"\x67\x42", b"\x67\x4d"), keyframe=True)
    same = AccessUnit(Codec.H264, 2 * FRAME, 2 * FRAME, other.data, keyframe=True)
    parts = [message.payload[:2] for message in written([unit, other, same])[1:]]
    assert parts == [b"\x17\x00", b"\x17\x01"] * 2 + [b"\x17\x01"]
    (tone,) = sound(1)
    louder = AccessUnit(Codec.AAC, 0, 0, tone.data[:2] + b"\x50" + tone.data[3:], keyframe=True)
    parts = [message.payload[:2] for message in written([unit, tone, tone, louder])[3:]]
    assert parts == [b"\xaf\x00", b"\xaf\x01", b"\xaf\x01", b"\xaf\x00", b"\xaf\x01"]


def test_time_is_written_past_32_bits() -> None:
    (unit,) = pictures(1)
    later = (1 << 32) * (CLOCK_HZ // 1000) + 90 * 40
    messages = written([unit, AccessUnit(Codec.H264, later, later, unit.data, keyframe=True)])
    assert messages[-1].timestamp == 40


def test_libav_reads_what_is_written(tmp_path: Path) -> None:
    units = sorted([*pictures(30, start=900_000), *sound(40, start=900_000)], key=lambda unit: unit.pts)
    path = tmp_path / "written.flv"
    path.write_bytes(b"FLV\x01\x05\x00\x00\x00\x09" + bytes(4) + b"".join(map(_in_file, written(units))))
    with av.open(str(path)) as container:
        stream: Any = container.streams.video[0]
        assert (stream.width, stream.height) == (64, 48)
        frames = list(container.decode(stream))
    assert [Fraction(frame.pts) * (frame.time_base or 0) for frame in frames] == [
        Fraction(index, 25) for index in range(30)
    ]
    with av.open(str(path)) as container:
        assert container.streams.audio[0].codec_context.sample_rate == 48_000
        assert len([packet for packet in container.demux(audio=0) if packet.size]) == 40


def _in_file(message: Message) -> bytes:
    payload = message.payload.removeprefix(b"\x02\x00\x0d@setDataFrame")
    time = message.timestamp
    head = bytes((message.kind,)) + len(payload).to_bytes(3, "big") + (time & 0xFFFFFF).to_bytes(3, "big")
    tag = head + bytes((time >> 24,)) + bytes(3) + payload
    return tag + len(tag).to_bytes(4, "big")
