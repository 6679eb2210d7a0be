"""Cuts a session's units into segments and parts of MPEG-TS. Pure: the wall time is passed in.

The rule it keeps: no segment is listed as longer than the target duration allows and no part as longer than
the part target, whatever the pictures do. Segments begin with a key frame, unless none comes in time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from services.common.errors import InvalidError
from services.common.media import h264
from services.common.media.mpegts import CLOCK_HZ, AccessUnit, Codec, Muxer
from services.ingest.transports.hls.playlist import PART_TARGET, Rendition
from services.ingest.transports.hls.shelf import Shelf

SHORTEST_SEGMENT: Final = CLOCK_HZ * 9 // 10  # a key frame each second has some jitter
SHORTEST_PART: Final = PART_TARGET * 85 // 100  # RFC 8216bis §4.4.4.9
# Sound ends a part only where the picture that should is late, and then an AAC frame before it is too late.
LONGEST_PART: Final = 2 * PART_TARGET  # of media, where a picture is late
SILENT_PART: Final = PART_TARGET - CLOCK_HZ * 1024 // 44_100
# Of the target duration. hls.js gives up a request for the next segment after 0.8 of it, and asks again.
ASK_AFTER: Final = 0.7
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
        self._unlisted = 0  # what a late picture made a part too long by; the next ones say it instead
        self._picture_dts: int | None = None
        self._intervals: deque[int] = deque([FIRST_INTERVAL] * INTERVALS, INTERVALS)
        self._sets = b""  # the parameter sets of the newest key frame
        self._look: Look | None = None  # what they say of it
        self._segment_look: Look | None = None
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
        codecs = [_avc(self._sets)]
        if self._muxer.audio is not None:
            codecs.append(f"mp4a.40.{(self._sound >> 14) + 1}" if self._sound else AAC_LC)
        size = None if self._look is None else self._look.size
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
        sets = h264.parameter_sets(unit.data) if unit.keyframe else b""
        if sets and sets != self._sets:
            self._sets = sets
            self._look = look_of(sets)

    def _segment_is_due(self, unit: AccessUnit) -> bool:
        age = self._now - self._segment_from
        if unit.codec is Codec.H264 and unit.keyframe:
            return age >= SHORTEST_SEGMENT or self._look != self._segment_look
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
        """Whether a part ends here: before a picture, or before sound where no picture comes.

        Not before a picture that is late: a browser's buffer (MSE, coded frame processing) takes a gap of
        more than twice the last picture's duration for a seek, and shows nothing up to the next key frame.
        Within a part a player evens it out.
        """
        age = self._now - self._part_from
        if age >= LONGEST_PART:
            return True
        if not picture or self._intervals[-1] > 2 * self._intervals[-2]:
            return False
        return age >= SHORTEST_PART or (age > 0 and age + self._interval > PART_TARGET)

    def _begin_segment(self, unit: AccessUnit, *, sound: bool, unix_s: float) -> None:
        if self._growing:
            self._end_part(self._now)
        if self._shelf.open is not None:
            self._end_segment(self._now)
        audio = Codec.AAC if sound else None
        discontinuity = self._broken or (
            self._segment_look is not None
            and (
                self._look != self._segment_look
                or audio is not self._muxer.audio
                or self._segment_sound not in {0, self._sound}
            )
        )
        self._muxer.change_audio(audio)
        if discontinuity:
            self._sound = 0  # what comes may say something else, and is then no other change
        self._segment_look, self._segment_sound = self._look, self._sound
        self._broken = False
        self._segment_from = self._now
        self._unlisted = 0
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
        ticks = max(end - self._part_from, 1) + self._unlisted
        listed = min(ticks, PART_TARGET)
        self._unlisted = ticks - listed
        self._shelf.end_part(listed)

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


@dataclass(frozen=True, slots=True)
class Look:
    """What a player's decoder is made for; all else in the parameter sets, such as a rate, may change."""

    profile: bytes
    size: tuple[int, int] | None


def look_of(sets: bytes) -> Look:
    try:
        size = h264.picture_size(sets)
    except InvalidError:
        size = None
    return Look(_sps(sets)[1:2], size)


def _sps(sets: bytes) -> bytes:
    return next((nal for nal in h264.nal_units(sets) if nal[0] & 0x1F == h264.SPS), b"")


def _avc(sets: bytes) -> str:
    """RFC 6381 §3.3: profile, constraints and level, as the SPS has them."""
    return f"avc1.{_sps(sets)[1:4].hex()}"
