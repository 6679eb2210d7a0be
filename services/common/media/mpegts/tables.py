"""The tables that say what is where in a transport stream (ISO 13818-1 §2.4.4), written and read. Pure."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from typing import Final

from services.common.media.mpegts.damage import Tally
from services.common.media.mpegts.packets import PAYLOAD
from services.common.media.mpegts.units import Codec

ASSOCIATION: Final = 0
PROGRAM_MAP: Final = 2
LARGEST_SECTION: Final = 1024  # ISO 13818-1 §2.4.4: PAT and PMT
SECTION_HEAD: Final = 8
CHECKSUM: Final = 4
VERSIONS: Final = 32

PRIVATE_DATA: Final = 0x06
STREAM_TYPES: Final = {
    0x01: Codec.MPEG2,
    0x02: Codec.MPEG2,
    0x0F: Codec.AAC,
    0x1B: Codec.H264,
    0x24: Codec.HEVC,
}
WRITTEN_TYPES: Final = {Codec.H264: 0x1B, Codec.AAC: 0x0F, Codec.OPUS: PRIVATE_DATA}
REGISTRATION: Final = 0x05
REVERSED: Final = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def crc32(section: bytes) -> int:
    """CRC-32/MPEG-2. It is zlib's with the bits the other way round, and zlib runs at C speed."""
    mirrored = zlib.crc32(section.translate(REVERSED)) ^ 0xFFFFFFFF
    return int.from_bytes(mirrored.to_bytes(4, "little").translate(REVERSED), "big")


# --- written ------------------------------------------------------------------------------------------------


def section(table: int, identifier: int, body: bytes, *, version: int = 0) -> bytes:
    """The only section of a table, in force."""
    flags = 0xC1 | version % VERSIONS << 1
    head = struct.pack(">BHHBBB", table, 0xB000 | (len(body) + 9), identifier, flags, 0, 0)
    whole = head + body
    return whole + crc32(whole).to_bytes(CHECKSUM, "big")


def association(program: int, pid: int) -> bytes:
    return section(ASSOCIATION, 1, struct.pack(">HH", program, 0xE000 | pid))


def program_map(
    program: int, clock_pid: int, streams: Iterable[tuple[int, int, bytes]], *, version: int = 0
) -> bytes:
    """`streams`: type, pid and descriptors of each."""
    body = struct.pack(">HH", 0xE000 | clock_pid, 0xF000)
    for kind, pid, descriptors in streams:
        body += struct.pack(">BHH", kind, 0xE000 | pid, 0xF000 | len(descriptors)) + descriptors
    return section(PROGRAM_MAP, program, body, version=version)


def opus_descriptors(channels: int) -> bytes:
    """A registration and the channel count, as FFmpeg and GStreamer write and read them."""
    return b"\x05\x04Opus\x7f\x02\x80" + bytes((channels,))


def in_packets(whole: bytes) -> bytes:
    """A section as the payload of whole packets."""
    payload = b"\x00" + whole
    return payload.ljust(-len(payload) // PAYLOAD * -PAYLOAD, b"\xff")


# --- read ---------------------------------------------------------------------------------------------------


class Sections:
    """The sections on one pid, put together over packets."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._open = b""
        self._expected = 0

    def take(self, payload: bytes, counter: int, *, starts: bool) -> list[bytes]:
        if counter != self._expected:
            self._drop()  # a hole, or a repetition of what was read; either way the next table comes soon
        self._expected = (counter + 1) & 15
        sections: list[bytes] = []
        if not starts:
            if self._open:
                self._read(self._open + payload, sections)
            return sections
        begin = 1 + payload[0]
        if self._open:
            self._read(self._open + payload[1:begin], sections)
            self._drop()  # what another one begins behind was its end
        self._read(payload[begin:], sections)
        return sections

    def _drop(self) -> None:
        if self._open:
            self._open = b""
            self._tally.damaged_sections += 1

    def _read(self, data: bytes, sections: list[bytes]) -> None:
        """Move the whole sections at the head of `data` to `sections`, keep a begun one open."""
        self._open = b""
        while data and data[0] != 0xFF:  # table 0xff is stuffing up to the end of the packet
            length = 3 + (int.from_bytes(data[1:3], "big") & 0x0FFF) if len(data) >= 3 else LARGEST_SECTION
            if length > LARGEST_SECTION:
                self._tally.damaged_sections += 1
                return
            if length > len(data):
                self._open = data
                return
            sections.append(data[:length])
            data = data[length:]


def in_force(whole: bytes, table: int, tally: Tally) -> bool:
    """Whether this is a section of `table` that counts now; a damaged one is counted, and is not."""
    if whole[0] != table:
        return False
    if len(whole) < SECTION_HEAD + CHECKSUM or crc32(whole):
        tally.damaged_sections += 1
        return False
    return whole[5] & 1 == 1  # current_next_indicator


def first_program(whole: bytes) -> tuple[int, int] | None:
    """Number and map's pid of the first program that a PAT lists; None in a section that goes on with one."""
    if whole[6]:
        return None
    entries = whole[SECTION_HEAD : len(whole) - CHECKSUM]
    listed = struct.iter_unpack(">HH", entries[: len(entries) // 4 * 4])
    return next(((number, pid & 0x1FFF) for number, pid in listed if number), None)


def program_of(whole: bytes) -> int:
    """The number of the program that a PMT describes."""
    return int.from_bytes(whole[3:5], "big")


def streams_of(whole: bytes) -> list[tuple[int, Codec]]:
    """Pid and codec of each stream that a PMT lists."""
    streams: list[tuple[int, Codec]] = []
    position = 12 + (int.from_bytes(whole[10:12], "big") & 0x0FFF)
    end = len(whole) - CHECKSUM
    while position + 5 <= end:
        kind, pid, length = struct.unpack_from(">BHH", whole, position)
        descriptors = whole[position + 5 : min(end, position + 5 + (length & 0x0FFF))]
        streams.append((pid & 0x1FFF, _codec(kind, descriptors)))
        position += 5 + (length & 0x0FFF)
    return streams


def _codec(kind: int, descriptors: bytes) -> Codec:
    if kind != PRIVATE_DATA:
        return STREAM_TYPES.get(kind, Codec.OTHER)
    position = 0
    while position + 2 <= len(descriptors):
        tag, length = descriptors[position : position + 2]
        if tag == REGISTRATION and descriptors[position + 2 : position + 6] == b"Opus":
            return Codec.OPUS
        position += 2 + length
    return Codec.OTHER
