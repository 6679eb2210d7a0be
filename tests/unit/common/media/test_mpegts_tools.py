"""What real tools write is read to the byte and the tick as libav reads it; see tests/data/README.md."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace

import av
import pytest

from services.common.media.mpegts import AccessUnit, Codec, Demuxer, DemuxStats
from tests.support.transport import DATA, INTACT, packets_of, pid_of, read, read_by_libav, timed


@dataclass(frozen=True)
class Sample:
    """What is known of a file without reading it with our own code."""

    name: str
    pictures: int
    keyframes: int
    audio: Codec | None = None
    sounds: int = 0
    lost: DemuxStats = INTACT

    @property
    def stream(self) -> bytes:
        return (DATA / "ts" / f"{self.name}.ts").read_bytes()


TIMED = DemuxStats(resyncs=1, bytes_skipped=4)  # the time before the first packet
SAMPLES = {
    sample.name: sample
    for sample in (
        Sample("ffmpeg-default", 45, 3, Codec.AAC, 72),
        Sample("ffmpeg-b-frames", 45, 2, Codec.AAC, 72),
        Sample("ffmpeg-large-pes", 45, 3, Codec.AAC, 72),
        Sample("ffmpeg-opus", 45, 3, Codec.OPUS, 76),
        Sample("ffmpeg-muxdelay-0", 45, 3, Codec.AAC, 72),
        Sample("ffmpeg-tables-often", 45, 3, Codec.AAC, 72),
        Sample("ffmpeg-cbr", 45, 3, Codec.AAC, 72),
        Sample("ffmpeg-m2ts", 45, 3, lost=TIMED),
        Sample("ffmpeg-many-programs", 15, 1, Codec.AAC, 25),
        Sample("ffmpeg-two-programs", 30, 2, Codec.AAC, 48),
        Sample("ffmpeg-video-only", 30, 2),
        Sample("gstreamer-default", 45, 3, Codec.AAC, 71),
        Sample("gstreamer-alignment-7", 45, 3, Codec.AAC, 71),
        Sample("gstreamer-b-frames", 45, 2),
        Sample("gstreamer-large", 2, 1),
        Sample("gstreamer-no-delimiter", 30, 2),
        Sample("gstreamer-opus", 45, 3, Codec.OPUS, 76),
        Sample("gstreamer-sets-once", 45, 3),
        Sample("obs", 42, 3, Codec.AAC, 66),
        Sample("pytrickle-0", 48, 1, Codec.OPUS, 101),
        Sample("pytrickle-1", 24, 1, Codec.OPUS, 50),
    )
}
every_sample = pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)


def pictures_of(units: list[AccessUnit]) -> list[AccessUnit]:
    return [unit for unit in units if unit.codec is Codec.H264]


@every_sample
def test_the_units_are_those_that_libav_reads(sample: Sample) -> None:
    units = read(sample.stream, sample.lost)
    reference = read_by_libav(sample.stream)
    assert timed(units, Codec.H264) == reference["h264"]
    assert len(pictures_of(units)) == sample.pictures
    if sample.audio is not None:
        assert timed(units, sample.audio) == reference[sample.audio.value]
        assert len(units) - sample.pictures == sample.sounds


@every_sample
def test_the_key_frames_are_those_of_the_decoder(sample: Sample) -> None:
    units = read(sample.stream, sample.lost)
    with av.open(io.BytesIO(sample.stream), "r", format="mpegts") as container:
        decoded = [frame.pts for frame in container.decode(video=0) if frame.key_frame]
    keyframes = [unit.pts for unit in pictures_of(units) if unit.keyframe]
    assert keyframes == decoded
    assert len(keyframes) == sample.keyframes


@every_sample
def test_a_picture_is_there_before_the_next_one_begins(sample: Sample) -> None:
    """Though most of these streams do not say how long their pictures are."""
    demuxer = Demuxer()
    begun: list[int] = []
    given: list[int] = []
    stride = 188 if sample.lost == INTACT else 192
    packets = [sample.stream[at : at + stride] for at in range(0, len(sample.stream), stride)]
    for index, packet in enumerate(packets):
        given += [index for _ in pictures_of(demuxer.feed(packet))]
        header = packet[-188:]
        reader = demuxer._media.get(pid_of(header))
        if header[1] & 0x40 and reader is not None and reader.codec is Codec.H264:
            begun.append(index)
    assert len(begun) == sample.pictures
    assert all(last < following for last, following in zip(given, [*begun[1:], len(packets)], strict=True))


def test_the_segments_of_a_runner_are_read_one_after_the_other() -> None:
    """Each of them counts its packets anew."""
    demuxer = Demuxer()
    units: list[AccessUnit] = []
    for name in ("pytrickle-0", "pytrickle-1"):
        units += demuxer.feed(SAMPLES[name].stream)
        units += demuxer.end_segment()
    assert len(pictures_of(units)) == 72
    assert demuxer.lost == INTACT


def test_a_second_program_is_none_of_ours() -> None:
    sample = SAMPLES["ffmpeg-two-programs"]
    others = {pid_of(packet) for packet in packets_of(sample.stream)}
    assert {0x11, 0x102} < others, "the table of services, and the second program's pictures"
    demuxer = Demuxer()
    demuxer.feed(sample.stream)
    assert demuxer.streams == (Codec.H264, Codec.AAC)


def test_the_table_of_programs_may_be_longer_than_a_packet() -> None:
    association = [
        packet for packet in packets_of(SAMPLES["ffmpeg-many-programs"].stream) if pid_of(packet) == 0
    ]
    assert [packet[1] & 0x40 for packet in association[:2]] == [0x40, 0]


@pytest.mark.parametrize("name", ["ffmpeg-default", "gstreamer-opus"])
def test_packets_with_a_checksum_behind_each_are_read(name: str) -> None:
    sample = SAMPLES[name]
    coded = b"".join(packet + bytes(range(16)) for packet in packets_of(sample.stream))
    assert read(coded, DemuxStats(resyncs=1, bytes_skipped=16)) == read(sample.stream)


@every_sample
def test_a_reader_may_join_within_a_packet(sample: Sample) -> None:
    """What comes before the first table, and the picture that was under way, is passed over."""
    stream = sample.stream
    whole = pictures_of(read(stream, sample.lost))
    demuxer = Demuxer()
    late = pictures_of(demuxer.feed(stream[1000:]) + demuxer.end_segment())
    assert late == whole[len(whole) - len(late) :]
    assert replace(demuxer.lost, resyncs=0, bytes_skipped=0) in {INTACT, replace(INTACT, continuity_errors=1)}
    if sample.name != "gstreamer-large":  # two pictures, the first from its first bytes on
        assert len(late) >= sample.pictures // 2
