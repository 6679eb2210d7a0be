from __future__ import annotations

import pytest

from services.common.media import mpegts
from services.common.media.mpegts import Codec, Demuxer
from services.common.media.mpegts.packets import Track
from tests.support.transport import (
    INTACT,
    adts,
    opus,
    packetized,
    pes,
    tables,
    timed,
)


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
    track, demuxer = Track(0x101), Demuxer()
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
    track, demuxer = Track(0x101), Demuxer()
    demuxer.feed(tables((0x0F, 0x101, b"")))
    assert len(demuxer.feed(track.packets(pes(frames[0] + b"\x00" * 207 + frames[1], 9000)))) == 1
    assert len(demuxer.feed(track.packets(pes(frames[2], 20_000)))) == 1
    assert demuxer.lost.damaged_units == 1


def test_a_gap_does_not_join_the_halves_of_two_adts_frames() -> None:
    frames = [adts(index) for index in range(4)]
    track, demuxer = Track(0x101), Demuxer()
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
