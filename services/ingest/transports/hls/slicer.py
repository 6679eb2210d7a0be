"""Cuts a session's units into segments and parts of MPEG-TS. Pure: the wall time is passed in.

The rule it keeps: no segment is longer than the target duration allows and no part longer than the part
target, whatever the pictures do. Segments begin with a key frame, unless none comes in time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from services.common.errors import InvalidError
from services.common.media import h264
from services.common.media.mpegts import CLOCK_HZ, AccessUnit, Codec, Muxer
from services.ingest.transports.hls.playlist import PART_TARGET, Rendition
from services.ingest.transports.hls.shelf import Shelf

SHORTEST_SEGMENT: Final = CLOCK_HZ * 9 // 10  # a key frame each second has some jitter
SHORTEST_PART: Final = PART_TARGET * 85 // 100  # RFC 8216bis §4.4.4.9
SILENT_PART: Final = PART_TARGET * 95 // 100  # sound ends a part only where the picture that should is late
ASK_AFTER: Final = 0.75  # of the target duration: what is asked for then is there in time
ASK_AGAIN: Final = CLOCK_HZ
ROUNDS_DOWN: Final = CLOCK_HZ * 49 // 100  # a duration may be so much longer than the target
FIRST_INTERVAL: Final = CLOCK_HZ // 30
LONGEST_INTERVAL: Final = CLOCK_HZ // 2
INTERVALS: Final = 3  # their median: one late picture does not make a slow stream
DATE_STEP_S: Final = 0.01  # a segment's date follows its arrival so slowly, for arrivals have jitter
HEADROOM: Final = 1.5  # of the announced bit rate above the highest so far
AAC_LC: Final = "mp4a.40.2"
AAC_FIXED: Final = slice(2, 4)  # of an ADTS header: profile, rate, and with a mask channels
CHANNELS_MASK: Final = 0xFFC0


class Slicer:
    """Writes one session onto a shelf. `resumes`: there was another one before."""

    def __init__(self, shelf: Shelf, *, ask_keyframe: Callable[[], None], resumes: bool) -> None:
        self._shelf = shelf
        self._ask_keyframe = ask_keyframe
        self._muxer = Muxer()
        self._longest = shelf.target_s * CLOCK_HZ + ROUNDS_DOWN
        self._ask_after = max(SHORTEST_SEGMENT, round(shelf.target_s * CLOCK_HZ * ASK_AFTER))
        self._broken = resumes  # what comes next does not follow what was there
        self._now = 0  # on the session's clock
        self._segment_from = 0
        self._part_from = 0
        self._picture_dts: int | None = None
        self._intervals: deque[int] = deque([FIRST_INTERVAL], INTERVALS)
        self._sets = b""  # of the newest key frame
        self._segment_sets = b""
        self._sound = 0  # what the newest AAC frame's header says; 0 before the first
        self._segment_sound = 0
        self._asked: int | None = None
        self._dated: tuple[float, int] | None = None  # a wall time and the position that belongs to it

    def write(self, unit: AccessUnit, *, sound: bool, unix_s: float) -> None:
        """Take a picture or an AAC frame; `sound` says whether the next segment is to have any."""
        picture = unit.codec is Codec.H264
        shelf = self._shelf
        now = max(self._now, unit.dts if picture else unit.pts)
        if shelf.open is not None and now - self._segment_from > self._longest:
            self.stop()  # a gap, too long for one segment
        if picture:
            self._watch(unit)
        elif unit.codec is Codec.AAC:
            self._sound = int.from_bytes(unit.data[AAC_FIXED], "big") & CHANNELS_MASK
        if shelf.open is None and not (picture and unit.keyframe):
            if picture:
                self._ask(now)
            return
        self._now = now
        if shelf.open is None or self._segment_is_due(unit):
            self._begin_segment(unit, sound=sound, unix_s=unix_s)
        elif not self._growing or self._part_is_due(picture=picture):
            self._begin_part(independent=False)
        if picture or unit.codec is self._muxer.audio:
            shelf.append(self._muxer.write(unit), unit.pts if picture else 0)

    def pause(self) -> None:
        """Nothing came for a while: what is there is whole, so that it can be shown."""
        if self._growing:
            self._end_part(self._now + self._interval)

    def stop(self) -> None:
        """Nothing more belongs to the open segment, nor does what comes later follow it."""
        if self._shelf.open is None:
            return
        end = self._now + self._interval
        if self._growing:
            self._end_part(end)
        self._end_segment(end)
        self._broken = True

    def rendition(self) -> Rendition:
        """What the newest segments are made of."""
        rates = (each.size * 8 * CLOCK_HZ / each.ticks for each in self._shelf.listed if each.ticks)
        bits_per_second = round(max(rates, default=1.0) * HEADROOM)
        codecs = [_avc(self._segment_sets)]
        if self._muxer.audio is not None:
            codecs.append(f"mp4a.40.{(self._sound >> 14) + 1}" if self._sound else AAC_LC)
        try:
            size = h264.picture_size(self._segment_sets)
        except InvalidError:
            size = None
        return Rendition(tuple(codecs), size, bits_per_second)

    @property
    def _growing(self) -> bool:
        segment = self._shelf.open
        return segment is not None and segment.listed_parts < len(segment.parts)

    @property
    def _interval(self) -> int:
        return sorted(self._intervals)[len(self._intervals) // 2]

    def _watch(self, unit: AccessUnit) -> None:
        """Note what a picture tells of those that come."""
        if self._picture_dts is not None:
            self._intervals.append(min(max(unit.dts - self._picture_dts, 1), LONGEST_INTERVAL))
        self._picture_dts = unit.dts
        if unit.keyframe:
            self._sets = h264.parameter_sets(unit.data) or self._sets

    def _segment_is_due(self, unit: AccessUnit) -> bool:
        age = self._now - self._segment_from
        if unit.codec is Codec.H264 and unit.keyframe:
            return age >= SHORTEST_SEGMENT or self._sets != self._segment_sets
        # The first one is waited for.
        if age >= (self._ask_after if self._shelf.listed else SHORTEST_SEGMENT):
            self._ask(self._now)
        return age + self._interval > self._longest

    def _ask(self, now: int) -> None:
        """Ask once and not with every picture: what was asked for twice comes twice."""
        if self._asked is None or now - self._asked >= ASK_AGAIN:
            self._asked = now
            self._ask_keyframe()

    def _part_is_due(self, *, picture: bool) -> bool:
        age = self._now - self._part_from
        if not picture:
            return age >= SILENT_PART
        return age >= SHORTEST_PART or (age > 0 and age + self._interval > PART_TARGET)

    def _begin_segment(self, unit: AccessUnit, *, sound: bool, unix_s: float) -> None:
        if self._growing:
            self._end_part(self._now)
        if self._shelf.open is not None:
            self._end_segment(self._now)
        audio = Codec.AAC if sound else None
        discontinuity = self._broken or (
            bool(self._segment_sets)
            and (
                self._sets != self._segment_sets
                or audio is not self._muxer.audio
                or self._segment_sound not in {0, self._sound}
            )
        )
        self._muxer.change_audio(audio)
        self._segment_sets, self._segment_sound = self._sets, self._sound
        self._broken = False
        self._segment_from = self._now
        self._shelf.begin_segment(unix_s=self._date(unix_s, anew=discontinuity), discontinuity=discontinuity)
        self._begin_part(independent=unit.codec is Codec.H264 and unit.keyframe)

    def _begin_part(self, *, independent: bool) -> None:
        """A part has tables of its own, so that a player may begin with any."""
        if self._growing:
            self._end_part(self._now)
        self._part_from = self._now
        self._shelf.begin_part(independent=independent)
        self._shelf.append(self._muxer.begin_segment(), 0)

    def _end_part(self, end: int) -> None:
        self._shelf.end_part(min(max(end - self._part_from, 1), PART_TARGET))

    def _end_segment(self, end: int) -> None:
        self._shelf.end_segment(min(max(end - self._segment_from, 1), self._longest))

    def _date(self, unix_s: float, *, anew: bool) -> float:
        """The wall time of the segment that begins: that of the one before, and what has gone by since."""
        if self._dated is None or anew:
            date_s = unix_s
        else:
            known_s, position = self._dated
            date_s = known_s + (self._now - position) / CLOCK_HZ
            date_s += min(max(unix_s - date_s, -DATE_STEP_S), DATE_STEP_S)
        self._dated = date_s, self._now
        return date_s


def _avc(sets: bytes) -> str:
    """RFC 6381 §3.3: profile, constraints and level, as the SPS has them."""
    found = next((nal for nal in h264.nal_units(sets) if nal[0] & 0x1F == h264.SPS), b"")
    return f"avc1.{found[1:4].hex()}"
