from __future__ import annotations

import random
import struct
from dataclasses import replace
from functools import cache
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.media import mpegts
from services.common.media.mpegts import AccessUnit, Codec, Demuxer, DemuxStats, Muxer
from services.common.media.mpegts.muxer import stamp
from services.common.media.mpegts.packets import Track
from services.common.media.mpegts.tables import in_packets, section
from tests.support.transport import (
    DATA,
    INTACT,
    opus,
    packetized,
    packets_of,
    pes,
    picture,
    pid_of,
    read,
    tables,
    timed,
    unbounded,
    untold,
)


def test_a_lost_packet_costs_one_unit() -> None:
    muxer, demuxer = Muxer(), Demuxer()
    units = [picture(index, keyframe=index == 0) for index in range(5)]
    written = [muxer.write(unit) for unit in units]
    written[2] = written[2][: 188 * 5] + written[2][188 * 6 :]
    assert demuxer.feed(muxer.begin_segment() + b"".join(written)) == units[:2] + units[3:]
    assert demuxer.lost == DemuxStats(continuity_errors=1, damaged_units=1)


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
    before, open_ended = untold(0)
    after = picture(1, keyframe=True)
    demuxer.feed(Muxer().begin_segment() + packetized(0x100, open_ended))
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
    assert demuxer.lost == DemuxStats(resyncs=1, bytes_skipped=len(garbage))
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
            st.binary(max_size=60).map(lambda data: packetized(0x1000, in_packets(section(2, 1, data)))),
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


# --- a stream on a bad line -----------------------------------------------------------------------

STREAMS = (
    "ffmpeg-default",
    "ffmpeg-opus",
    "ffmpeg-b-frames",
    "gstreamer-opus",
    "gstreamer-alignment-7",
    "obs",
)


@cache
def stream_of(name: str) -> tuple[bytes, tuple[AccessUnit, ...]]:
    stream = (DATA / "ts" / f"{name}.ts").read_bytes()
    return stream, tuple(read(stream))


lines = given(name=st.sampled_from(STREAMS), seed=st.integers(0, 1 << 32))


@lines
@settings(max_examples=60)
def test_a_damaged_stream_heals(name: str, seed: int) -> None:
    """Packets lost, with flipped bits, cut short: two clean ones later everything is read again."""
    chance = random.Random(seed)
    stream, _ = stream_of(name)
    packets = packets_of(stream)
    head = 1 + max(
        index
        for index, packet in enumerate(packets[:10])
        if packet[1] & 0x40 and pid_of(packet) in {0, 0x20, 0x1000}
    )
    middle = len(packets) // 2
    damaged = bytearray(b"".join(packets[:head]))
    for packet in packets[head:middle]:
        if chance.random() > 0.2:
            damaged += packet
        elif chance.random() > 0.5:
            flipped = bytearray(packet)
            for _ in range(chance.randint(1, 8)):
                flipped[chance.randrange(188)] ^= 1 << chance.randrange(8)
            damaged += flipped[: chance.choice([188, 188, 100])]
    demuxer, fresh = Demuxer(), Demuxer()
    fresh.feed(b"".join(packets[:head]))
    undamaged = fresh.feed(b"".join(packets[middle + 2 :])) + fresh.end_segment()
    units = demuxer.feed(bytes(damaged))
    demuxer.feed(b"".join(packets[middle : middle + 2]))
    units = demuxer.feed(b"".join(packets[middle + 2 :])) + demuxer.end_segment()
    for codec in fresh.streams:
        healed = timed(undamaged, codec)[1:]
        assert len(healed) > 5
        assert timed(units, codec)[-len(healed) :] == healed


@lines
@settings(max_examples=60)
@pytest.mark.parametrize("share", [0.01, 0.1])
def test_what_comes_through_losses_is_whole_and_what_does_not_is_counted(
    share: float, name: str, seed: int
) -> None:
    chance = random.Random(seed)
    stream, units = stream_of(name)
    packets = packets_of(stream)
    demuxer = Demuxer()
    found = demuxer.feed(b"".join(packet for packet in packets if chance.random() >= share))
    lost = demuxer.lost
    assert set(found) <= set(units)
    assert lost.resyncs == lost.bytes_skipped == lost.late_payload == 0
    for codec in demuxer.streams:
        before = [unit for unit in units if unit.codec is codec]
        after = [unit for unit in found if unit.codec is codec]
        if after and len(after) < before.index(after[-1]) + 1 - before.index(after[0]):
            assert lost.continuity_errors > 0


@lines
@settings(max_examples=30)
def test_repeated_packets_change_nothing(name: str, seed: int) -> None:
    chance = random.Random(seed)
    stream, units = stream_of(name)
    repeated = b"".join(packet * chance.choice([1, 1, 2]) for packet in packets_of(stream))
    assert read(repeated) == list(units)


@lines
@settings(max_examples=30)
def test_packets_out_of_order_cost_their_units_and_no_others(name: str, seed: int) -> None:
    chance = random.Random(seed)
    stream, units = stream_of(name)
    packets = packets_of(stream)
    for index in range(3, len(packets) - 1):
        if chance.random() < 0.02:
            packets[index], packets[index + 1] = packets[index + 1], packets[index]
    demuxer = Demuxer()
    found = demuxer.feed(b"".join(packets)) + demuxer.end_segment()
    assert set(found) <= set(units)
    missing = len(units) - len(found)
    assert missing <= 40 * demuxer.lost.continuity_errors, "a PES packet of sound has up to 40 frames"


@lines
@settings(max_examples=30)
def test_garbage_between_packets_costs_nothing_but_itself(name: str, seed: int) -> None:
    """With two packets or more behind it, and no byte in it that looks like a packet's first."""
    chance = random.Random(seed)
    stream, units = stream_of(name)
    dirty, skipped = bytearray(), 0
    packets = packets_of(stream)
    others = [byte for byte in range(256) if byte != 0x47]
    for index, packet in enumerate(packets):
        if index % 2 and index + 1 < len(packets) and chance.random() < 0.1:
            garbage = bytes(chance.choices(others, k=chance.randint(1, 700)))
            dirty += garbage
            skipped += len(garbage)
        dirty += packet
    demuxer = Demuxer()
    assert demuxer.feed(bytes(dirty)) + demuxer.end_segment() == list(units)
    assert replace(demuxer.lost, resyncs=0) == DemuxStats(bytes_skipped=skipped)


@given(garbage=st.binary(max_size=2000))
def test_after_any_garbage_two_packets_are_enough(garbage: bytes) -> None:
    muxer, demuxer = Muxer(), Demuxer()
    null = b"\x47\x1f\xff\x10" + b"\xff" * 184
    unit = picture(0, keyframe=True)
    assert demuxer.feed(garbage + null * 2 + muxer.begin_segment() + muxer.write(unit) + null * 2) == [unit]


def test_a_stream_cut_anywhere_loses_its_last_unit_at_most() -> None:
    muxer = Muxer(audio=Codec.OPUS)
    units = [picture(0, size=500, keyframe=True), opus(0), picture(1, size=700), opus(1, size=300)]
    written = [muxer.write(unit) for unit in units]
    tables, ends = muxer.begin_segment(), list(accumulate(map(len, written)))
    stream = tables + b"".join(written)
    for end in range(len(tables), len(stream) + 1):
        demuxer = Demuxer()
        found = demuxer.feed(stream[:end]) + demuxer.end_segment()
        whole = sum(last <= end - len(tables) for last in ends)
        assert found == units[:whole]
        begun = whole < len(units) and end - len(tables) >= (ends[whole - 1] if whole else 0) + 188
        assert demuxer.lost.damaged_units == begun


# --- bounds ---------------------------------------------------------------------------------------


def held_by(demuxer: Demuxer) -> int:
    """Bytes that a demuxer keeps for later."""
    held = len(demuxer._framing._rest)
    held += sum(len(sections._open) for sections in demuxer._tables.values())
    for reader in demuxer._media.values():
        held += sum(map(len, reader._parts)) + len(getattr(reader._split, "_cut", b""))
    return held


def test_without_a_packet_in_sight_nothing_is_kept() -> None:
    chance = random.Random(1)
    for data in (bytes(1 << 20), chance.randbytes(1 << 20), b"\x47" + bytes(186)):
        demuxer = Demuxer()
        for _ in range(4):
            assert demuxer.feed(data) == []
            assert held_by(demuxer) <= 3 * 204
        assert demuxer.lost.resyncs >= 1


def test_a_unit_without_an_end_is_dropped_at_4_mib() -> None:
    muxer, demuxer = Muxer(), Demuxer()
    demuxer.feed(muxer.begin_segment())
    endless = AccessUnit(
        Codec.H264, 90_000, 90_000, b"\x00\x00\x00\x01\x65" + b"\x88" * (5 << 20), keyframe=True
    )
    for index, packet in enumerate(packets_of(muxer.write(endless))):
        assert demuxer.feed(packet) == []
        assert index % 1000 or held_by(demuxer) <= mpegts.LARGEST_UNIT + 1000
    assert demuxer._media[0x100]._parts == []
    following = picture(1)
    assert demuxer.feed(muxer.write(following)) == [following]
    assert demuxer.lost == DemuxStats(oversized_units=1)


@pytest.mark.parametrize("flag", ["scrambled", "odd key", "error"])
def test_packets_that_say_that_they_cannot_be_read_are_passed_over_and_counted(flag: str) -> None:
    muxer, demuxer = Muxer(), Demuxer()
    unit = picture(0, keyframe=True)
    written = packets_of(muxer.write(unit))
    head = {"scrambled": b"\x01\x00\x90", "odd key": b"\x01\x00\xd0", "error": b"\x81\x00\x10"}[flag]
    unreadable = b"\x47" + head + bytes(184)
    null = b"\x47\x1f\xff\x10" + bytes(184)
    stream = muxer.begin_segment() + b"".join(packet + null + unreadable for packet in written)
    assert demuxer.feed(stream) == [unit]
    assert demuxer.lost == DemuxStats(unreadable_packets=len(written))


def test_what_others_scramble_does_not_count() -> None:
    muxer, demuxer = Muxer(), Demuxer()
    unit = picture(0, keyframe=True)
    scrambled = b"\x47\x03\x33\x90" + bytes(184)
    assert demuxer.feed(muxer.begin_segment() + scrambled + muxer.write(unit)) == [unit]
    assert demuxer.lost == INTACT


@pytest.mark.parametrize("length", [183, 184, 255])
def test_an_adaptation_field_longer_than_its_packet_costs_one_unit(length: int) -> None:
    muxer, demuxer = Muxer(), Demuxer()
    units = [picture(index, keyframe=index == 0) for index in range(3)]
    written = [muxer.write(unit) for unit in units]
    damaged = bytearray(written[1])
    damaged[188 * 3 + 3] |= 0x20
    damaged[188 * 3 + 4] = length
    stream = muxer.begin_segment() + written[0] + damaged + written[2]
    assert demuxer.feed(stream) == [units[0], units[2]]
    assert demuxer.lost == DemuxStats(unreadable_packets=1, continuity_errors=1, damaged_units=1)


@pytest.mark.parametrize("length", [247, 255])
def test_a_pes_header_longer_than_its_packet_costs_one_unit(length: int) -> None:
    demuxer, track = Demuxer(), Track(0x100)
    demuxer.feed(Muxer().begin_segment())
    damaged = bytearray(unbounded(picture(0, size=200, keyframe=True))[:240])
    damaged[8] = length
    assert demuxer.feed(track.packets(bytes(damaged))) == []
    unit = picture(1, keyframe=True)
    assert demuxer.feed(track.packets(unbounded(unit))) == [unit]
    assert demuxer.lost == DemuxStats(damaged_units=1)


def test_more_than_a_picture_said_it_has_is_counted() -> None:
    demuxer, track = Demuxer(), Track(0x100)
    demuxer.feed(Muxer().begin_segment())
    unit = picture(0, size=1000, keyframe=True)
    whole = unbounded(unit)
    stated = whole[:4] + struct.pack(">H", len(whole) - 6) + whole[6:]
    assert demuxer.feed(track.packets(stated + bytes(400))) == [unit]
    assert demuxer.lost == DemuxStats(late_payload=2)


def test_the_header_of_a_pes_packet_may_be_cut_by_the_end_of_a_packet() -> None:
    demuxer, track = Demuxer(), Track(0x100)
    demuxer.feed(Muxer().begin_segment())
    unit = picture(0, size=900, keyframe=True)
    body = b"\x80\x80\x05" + stamp(2, unit.pts) + unit.data
    whole = b"\x00\x00\x01\xe0" + struct.pack(">H", len(body)) + body
    stream = track.packets(whole, adaptation=b"\x00" + b"\xff" * 178)
    assert stream[188 - 4 : 188] == whole[:4]
    assert demuxer.feed(stream) == [unit]


def test_a_pes_packet_with_a_delimiter_and_no_picture_is_dropped() -> None:
    demuxer = Demuxer()
    demuxer.feed(Muxer().begin_segment())
    empty = struct.pack(">IHBBB", 0x1E0, 8, 0x84, 0x80, 5) + stamp(2, 0)
    assert demuxer.feed(packetized(0x100, empty)) == []
    assert demuxer.lost.damaged_units == 1


def test_a_picture_without_a_time_is_dropped() -> None:
    demuxer = Demuxer()
    demuxer.feed(Muxer().begin_segment())
    body = b"\x80\x00\x00" + picture(0, size=50).data
    assert demuxer.feed(packetized(0x100, b"\x00\x00\x01\xe0" + struct.pack(">H", len(body)) + body)) == []
    assert demuxer.lost.damaged_units == 1
