from __future__ import annotations

import struct

import pytest

from services.common.media import mpegts
from services.common.media.mpegts import Codec, Demuxer, DemuxStats, Muxer
from services.common.media.mpegts import tables as tables_
from services.common.media.mpegts.packets import Track
from services.common.media.mpegts.tables import association, in_packets, opus_descriptors, section
from tests.support.transport import (
    INTACT,
    packetized,
    packets_of,
    pes,
    picture,
    program_map,
    tables,
    untold,
)


def test_the_checksum_is_crc_32_mpeg_2() -> None:
    assert mpegts.crc32(b"123456789") == 0x0376E6E7


def test_a_program_map_over_several_packets_is_read() -> None:
    filler = b"\x52" + bytes((250,)) + bytes(250)
    section = program_map(
        (0x1B, 0x200, filler), (0x06, 0x201, filler + b"\x05\x04Opus\x7f\x02\x80\x02"), (0x06, 0x202, b"")
    )
    demuxer = Demuxer()
    demuxer.feed(packetized(0, in_packets(association(1, 0x1000))))
    pieces = packets_of(packetized(0x1000, (b"\x00" + section).ljust(184 * 4, b"\xff")))
    for piece in pieces[:2]:
        demuxer.feed(piece)
        assert demuxer.streams == ()
    demuxer.feed(b"".join(pieces[2:]))
    assert demuxer.streams == (Codec.H264, Codec.OPUS, Codec.OTHER)


def test_a_second_section_may_start_in_the_packet_in_which_the_first_ends() -> None:
    track = Track(0x1000)
    first = program_map((0x1B, 0x200, b"\x52" + bytes((240,)) + bytes(240)))
    second = program_map((0x24, 0x200, b""))
    head, tail = (b"\x00" + first)[:184], first[183:]
    demuxer = Demuxer()
    demuxer.feed(packetized(0, in_packets(association(1, 0x1000))))
    demuxer.feed(track.packets(head))
    demuxer.feed(track.packets((bytes((len(tail),)) + tail + second).ljust(184, b"\xff")))
    assert demuxer.streams == (Codec.HEVC,)


def test_a_table_with_a_wrong_checksum_is_not_followed() -> None:
    demuxer = Demuxer()
    demuxer.feed(tables((0x1B, 0x100, b"")))
    section = bytearray(program_map((0x24, 0x100, b"")))
    section[-1] ^= 1
    demuxer.feed(packetized(0x1000, in_packets(bytes(section))))
    assert demuxer.streams == (Codec.H264,)
    assert demuxer.lost == DemuxStats(damaged_sections=1)


def test_the_map_of_another_program_is_not_followed() -> None:
    demuxer = Demuxer()
    demuxer.feed(tables((0x1B, 0x100, b"")))
    entry = struct.pack(">HHBHH", 0xFFFF, 0xF000, 0x24, 0xE100, 0xF000)
    demuxer.feed(packetized(0x1000, in_packets(section(2, 2, entry))))
    assert demuxer.streams == (Codec.H264,)


def test_a_program_map_that_is_not_yet_in_force_is_not_followed() -> None:
    demuxer = Demuxer()
    demuxer.feed(tables((0x1B, 0x100, b"")))
    section = program_map((0x24, 0x100, b""))
    body = section[:5] + b"\xc0" + section[6:-4]
    demuxer.feed(packetized(0x1000, in_packets(body + mpegts.crc32(body).to_bytes(4, "big"))))
    assert demuxer.streams == (Codec.H264,)


def test_a_stream_may_move_to_another_pid_and_another_program_map() -> None:
    demuxer = Demuxer()
    (before, open_ended), after = untold(0), picture(1, keyframe=True)
    assert demuxer.feed(tables((0x1B, 0x100, b"")) + packetized(0x100, open_ended)) == []
    moved = program_map((0x1B, 0x300, b""))
    units = demuxer.feed(packetized(0, in_packets(association(1, 0x100))))
    units += demuxer.feed(packetized(0x100, in_packets(moved)))
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


@pytest.mark.parametrize("pid", [0, 0x1000])
def test_a_section_of_an_impossible_length_is_not_waited_for(pid: int) -> None:
    demuxer, track = Demuxer(), Track(pid)
    demuxer.feed(tables((0x24, 0x100, b"")))
    track.packets(bytes(184))  # counted on from the tables
    giant = (b"\x00\x02\xbf\xff" + bytes(180))[:184]
    for _ in range(20):
        assert demuxer.feed(track.packets(giant)) == []
    assert demuxer.lost == DemuxStats(damaged_sections=20)
    assert demuxer._tables[pid]._open == b""
    demuxer.feed(tables((0x1B, 0x100, b"")))
    assert demuxer.streams == (Codec.H264,)


def test_a_table_with_a_hole_is_counted_and_the_next_one_read() -> None:
    long = in_packets(program_map((0x1B, 0x200, b"\x52" + bytes((200,)) + bytes(200))))
    demuxer, track = Demuxer(), Track(0x1000)
    demuxer.feed(packetized(0, in_packets(association(1, 0x1000))))
    first, _ = packets_of(track.packets(long))
    demuxer.feed(first)
    assert not demuxer.streams
    demuxer.feed(track.packets(long))
    assert demuxer.streams == (Codec.H264,)
    assert demuxer.lost == DemuxStats(damaged_sections=1)


def test_a_list_of_programs_in_two_sections_names_one_first_program() -> None:
    """Else the second section would look like a change of programs, again and again."""
    first = association(1, 0x1000)
    body = first[:6] + b"\x01\x01" + struct.pack(">HH", 9, 0xE000 | 0x1009)
    second = body + mpegts.crc32(body).to_bytes(4, "big")
    demuxer, track = Demuxer(), Track(0)
    unit, open_ended = untold(0)
    demuxer.feed(tables((0x1B, 0x100, b"")) + packetized(0x100, open_ended))
    for part in (first, second) * 3:
        assert demuxer.feed(track.packets(in_packets(part))) == []
    assert demuxer.streams == (Codec.H264,)
    assert demuxer.end_segment() == [unit]


def test_a_new_version_of_the_map_keeps_what_stays_and_ends_what_goes() -> None:
    demuxer, track = Demuxer(), Track(0x1000)
    picture_, open_ended = untold(0)
    pictures = Track(0x100)
    begin, rest = (
        packets_of(pictures.packets(open_ended))[:2],
        packets_of(Track(0x100).packets(open_ended))[2:],
    )
    demuxer.feed(packetized(0, in_packets(association(1, 0x1000))))
    old = [(0x1B, 0x100, b""), (0x0F, 0x101, b"")]
    new = [(0x1B, 0x100, b""), (0x06, 0x101, opus_descriptors(2))]
    demuxer.feed(track.packets(in_packets(tables_.program_map(1, 0x100, old))))
    demuxer.feed(b"".join(begin))
    demuxer.feed(track.packets(in_packets(tables_.program_map(1, 0x100, new, version=1))))
    assert demuxer.streams == (Codec.H264, Codec.OPUS)
    packet = b"\x7f\xe0\x03abc"
    assert demuxer.feed(packetized(0x101, pes(packet, 90_000)))[0].data == b"abc"
    demuxer.feed(b"".join(rest))
    assert demuxer.end_segment() == [picture_]
    assert demuxer.lost == INTACT
