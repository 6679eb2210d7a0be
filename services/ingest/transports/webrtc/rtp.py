"""RTP packets (RFC 3550) as the media path needs them: read in one go, written with one pack. Pure."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

HEADER: Final = struct.Struct("!BBHII")
WITH_EXTENSIONS: Final = struct.Struct("!BBHIIHH")  # what follows are whole words of them: RFC 8285
ONE_BYTE_EXTENSIONS: Final = 0xBEDE
VERSION: Final = 0x80
EXTENDED: Final = 0x10
PADDED: Final = 0x20
MARKER: Final = 0x80
SEQUENCES: Final = 1 << 16
TIMESTAMPS: Final = 1 << 32

PAYLOAD_BYTES: Final = 1180  # with all headers, SRTP and RTX below 1280, which every IPv6 path carries


@dataclass(slots=True)
class Packet:
    """What one packet says. `send_time`: the 24 bits of abs-send-time, if it has them."""

    payload_type: int
    marker: bool
    sequence: int
    timestamp: int
    ssrc: int
    payload: bytes
    send_time: int | None = None


def parse(data: bytes, send_time_id: int | None = None) -> Packet | None:
    """The packet; None for what is none."""
    size = len(data)
    if size < 12 or data[0] & 0xC0 != VERSION:
        return None
    first, second, sequence, timestamp, ssrc = HEADER.unpack_from(data)
    place = 12 + 4 * (first & 0x0F)
    send_time = None
    if first & EXTENDED:
        if size < place + 4:
            return None
        end = place + 4 + 4 * int.from_bytes(data[place + 2 : place + 4], "big")
        if size < end:
            return None
        if send_time_id is not None and data[place] == 0xBE and data[place + 1] == 0xDE:
            send_time = _send_time(data, place + 4, end, send_time_id)
        place = end
    if first & PADDED:
        padding = data[-1]
        if not padding or place + padding > size:
            return None
        size -= padding
    if place > size:
        return None
    return Packet(second & 0x7F, second >= MARKER, sequence, timestamp, ssrc, data[place:size], send_time)


def _send_time(data: bytes, place: int, end: int, wanted: int) -> int | None:
    while place < end:
        head = data[place]
        if head == 0:  # padding
            place += 1
            continue
        length = (head & 0x0F) + 1
        if head >> 4 == wanted and length == 3 and place + 4 <= end:
            return int.from_bytes(data[place + 1 : place + 4], "big")
        place += 1 + length
    return None


def near(previous: int, raw: int, modulus: int) -> int:
    """The number nearest to `previous` that is `raw` modulo `modulus`: undoes the wrapping."""
    half = modulus // 2
    return previous + (raw - previous + half) % modulus - half
