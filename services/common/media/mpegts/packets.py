"""Transport stream packets on their way out: headers, continuity counters and stuffing. Pure."""

from __future__ import annotations

import struct
from typing import Final

PACKET: Final = 188
PAYLOAD: Final = 184
SYNC: Final = b"\x47"

# What follows a packet's header: payload alone, payload behind an adaptation field, or only such a field.
PLAIN: Final = 0x10
ADAPTED: Final = 0x30
CLOCK_ONLY: Final = 0x20
UNIT_START: Final = 0x4000

# Adaptation fields that do nothing but fill n bytes.
STUFFING: Final = (b"", b"\x00", *(bytes((size - 1, 0)) + b"\xff" * (size - 2) for size in range(2, PAYLOAD)))


def headers(pid: int, control: int) -> tuple[bytes, ...]:
    """The four bytes before each packet of a pid, by continuity counter."""
    return tuple(struct.pack(">BHB", 0x47, pid, control | counter) for counter in range(16))


class Track:
    """One pid on its way out: its headers and its continuity counter."""

    def __init__(self, pid: int) -> None:
        self._start = headers(UNIT_START | pid, PLAIN)
        self._start_adapted = headers(UNIT_START | pid, ADAPTED)
        self._plain = headers(pid, PLAIN)
        self._adapted = headers(pid, ADAPTED)
        self._clock_only = headers(pid, CLOCK_ONLY)
        self._counter = 0

    def packets(self, payload: bytes, adaptation: bytes = b"") -> bytes:
        """`payload` cut into packets; `adaptation` is the body of the first one's adaptation field."""
        counter = self._counter
        size = len(payload)
        room = first_room(adaptation)
        padding = room - size
        if adaptation:
            filling = b"\xff" * padding
            length = len(adaptation) + len(filling)
            parts = [self._start_adapted[counter], bytes((length,)), adaptation, filling]
        elif padding > 0:
            parts = [self._start_adapted[counter], STUFFING[padding]]
        else:
            parts = [self._start[counter]]
        parts.append(payload[:room])
        counter = (counter + 1) & 15
        position = room
        plain = self._plain
        while position + PAYLOAD <= size:
            parts.append(plain[counter])
            parts.append(payload[position : position + PAYLOAD])
            counter = (counter + 1) & 15
            position += PAYLOAD
        if position < size:
            parts += (self._adapted[counter], STUFFING[PAYLOAD - size + position], payload[position:])
            counter = (counter + 1) & 15
        self._counter = counter
        return b"".join(parts)

    def clock(self, pcr: bytes) -> bytes:
        """A packet without payload, which leaves the counter alone (ISO 13818-1 §2.4.3.3)."""
        header = self._clock_only[(self._counter - 1) & 15]
        return b"".join((header, b"\xb7\x10", pcr)).ljust(PACKET, b"\xff")


def first_room(adaptation: bytes) -> int:
    """How much payload the first packet takes behind an adaptation field with this body."""
    return PAYLOAD - (len(adaptation) + 1 if adaptation else 0)
