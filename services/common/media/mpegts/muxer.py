"""Writes one program, unit by unit: whoever reads a unit's last packet can know that it was the last."""

from __future__ import annotations

import struct
from typing import Final

from services.common.errors import InvalidError
from services.common.media import h264
from services.common.media.mpegts import tables
from services.common.media.mpegts.packets import PAYLOAD, Track, first_room
from services.common.media.mpegts.pes import LARGEST_BOUNDED
from services.common.media.mpegts.units import CLOCK_HZ, WRAP, AccessUnit, Codec

PROGRAM: Final = 1
PMT_PID: Final = 0x1000
VIDEO_PID: Final = 0x100
# A pid never changes its codec: who does not follow a new table goes without sound, and not with noise.
AUDIO_PIDS: Final = {Codec.AAC: 0x101, Codec.OPUS: 0x102}

PCR_PERIOD: Final = CLOCK_HZ * 40 // 1000  # ISO 13818-1 allows 100 ms, DVB asks for 40
PCR_LEAD: Final = (
    CLOCK_HZ // 10
)  # a unit is due this long after its PCR; strict receivers want it before its DTS
PCR_BREAK: Final = CLOCK_HZ  # a step back further than this is a new timeline, not audio behind its video

# What is left for the last packet of an unbounded picture, if it is not to look like one in the middle:
# nothing at all (a full packet), or all but the two bytes that GStreamer also writes before the last packet.
UNTELLING: Final = frozenset({0, PAYLOAD - 2})


class Muxer:
    """Writes one program. Counters run on over segments, which can thus be read alone or concatenated."""

    def __init__(self, *, audio: Codec | None = None, audio_channels: int = 2) -> None:
        self._program_tracks = Track(0), Track(PMT_PID)
        self._tracks = {pid: Track(pid) for pid in (VIDEO_PID, *AUDIO_PIDS.values())}
        self._video = self._tracks[VIDEO_PID]
        self._clock: int | None = None
        self._sets = b""  # the parameter sets of the last key frame that had them
        self._begins = False  # the next picture is a segment's first
        self._version = 0
        self._audio = self._following = _checked(audio, audio_channels)
        self._pat = tables.in_packets(tables.association(PROGRAM, PMT_PID))
        self._pmt = self._program_map()

    @property
    def audio(self) -> Codec | None:
        """The sound that the tables in force announce, and `write` takes."""
        return self._audio[0]

    @property
    def parameter_sets(self) -> bytes:
        """Of the last key frame that had them."""
        return self._sets

    def change_audio(self, audio: Codec | None, *, channels: int = 2) -> None:
        """Announce another sound, the first one or none from the next segment on: a new version of the PMT.

        Until `begin_segment` writes it, `audio` and `write` know the old one.
        """
        self._following = _checked(audio, channels)

    def begin_segment(self) -> bytes:
        """PAT and PMT. If the next picture is a key frame, a decoder can begin with it.

        For that it gets the parameter sets of an earlier key frame should it have none of its own.
        """
        if self._following != self._audio:
            self._audio = self._following
            self._version = (self._version + 1) % tables.VERSIONS
            self._pmt = self._program_map()
        self._begins = True
        programs, program = self._program_tracks
        return programs.packets(self._pat) + program.packets(self._pmt)

    def write(self, unit: AccessUnit) -> bytes:
        """The packets of `unit`, whole. Raises InvalidError for an audio unit too large for a PES packet."""
        if unit.codec is Codec.H264:
            return self._write_video(unit)
        assert unit.codec is self.audio, (unit.codec, self.audio)
        return self._write_audio(unit)

    def _program_map(self) -> bytes:
        streams = [(tables.WRITTEN_TYPES[Codec.H264], VIDEO_PID, b"")]
        codec, channels = self._audio
        if codec is not None:
            descriptors = tables.opus_descriptors(channels) if codec is Codec.OPUS else b""
            streams.append((tables.WRITTEN_TYPES[codec], AUDIO_PIDS[codec], descriptors))
        return tables.in_packets(tables.program_map(PROGRAM, VIDEO_PID, streams, version=self._version))

    def _write_video(self, unit: AccessUnit) -> bytes:
        data = unit.data
        adaptation = b""
        if unit.keyframe:
            self._sets = h264.parameter_sets(data) or self._sets
            if self._begins:
                data = h264.ensure_parameter_sets(data, self._sets)
            adaptation = b"\x50" + self._next_clock(unit.dts)
        elif self._clock_due(unit.dts):
            adaptation = b"\x10" + self._next_clock(unit.dts)
        self._begins = False
        delimiter = b"" if h264.strip_delimiter(data) is not data else h264.ACCESS_UNIT_DELIMITER
        if unit.pts == unit.dts:
            times = b"\x84\x80\x05" + stamp(2, unit.pts)
        else:
            times = b"\x84\xc0\x0a" + stamp(3, unit.pts) + stamp(1, unit.dts)
        length = len(times) + len(delimiter) + len(data)
        if length > LARGEST_BOUNDED:
            if (6 + length - first_room(adaptation)) % PAYLOAD in UNTELLING:
                times = times[:2] + bytes((times[2] + 1,)) + times[3:] + b"\xff"  # a longer header
            length = 0
        head = b"\x00\x00\x01\xe0" + length.to_bytes(2, "big")
        return self._video.packets(b"".join((head, times, delimiter, data)), adaptation)

    def _write_audio(self, unit: AccessUnit) -> bytes:
        if unit.codec is Codec.OPUS:
            stream_id, data = 0xBD, _opus_control_header(len(unit.data)) + unit.data
        else:
            stream_id, data = 0xC0, unit.data
        length = 8 + len(data)
        if length > LARGEST_BOUNDED:
            raise InvalidError("an audio unit of more than 64 kB", codec=unit.codec, bytes=len(data))
        head = struct.pack(">IH", 0x100 | stream_id, length)
        payload = b"".join((head, b"\x84\x80\x05", stamp(2, unit.pts), data))
        # The clock is on the video's pid; with slow or no video the audio keeps it running.
        clock = self._video.clock(self._next_clock(unit.dts)) if self._clock_due(unit.dts) else b""
        return clock + self._tracks[AUDIO_PIDS[unit.codec]].packets(payload)

    def _clock_due(self, ticks: int) -> bool:
        return self._clock is None or not -PCR_BREAK <= ticks - self._clock < PCR_PERIOD

    def _next_clock(self, ticks: int) -> bytes:
        """The PCR for a unit due at `ticks`, which does not step back when audio ran ahead of the video."""
        if self._clock is None or ticks > self._clock or self._clock_due(ticks):
            self._clock = ticks
        return _pcr(self._clock - PCR_LEAD)


def _checked(audio: Codec | None, channels: int) -> tuple[Codec | None, int]:
    assert audio is None or audio in AUDIO_PIDS, audio
    return audio, channels


def stamp(marker: int, ticks: int) -> bytes:
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


def _opus_control_header(size: int) -> bytes:
    return b"\x7f\xe0" + b"\xff" * (size // 255) + bytes((size % 255,))
