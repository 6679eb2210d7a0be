"""MPEG-TS in and out without a frame of delay: a unit written is a unit read at its last byte. Pure.

Written by hand because libav's muxer and demuxer hold back one to six frames between them; its tests check
it against them. The rule it keeps: bytes from the world never raise; a damaged unit is dropped and counted.
"""

from __future__ import annotations

import enum
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Final, Protocol

from services.common.errors import InvalidError
from services.common.media import h264

CLOCK_HZ: Final = 90_000
PACKET: Final = 188
PAYLOAD: Final = 184
VIDEO_PID: Final = 0x100
AUDIO_PID: Final = 0x101
PMT_PID: Final = 0x1000
PROGRAM: Final = 1

WRAP: Final = 1 << 33
LARGEST_BOUNDED: Final = 0xFFFF  # PES_packet_length is 16 bits
LARGEST_UNIT: Final = 4 << 20  # bytes; a key frame at 50 Mbit/s is a tenth of it
LARGEST_SECTION: Final = 1024  # ISO 13818-1 §2.4.4: PAT and PMT

PCR_PERIOD: Final = CLOCK_HZ * 40 // 1000  # ISO 13818-1 allows 100 ms, DVB asks for 40
PCR_LEAD: Final = (
    CLOCK_HZ // 10
)  # a unit is due this long after its PCR; strict receivers want it before its DTS
PCR_BREAK: Final = CLOCK_HZ  # a step back further than this is a new timeline, not audio behind its video


class Codec(enum.StrEnum):
    """What a PMT can announce. Units come for H.264, AAC and Opus; the others are named to be refused."""

    H264 = "h264"
    HEVC = "hevc"
    MPEG2 = "mpeg2video"
    AAC = "aac"
    OPUS = "opus"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class AccessUnit:
    """One picture or one audio frame, times in 90 kHz ticks.

    `data` is, for H.264, one Annex B picture without access unit delimiter (the muxer puts it in, the demuxer
    takes it out); for AAC one ADTS frame; for Opus one bare packet. Times are the 33 bits on the wire from a
    demuxer, and may be unwrapped for a muxer. Audio is always `keyframe`.
    """

    codec: Codec
    pts: int
    dts: int
    data: bytes
    keyframe: bool


@dataclass(frozen=True, slots=True)
class DemuxStats:
    """What a demuxer had to throw away, since it was made."""

    resyncs: int
    continuity_errors: int
    damaged_units: int
    bytes_skipped: int
    oversized_units: int


def unwrap(previous: int, raw33: int) -> int:
    """The tick count nearest to `previous` whose low 33 bits are `raw33`."""
    return previous + (raw33 - previous + WRAP // 2) % WRAP - WRAP // 2


# --- tables -------------------------------------------------------------------------------------------------

STREAM_TYPES: Final = {
    0x01: Codec.MPEG2,
    0x02: Codec.MPEG2,
    0x0F: Codec.AAC,
    0x1B: Codec.H264,
    0x24: Codec.HEVC,
}
PRIVATE_DATA: Final = 0x06
REGISTRATION: Final = 0x05
REVERSED: Final = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def crc32(section: bytes) -> int:
    """CRC-32/MPEG-2. It is zlib's with the bits the other way round, and zlib runs at C speed."""
    mirrored = zlib.crc32(section.translate(REVERSED)) ^ 0xFFFFFFFF
    return int.from_bytes(mirrored.to_bytes(4, "little").translate(REVERSED), "big")


def _section(table: int, identifier: int, body: bytes) -> bytes:
    # Version 0, current, section 0 of 0.
    head = struct.pack(">BHHBBB", table, 0xB000 | (len(body) + 9), identifier, 0xC1, 0, 0)
    section = head + body
    return section + crc32(section).to_bytes(4, "big")


def _section_payload(section: bytes) -> bytes:
    return (b"\x00" + section).ljust(PAYLOAD, b"\xff")


# --- muxer --------------------------------------------------------------------------------------------------

# What follows a packet's header: payload alone, payload behind an adaptation field, or only such a field.
PLAIN: Final = 0x10
ADAPTED: Final = 0x30
CLOCK_ONLY: Final = 0x20
UNIT_START: Final = 0x4000

# Adaptation fields that do nothing but fill n bytes.
STUFFING: Final = (b"", b"\x00", *(bytes((size - 1, 0)) + b"\xff" * (size - 2) for size in range(2, PAYLOAD)))


def _headers(pid: int, control: int) -> tuple[bytes, ...]:
    return tuple(struct.pack(">BHB", 0x47, pid, control | counter) for counter in range(16))


def _stamp(marker: int, ticks: int) -> bytes:
    """The five bytes of a PTS or DTS."""
    ticks %= WRAP
    return bytes((
        marker << 4 | (ticks >> 29) & 0x0E | 1,
        (ticks >> 22) & 0xFF,
        (ticks >> 14) & 0xFE | 1,
        (ticks >> 7) & 0xFF,
        (ticks << 1) & 0xFE | 1,
    ))  # fmt: skip


def _pcr(ticks: int) -> bytes:
    return ((ticks % WRAP) << 15 | 0x7E00).to_bytes(6, "big")  # six reserved bits, extension 0


class _Track:
    """One pid on its way out: its headers and its continuity counter."""

    def __init__(self, pid: int) -> None:
        self._start = _headers(UNIT_START | pid, PLAIN)
        self._start_adapted = _headers(UNIT_START | pid, ADAPTED)
        self._plain = _headers(pid, PLAIN)
        self._adapted = _headers(pid, ADAPTED)
        self._clock_only = _headers(pid, CLOCK_ONLY)
        self._counter = 0

    def packets(self, payload: bytes, adaptation: bytes = b"") -> bytes:
        """`payload` cut into packets; `adaptation` is the body of the first one's adaptation field."""
        counter = self._counter
        size = len(payload)
        room = PAYLOAD - (len(adaptation) + 1 if adaptation else 0)
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


class Muxer:
    """Writes one program. Counters run on over segments, which can thus be read alone or concatenated."""

    def __init__(self, *, audio: Codec | None = None, audio_channels: int = 2) -> None:
        assert audio in {None, Codec.AAC, Codec.OPUS}, audio
        self._audio = audio
        self._tables = _Track(0), _Track(PMT_PID)
        self._video_track = _Track(VIDEO_PID)
        self._audio_track = _Track(AUDIO_PID)
        self._clock: int | None = None
        streams = struct.pack(">BHH", 0x1B, 0xE000 | VIDEO_PID, 0xF000)
        if audio is Codec.AAC:
            streams += struct.pack(">BHH", 0x0F, 0xE000 | AUDIO_PID, 0xF000)
        elif audio is Codec.OPUS:
            # A registration and the channel count, as FFmpeg and GStreamer write and read them
            descriptors = b"\x05\x04Opus\x7f\x02\x80" + bytes((audio_channels,))
            streams += (
                struct.pack(">BHH", PRIVATE_DATA, 0xE000 | AUDIO_PID, 0xF000 | len(descriptors)) + descriptors
            )
        self._pat = _section_payload(_section(0, 1, struct.pack(">HH", PROGRAM, 0xE000 | PMT_PID)))
        self._pmt = _section_payload(
            _section(2, PROGRAM, struct.pack(">HH", 0xE000 | VIDEO_PID, 0xF000) + streams)
        )

    def begin_segment(self) -> bytes:
        """PAT and PMT. For a reader that starts here the next picture must be a key frame with its sets."""
        programs, program = self._tables
        return programs.packets(self._pat) + program.packets(self._pmt)

    def write(self, unit: AccessUnit) -> bytes:
        """The packets of `unit`, whole. Raises InvalidError for an audio unit too large for a PES packet."""
        if unit.codec is Codec.H264:
            return self._write_video(unit)
        assert unit.codec is self._audio, (unit.codec, self._audio)
        return self._write_audio(unit)

    def _write_video(self, unit: AccessUnit) -> bytes:
        data = unit.data
        delimiter = b"" if h264.strip_delimiter(data) is not data else h264.ACCESS_UNIT_DELIMITER
        if unit.pts == unit.dts:
            times = b"\x84\x80\x05" + _stamp(2, unit.pts)
        else:
            times = b"\x84\xc0\x0a" + _stamp(3, unit.pts) + _stamp(1, unit.dts)
        length = len(times) + len(delimiter) + len(data)
        if length > LARGEST_BOUNDED:
            length = 0
        head = b"\x00\x00\x01\xe0" + length.to_bytes(2, "big")
        payload = b"".join((head, times, delimiter, data))
        if unit.keyframe:
            return self._video_track.packets(payload, b"\x50" + self._next_clock(unit.dts))
        if self._clock_due(unit.dts):
            return self._video_track.packets(payload, b"\x10" + self._next_clock(unit.dts))
        return self._video_track.packets(payload)

    def _write_audio(self, unit: AccessUnit) -> bytes:
        if unit.codec is Codec.OPUS:
            stream_id, data = 0xBD, _opus_control_header(len(unit.data)) + unit.data
        else:
            stream_id, data = 0xC0, unit.data
        length = 8 + len(data)
        if length > LARGEST_BOUNDED:
            raise InvalidError("an audio unit of more than 64 kB", codec=unit.codec, bytes=len(data))
        head = struct.pack(">IH", 0x100 | stream_id, length)
        payload = b"".join((head, b"\x84\x80\x05", _stamp(2, unit.pts), data))
        # The clock is on the video's pid; with slow or no video the audio keeps it running.
        clock = self._video_track.clock(self._next_clock(unit.dts)) if self._clock_due(unit.dts) else b""
        return clock + self._audio_track.packets(payload)

    def _clock_due(self, ticks: int) -> bool:
        return self._clock is None or not -PCR_BREAK <= ticks - self._clock < PCR_PERIOD

    def _next_clock(self, ticks: int) -> bytes:
        """The PCR for a unit due at `ticks`, which does not step back when audio ran ahead of the video."""
        if self._clock is None or ticks > self._clock or self._clock_due(ticks):
            self._clock = ticks
        return _pcr(self._clock - PCR_LEAD)


def _opus_control_header(size: int) -> bytes:
    return b"\x7f\xe0" + b"\xff" * (size // 255) + bytes((size % 255,))


# --- demuxer ------------------------------------------------------------------------------------------------

SYNC_PAIR: Final = re.compile(rb"\x47(?=.{187}\x47)", re.DOTALL)
HEADER: Final = struct.Struct(">I")
NOT_FOR_US: Final = 0x00800000 | 0xC0  # transport_error_indicator, transport_scrambling_control
STARTS: Final = 0x00400000  # payload_unit_start_indicator
ADAPTATION: Final = 0x20
HAS_PAYLOAD: Final = 0x10
NO_PID: Final = 0x1FFF  # the null packets', so nothing of ours is ever there

PES_HEADER: Final = 9
LENGTH_UNKNOWN: Final = -1  # not enough bytes yet to read PES_packet_length
UNBOUNDED: Final = 0
FIRST: Final = -1  # any continuity counter will do

ADTS_SYNC: Final = re.compile(rb"\xff[\xf0\xf1\xf8\xf9]")
ADTS_HEADER: Final = 7
ADTS_SAMPLES: Final = 1024
ADTS_RATES: Final = (
    *(96_000, 88_200, 64_000, 48_000, 44_100, 32_000),
    *(24_000, 22_050, 16_000, 12_000, 11_025, 8_000, 7_350),
)

# RFC 6716 §3.1: ticks of a frame by the packet's first five bits: SILK, hybrid and CELT modes.
OPUS_FRAME_TICKS: Final = (900, 1800, 3600, 5400) * 3 + (900, 1800) * 2 + (225, 450, 900, 1800) * 4


@dataclass(slots=True)
class _Tally:
    """`DemuxStats` in the making, shared by the parts of one demuxer."""

    resyncs: int = 0
    continuity_errors: int = 0
    damaged_units: int = 0
    bytes_skipped: int = 0
    oversized_units: int = 0


class Demuxer:
    """Takes a transport stream in pieces of any size, gives each unit as soon as it is known to be whole.

    A unit whose PES packet states its length comes out with its last byte. Video may leave the length open
    (libav's muxer does unless told `omit_video_pes_length=0`, and units above 64 kB must): it is known to be
    whole only when the next one starts, or at `end_segment`. Units come from the first program's first H.264
    stream and first AAC or Opus stream. A unit with a gap, or without a PTS, is dropped; those that refer to
    it are not.
    """

    def __init__(self) -> None:
        self._tally = _Tally()
        self._rest = b""  # a packet whose end is still to come; after a loss of sync, what may be one
        self._synced = True
        self._streams: tuple[Codec, ...] = ()
        self._program = 0, NO_PID  # its number, and where its map is
        self._program_map = b""
        self._tables = {0: _Sections()}
        self._media: dict[int, _Units] = {}

    @property
    def streams(self) -> tuple[Codec, ...]:
        """What the program announces, in its order; empty until it did."""
        return self._streams

    @property
    def lost(self) -> DemuxStats:
        return DemuxStats(*astuple(self._tally))

    def feed(self, data: bytes) -> list[AccessUnit]:
        """The units that `data` completes."""
        if self._rest:
            data = self._rest + data
        units: list[AccessUnit] = []
        media, tables = self._media, self._tables
        position = 0
        last = len(data) - PACKET
        while position <= last:
            if data[position] != 0x47 or not self._synced:
                position = self._resync(data, position)
                if not self._synced:
                    break
                continue
            (header,) = HEADER.unpack_from(data, position)
            start = position + 4
            position += PACKET
            if header & NOT_FOR_US or not header & HAS_PAYLOAD:
                continue
            announced = False
            if header & ADAPTATION:
                announced = data[start] > 0 and data[start + 1] & 0x80 > 0  # discontinuity_indicator
                start += 1 + data[start]
            payload = data[start:position]
            if not payload:
                continue
            pid = header >> 8 & 0x1FFF
            stream = media.get(pid)
            if stream is not None:
                if header & STARTS:
                    units += stream.start(payload, header & 15, announced=announced)
                else:
                    units += stream.proceed(payload, header & 15)
                position = stream.take_plain(data, position)
            elif pid in tables:
                for section in tables[pid].take(payload, header & 15, starts=header & STARTS > 0):
                    units += self._read_table(pid, section)
        self._rest = data[position:]
        return units

    def end_segment(self) -> list[AccessUnit]:
        """The units that the input's end completes. What follows starts at a packet's first byte.

        An input that ends within a packet was cut off, and so were the units that it left open.
        """
        self._tally.bytes_skipped += len(self._rest)
        cut_off, self._rest, self._synced = bool(self._rest), b"", True
        units: list[AccessUnit] = []
        for stream in self._media.values():
            if cut_off:
                stream.damage()
            units += stream.finish()
        return units

    def _resync(self, data: bytes, position: int) -> int:
        """Where the next packet starts, or may start: then it stays in `_rest` until more bytes tell."""
        if self._synced:
            self._tally.resyncs += 1
        pair = SYNC_PAIR.search(data, position)
        self._synced = pair is not None
        if pair is not None:
            found = pair.start()
        else:
            found = data.find(b"\x47", max(position, len(data) - PACKET))
            if found < 0:
                found = len(data)
        self._tally.bytes_skipped += found - position
        return found

    def _read_table(self, pid: int, section: bytes) -> list[AccessUnit]:
        """Follow a PAT or PMT, if it is whole, in force and new; the units of streams that it ends."""
        if section == self._program_map or len(section) < 12 or not section[5] & 1 or crc32(section):
            return []
        if pid == 0 and section[0] == 0:
            entries = struct.iter_unpack(">HH", section[8 : 8 + (len(section) - 12) // 4 * 4])
            found = next(((number, pid & 0x1FFF) for number, pid in entries if number), self._program)
            if found != self._program and found[1] != 0:
                self._tables.pop(self._program[1], None)
                self._tables[found[1]] = _Sections()
                self._program, self._program_map = found, b""
                return self._follow({})
        elif pid != 0 and section[0] == 2 and int.from_bytes(section[3:5], "big") == self._program[0]:
            self._program_map = section
            return self._read_program_map(section)
        return []

    def _read_program_map(self, section: bytes) -> list[AccessUnit]:
        announced: list[tuple[int, Codec]] = []
        position = 12 + (int.from_bytes(section[10:12], "big") & 0x0FFF)
        end = len(section) - 4
        while position + 5 <= end:
            kind, pid, length = struct.unpack_from(">BHH", section, position)
            descriptors = section[position + 5 : position + 5 + (length & 0x0FFF)]
            announced.append((pid & 0x1FFF, _codec(kind, descriptors)))
            position += 5 + (length & 0x0FFF)
        self._streams = tuple(codec for _, codec in announced)

        video = next(((pid, codec) for pid, codec in announced if codec is Codec.H264), None)
        audio = next(((pid, codec) for pid, codec in announced if codec in {Codec.AAC, Codec.OPUS}), None)
        return self._follow(dict(stream for stream in (video, audio) if stream is not None))

    def _follow(self, chosen: dict[int, Codec]) -> list[AccessUnit]:
        """Read the `chosen` pids from now on; the units that the others left open."""
        units: list[AccessUnit] = []
        for pid, stream in list(self._media.items()):
            if chosen.get(pid) is not stream.codec:
                units += stream.finish()
                del self._media[pid]
        for pid, codec in chosen.items():
            if pid not in self._media and pid not in self._tables:
                self._media[pid] = _Units(pid, codec, self._tally)
        return units


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


class _Sections:
    """The PSI sections on one pid, put together over packets."""

    def __init__(self) -> None:
        self._open: bytes | None = None
        self._expected = 0

    def take(self, payload: bytes, counter: int, *, starts: bool) -> list[bytes]:
        if counter != self._expected:
            self._open = (
                None  # a hole, or a repetition of what was read; either way the next table comes soon
            )
        self._expected = (counter + 1) & 15
        sections: list[bytes] = []
        if not starts:
            if self._open is not None:
                self._read(self._open + payload, sections)
            return sections
        begin = 1 + payload[0]
        if self._open is not None:
            self._read(self._open + payload[1:begin], sections)
        self._read(payload[begin:], sections)
        return sections

    def _read(self, data: bytes, sections: list[bytes]) -> None:
        """Move the whole sections at the head of `data` to `sections`, keep a begun one open."""
        self._open = None
        while data and data[0] != 0xFF:  # table 0xff is stuffing up to the end of the packet
            length = 3 + (int.from_bytes(data[1:3], "big") & 0x0FFF) if len(data) >= 3 else LARGEST_SECTION
            if length > LARGEST_SECTION:
                return
            if length > len(data):
                self._open = data
                return
            sections.append(data[:length])
            data = data[length:]


class _Units:
    """The PES packets on one pid, put together over packets and taken apart into units."""

    def __init__(self, pid: int, codec: Codec, tally: _Tally) -> None:
        self.codec = codec
        self._plain = _headers(pid, PLAIN)
        self._tally = tally
        self._split = SPLITTERS[codec](tally)
        self._expected = FIRST  # the next continuity counter
        self._last = b""  # the previous payload, to know a repeated packet
        self._parts: list[bytes] = []  # of the open PES packet; empty between two
        self._size = 0
        self._length = LENGTH_UNKNOWN

    def start(self, payload: bytes, counter: int, *, announced: bool) -> list[AccessUnit]:
        """A packet that starts a PES packet; its counter may jump where the stream `announced` it."""
        if counter != self._expected and not announced and self._repeats(payload, counter):
            return []
        units = self.finish()
        self._expected = (counter + 1) & 15
        self._last = payload
        self._parts = [payload]
        self._size = len(payload)
        self._length = LENGTH_UNKNOWN
        self._measure()
        return units + self.finish() if 0 < self._length <= self._size else units

    def proceed(self, payload: bytes, counter: int) -> list[AccessUnit]:
        """A packet that goes on with the open PES packet."""
        if counter != self._expected and self._repeats(payload, counter):
            return []
        self._expected = (counter + 1) & 15
        self._last = payload
        if not self._parts:
            return []  # its start was not seen, or it was dropped
        self._parts.append(payload)
        self._size += len(payload)
        if self._length == LENGTH_UNKNOWN:
            self._measure()
        if 0 < self._length <= self._size:
            return self.finish()
        if self._size > LARGEST_UNIT:
            self._parts = []
            self._tally.oversized_units += 1
        return []

    def take_plain(self, data: bytes, position: int) -> int:
        """Take the full packets in turn at `position` that do not complete anything; where they end.

        They are nine of ten, and this costs a fraction of `proceed`, which would do the same with them.
        """
        if not self._parts or self._length == LENGTH_UNKNOWN:
            return position
        room = (self._length - 1 if self._length != UNBOUNDED else LARGEST_UNIT) - self._size
        count = min(room, len(data) - position) // PACKET
        counter, parts, headers = self._expected, self._parts, self._plain
        taken = 0
        while taken < count and data[position : position + 4] == headers[counter]:
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
        if self._length != UNBOUNDED:
            data = data[: self._length]
        times = _times(data)
        if times is None:
            self._tally.damaged_units += 1
            return []
        return self._split.split(*times, data[PES_HEADER + data[8] :])

    def damage(self) -> None:
        """Drop the open PES packet, for some of it is missing, and what waits for the next one."""
        if self._parts:
            self._parts = []
            self._tally.damaged_units += 1
        self._split = SPLITTERS[self.codec](self._tally)

    def _repeats(self, payload: bytes, counter: int) -> bool:
        """Whether a packet out of turn is the last one once more; if not, there is a gap before it."""
        if self._expected == FIRST:
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


class _Splitter(Protocol):
    """Makes units of what one PES packet carried, and counts what it cannot use."""

    def split(self, pts: int, dts: int, data: bytes) -> list[AccessUnit]: ...


class _Pictures:
    def __init__(self, tally: _Tally) -> None:
        self._tally = tally

    def split(self, pts: int, dts: int, data: bytes) -> list[AccessUnit]:
        picture = h264.strip_delimiter(data)
        if not picture:
            self._tally.damaged_units += 1
            return []
        return [AccessUnit(Codec.H264, pts, dts, picture, h264.is_keyframe(picture))]


class _AdtsFrames:
    """A PES packet may carry many ADTS frames, and only the beginning of the last one."""

    def __init__(self, tally: _Tally) -> None:
        self._tally = tally
        self._cut = b""
        self._cut_pts = 0

    def split(self, pts: int, dts: int, data: bytes) -> list[AccessUnit]:
        units: list[AccessUnit] = []
        own = len(self._cut)  # the PTS is that of the first frame which starts in this PES packet
        base = self._cut_pts if own else pts
        data, self._cut = self._cut + data, b""
        samples, rate, position = 0, ADTS_RATES[0], 0
        while position < len(data):
            if own and position >= own:
                base, samples, own = pts, 0, 0
            now = (base + (samples * CLOCK_HZ + rate // 2) // rate) % WRAP
            header = data[position : position + ADTS_HEADER]
            if len(header) < ADTS_HEADER:
                self._cut, self._cut_pts = data[position:], now
                break
            length = (header[3] & 3) << 11 | header[4] << 3 | header[5] >> 5
            rate_index = header[2] >> 2 & 15
            if not ADTS_SYNC.match(header) or length < ADTS_HEADER or rate_index >= len(ADTS_RATES):
                self._tally.damaged_units += 1
                following = ADTS_SYNC.search(data, position + 1)
                if units or following is None:
                    break
                position = following.start()  # the PES packet began within a frame that nobody saw start
                continue
            if position + length > len(data):
                self._cut, self._cut_pts = data[position:], now
                break
            units.append(AccessUnit(Codec.AAC, now, now, data[position : position + length], keyframe=True))
            rate = ADTS_RATES[rate_index]
            samples += ADTS_SAMPLES * ((header[6] & 3) + 1)
            position += length
        return units


class _OpusPackets:
    def __init__(self, tally: _Tally) -> None:
        self._tally = tally

    def split(self, pts: int, dts: int, data: bytes) -> list[AccessUnit]:
        units: list[AccessUnit] = []
        position = 0
        while position < len(data):
            begin, end = _opus_bounds(data, position)
            if not begin < end <= len(data):
                self._tally.damaged_units += 1
                break
            packet = data[begin:end]
            units.append(AccessUnit(Codec.OPUS, pts, pts, packet, keyframe=True))
            pts = (pts + opus_ticks(packet)) % WRAP
            position = end
        return units


SPLITTERS: Final[dict[Codec, Callable[[_Tally], _Splitter]]] = {
    Codec.H264: _Pictures,
    Codec.AAC: _AdtsFrames,
    Codec.OPUS: _OpusPackets,
}


def opus_ticks(packet: bytes) -> int:
    """How long an Opus packet plays (RFC 6716 §3), in 90 kHz ticks; 0 for one that does not say."""
    if not packet:
        return 0
    frames = (1, 2, 2, packet[1] & 0x3F if len(packet) > 1 else 0)[packet[0] & 3]
    return frames * OPUS_FRAME_TICKS[packet[0] >> 3]


def _opus_bounds(data: bytes, position: int) -> tuple[int, int]:
    """Where the packet behind the control header at `position` begins and ends; (0, 0) without a header."""
    flags = int.from_bytes(data[position : position + 2], "big")
    if flags & 0xFFE0 != 0x7FE0:
        return 0, 0
    position += 2
    size = 0
    for byte in data[position:]:
        size += byte
        position += 1
        if byte != 0xFF:
            break
    position += 2 * (flags >> 4 & 1) + 2 * (flags >> 3 & 1)  # start and end trim
    if flags & 4:
        position += 1 + int.from_bytes(data[position : position + 1], "big")  # control extension
    return position, position + size
