"""Takes a transport stream in pieces of any size, gives each unit once it is known to be whole. Pure."""

from __future__ import annotations

import struct
from typing import Final

from services.common.media.mpegts import tables
from services.common.media.mpegts.damage import DemuxStats, Tally
from services.common.media.mpegts.framing import Framing
from services.common.media.mpegts.packets import PACKET, PAYLOAD
from services.common.media.mpegts.pes import PesReader
from services.common.media.mpegts.units import AccessUnit, Codec

HEADER: Final = struct.Struct(">I")
STARTS: Final = 0x00400000  # payload_unit_start_indicator
BROKEN: Final = 0x00800000  # transport_error_indicator
SCRAMBLED: Final = 0xC0  # transport_scrambling_control
ADAPTATION: Final = 0x20
HAS_PAYLOAD: Final = 0x10
DISCONTINUITY: Final = 0x80
LONGEST_FIELD: Final = PAYLOAD - 2  # of an adaptation field before payload

NO_PID: Final = 0x1FFF  # the null packets', so nothing of ours is ever there
AUDIO: Final = frozenset({Codec.AAC, Codec.OPUS})


class Demuxer:
    """Reads the first program's first H.264 stream and first AAC or Opus stream.

    A unit comes out with its last byte, or with the start of the next one where the stream does not say that
    it was the last (see `PesReader`), or at `end_segment`. A unit with a gap, or without a PTS, is dropped;
    those that refer to it are not.
    """

    def __init__(self) -> None:
        self._tally = Tally()
        self._framing = Framing(self._tally)
        self._streams: tuple[Codec, ...] = ()
        self._program = 0, NO_PID  # its number, and where its map is
        self._program_map = b""
        self._tables = {0: tables.Sections(self._tally)}
        self._media: dict[int, PesReader] = {}

    @property
    def streams(self) -> tuple[Codec, ...]:
        """What the program announces, in its order; empty until it did."""
        return self._streams

    @property
    def lost(self) -> DemuxStats:
        return self._tally.stats()

    def feed(self, data: bytes) -> list[AccessUnit]:
        """The units that `data` completes."""
        units: list[AccessUnit] = []
        for packets in self._framing.take(data):
            units += self._read(packets)
        return units

    def end_segment(self) -> list[AccessUnit]:
        """The units that the input's end completes. What follows starts at a packet's first byte.

        An input that ends within a packet was cut off, and so were the units that it left open.
        """
        cut_off = self._framing.end()
        units: list[AccessUnit] = []
        for reader in self._media.values():
            units += reader.end(cut_off=cut_off)
        return units

    def _read(self, data: bytes) -> list[AccessUnit]:
        units: list[AccessUnit] = []
        media, sections = self._media, self._tables
        position = 0
        while position < len(data):
            (header,) = HEADER.unpack_from(data, position)
            start = position + 4
            position += PACKET
            if header & BROKEN:
                self._tally.unreadable_packets += 1  # its pid may be wrong as well
                continue
            if not header & HAS_PAYLOAD:
                continue
            pid = header >> 8 & 0x1FFF
            reader = media.get(pid)
            if reader is None and pid not in sections:
                continue
            stuffed = announced = False
            if header & ADAPTATION:
                length = data[start]
                if length > LONGEST_FIELD:
                    self._tally.unreadable_packets += 1
                    continue
                stuffed = is_stuffed(data[start : start + 1 + length])
                announced = length > 0 and data[start + 1] & DISCONTINUITY > 0
                start += 1 + length
            if header & SCRAMBLED:
                self._tally.unreadable_packets += 1
            elif reader is None:
                for section in sections[pid].take(
                    data[start:position], header & 15, starts=header & STARTS > 0
                ):
                    units += self._read_table(pid, section)
            else:
                payload = data[start:position]
                if header & STARTS:
                    units += reader.start(payload, header & 15, stuffed=stuffed, announced=announced)
                else:
                    units += reader.proceed(payload, header & 15, stuffed=stuffed)
                position = reader.take_plain(data, position)
        return units

    def _read_table(self, pid: int, section: bytes) -> list[AccessUnit]:
        """Follow a PAT or PMT, if it is whole, in force and new; the units of streams that it ends."""
        if section == self._program_map:
            return []
        if pid == 0:
            if tables.in_force(section, tables.ASSOCIATION, self._tally):
                return self._follow_program(tables.first_program(section))
        elif (
            tables.in_force(section, tables.PROGRAM_MAP, self._tally)
            and tables.program_of(section) == self._program[0]
        ):
            self._program_map = section
            return self._follow_map(tables.streams_of(section))
        return []

    def _follow_program(self, program: tuple[int, int] | None) -> list[AccessUnit]:
        if program is None or program == self._program or program[1] == 0:
            return []
        self._tables.pop(self._program[1], None)
        self._tables[program[1]] = tables.Sections(self._tally)
        self._program, self._program_map = program, b""
        return self._follow({})

    def _follow_map(self, announced: list[tuple[int, Codec]]) -> list[AccessUnit]:
        self._streams = tuple(codec for _, codec in announced)
        video = next((stream for stream in announced if stream[1] is Codec.H264), None)
        audio = next((stream for stream in announced if stream[1] in AUDIO), None)
        return self._follow(dict(stream for stream in (video, audio) if stream is not None))

    def _follow(self, chosen: dict[int, Codec]) -> list[AccessUnit]:
        """Read the `chosen` pids from now on; the units that the others left open."""
        units: list[AccessUnit] = []
        for pid, reader in list(self._media.items()):
            if chosen.get(pid) is not reader.codec:
                units += reader.finish()
                del self._media[pid]
        for pid, codec in chosen.items():
            if pid not in self._media and pid not in self._tables:
                self._media[pid] = PesReader(pid, codec, self._tally)
        return units


def is_stuffed(field: bytes) -> bool:
    """Whether an adaptation field, its length first, is longer than what it says needs.

    Two bytes of length and empty flags are no sign: GStreamer writes them where 183 bytes of payload are
    left, and has to put the last one into a packet of its own.
    """
    if len(field) == 1:
        return True  # the only way to fill one byte
    flags = field[1]
    needed = 2 + 6 * (flags >> 4 & 1) + 6 * (flags >> 3 & 1) + (flags >> 2 & 1)  # PCR, OPCR, splice countdown
    for _ in range((flags >> 1 & 1) + (flags & 1)):  # private data, extension: each behind its length
        if needed >= len(field):
            return False
        needed += 1 + field[needed]
    return len(field) > needed
