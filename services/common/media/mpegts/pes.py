"""The PES packets on one pid, put together over packets and taken apart into units. Pure.

The rule it keeps: a unit is given out whole or not at all, and as soon as it is known to be whole.
"""

from __future__ import annotations

from typing import Final

from services.common.media import h264
from services.common.media.mpegts.damage import Tally
from services.common.media.mpegts.packets import PACKET, PAYLOAD, PLAIN, headers
from services.common.media.mpegts.splitters import SPLITTERS
from services.common.media.mpegts.units import AccessUnit, Codec

LARGEST_BOUNDED: Final = 0xFFFF  # PES_packet_length is 16 bits
LARGEST_UNIT: Final = 4 << 20  # bytes; a key frame at 50 Mbit/s is a tenth of it

PES_HEADER: Final = 9
LENGTH_UNKNOWN: Final = -1  # not enough bytes yet to read PES_packet_length
UNBOUNDED: Final = 0
ANY: Final = -1  # any continuity counter will do


class PesReader:
    """One pid on its way in.

    A PES packet that states its length is whole with its last byte. Video may leave the length open (libav's
    muxer does unless told `omit_video_pes_length=0`, and above 64 kB everybody must). It is then taken for
    whole after a packet with stuffing, for no muxer that we know stuffs a packet while it has more to put
    in. If more does come, that is counted, and on this stream nothing is believed any more but the start of
    the next unit.
    """

    def __init__(self, pid: int, codec: Codec, tally: Tally) -> None:
        self.codec = codec
        self._plain = headers(pid, PLAIN)
        self._tally = tally
        self._split = SPLITTERS[codec](tally)
        self._expected = ANY  # the next continuity counter
        self._last = b""  # the previous payload, to know a repeated packet
        self._parts: list[bytes] = []  # of the open PES packet; empty between two
        self._size = 0
        self._length = LENGTH_UNKNOWN
        self._whole = False  # the last one was taken for whole, and more of it must not come
        self._trusts_stuffing = True

    def start(self, payload: bytes, counter: int, *, stuffed: bool, announced: bool) -> list[AccessUnit]:
        """A packet that starts a PES packet; its counter may jump where the stream `announced` it."""
        if counter != self._expected and not announced and self._repeats(payload, counter):
            return []
        units = self.finish()
        self._expected = (counter + 1) & 15
        self._last = payload
        self._parts = [payload]
        self._size = len(payload)
        self._length = LENGTH_UNKNOWN
        self._whole = False
        self._measure()
        return units + self._complete(stuffed=stuffed)

    def proceed(self, payload: bytes, counter: int, *, stuffed: bool) -> list[AccessUnit]:
        """A packet that goes on with the open PES packet."""
        if counter != self._expected and self._repeats(payload, counter):
            return []
        self._expected = (counter + 1) & 15
        self._last = payload
        if not self._parts:  # its start was not seen, or it was dropped, or given out
            if self._whole:
                self._tally.late_payload += 1
                self._trusts_stuffing = False
            return []
        self._parts.append(payload)
        self._size += len(payload)
        if self._length == LENGTH_UNKNOWN:
            self._measure()
        return self._complete(stuffed=stuffed)

    def take_plain(self, data: bytes, position: int) -> int:
        """Take the full packets in turn at `position` that do not complete anything; where they end.

        They are nine of ten, and this costs a fraction of `proceed`, which would do the same with them.
        """
        if not self._parts or self._length == LENGTH_UNKNOWN:
            return position
        room = (self._length - 1 if self._length != UNBOUNDED else LARGEST_UNIT) - self._size
        count = min(room // PAYLOAD, (len(data) - position) // PACKET)
        counter, parts, plain = self._expected, self._parts, self._plain
        taken = 0
        while taken < count and data[position : position + 4] == plain[counter]:
            parts.append(data[position + 4 : position + PACKET])
            position += PACKET
            counter = (counter + 1) & 15
            taken += 1
        if taken:
            self._expected, self._last = counter, parts[-1]
            self._size += taken * PAYLOAD
        return position

    def finish(self) -> list[AccessUnit]:
        """Close the open PES packet: the units in it, none if some of its bytes are missing."""
        if not self._parts:
            return []
        if self._length == LENGTH_UNKNOWN or self._size < self._length:
            self.damage()
            return []
        data = b"".join(self._parts)
        self._parts = []
        self._whole = True
        if self._length != UNBOUNDED:
            data = data[: self._length]
        times = _times(data)
        if times is None:
            self._tally.damaged_units += 1
            return []
        return self._split.split(*times, data[PES_HEADER + data[8] :])

    def end(self, *, cut_off: bool) -> list[AccessUnit]:
        """The input's end: the units that it completes. What follows may count its packets anew."""
        if cut_off:
            self.damage()
        units = self.finish()
        self._expected = ANY
        self._whole = False
        return units

    def damage(self) -> None:
        """Drop the open PES packet, for some of it is missing, and what waits for the next one."""
        if self._parts:
            self._parts = []
            self._tally.damaged_units += 1
        self._whole = False
        self._split = SPLITTERS[self.codec](self._tally)

    def _complete(self, *, stuffed: bool) -> list[AccessUnit]:
        """The units of the open PES packet, if it is whole."""
        if 0 < self._length <= self._size:
            return self.finish()
        if stuffed and self._length == UNBOUNDED and self._trusts_stuffing:
            self._parts = [b"".join(self._parts)]
            if self.codec is not Codec.H264 or h264.has_slice(self._parts[0]):
                return self.finish()
            self._trusts_stuffing = False  # it stuffs what cannot be the end, such as a header alone
        if self._size > LARGEST_UNIT:
            self._parts = []
            self._tally.oversized_units += 1
        return []

    def _repeats(self, payload: bytes, counter: int) -> bool:
        """Whether a packet out of turn is the last one once more; if not, there is a gap before it."""
        if self._expected == ANY:
            return False
        if (counter + 1) & 15 == self._expected and payload == self._last:
            return True
        self._tally.continuity_errors += 1
        self.damage()
        return False

    def _measure(self) -> None:
        """Read PES_packet_length once its bytes are there."""
        if self._size < 6:
            return
        head = b"".join(self._parts)[:6]
        if head[:3] != b"\x00\x00\x01":
            self.damage()
            return
        stated = int.from_bytes(head[4:], "big")
        self._length = 6 + stated if stated else UNBOUNDED


def _times(pes: bytes) -> tuple[int, int] | None:
    """PTS and DTS of a clear PES packet with a whole header, or None."""
    if len(pes) < PES_HEADER or pes[6] & 0xF0 != 0x80 or len(pes) < PES_HEADER + pes[8]:
        return None
    kind = pes[7] >> 6
    if kind == 2 and pes[8] >= 5:
        pts = dts = _ticks(pes[9:14])
    elif kind == 3 and pes[8] >= 10:
        pts, dts = _ticks(pes[9:14]), _ticks(pes[14:19])
    else:
        return None
    return None if pts is None or dts is None else (pts, dts)


def _ticks(stamp: bytes) -> int | None:
    """A PTS or DTS, unless one of its marker bits is missing."""
    value = int.from_bytes(stamp, "big")
    if value & 0x0100010001 != 0x0100010001:
        return None
    return value >> 3 & 0x1C0000000 | value >> 2 & 0x3FFF8000 | value >> 1 & 0x7FFF
