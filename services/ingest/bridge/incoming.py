"""What a publisher sends, put on the session's clock and on its way: to the runners, or round them.

The rule it keeps: nothing goes before the first key frame, and every key frame has its parameter sets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from protos.ingest.v1 import bridge_pb2
from services.common.frame_drops import FRAME_DROPS
from services.common.media import h264
from services.common.media.clock import ORIGIN_TICKS, Timeline
from services.common.media.mpegts import CLOCK_HZ, AccessUnit, Codec, Muxer
from services.common.trickle.channel import Channel
from services.ingest.bridge.cutter import SegmentCutter
from services.ingest.bridge.presence import Presence
from services.ingest.bridge.sound import AUDIO, fits

MS: Final = CLOCK_HZ // 1000


@dataclass(frozen=True, slots=True)
class Onward:
    """Where it goes. `picture`: one was sent to the runners, its last byte had been read at that time."""

    picture: Callable[[AccessUnit, float], None]
    sound: Callable[[AccessUnit], None]  # that goes round the runner
    announce: Callable[[Codec | None], None]  # that there is such sound
    changed: Callable[[], None]


class Incoming:
    """Of one session. With `live` false the media's clock is the only one: we hold its publisher back."""

    def __init__(
        self, channel: Channel, presence: Presence, onward: Onward, *, live: bool, now_s: Callable[[], float]
    ) -> None:
        self._presence = presence
        self._onward = onward
        self._live = live
        self._now_s = now_s
        self._timeline = Timeline()
        self._timeline.begin_source(self._wall_s())
        self._parameter_sets = b""
        self._started = False  # the first key frame is through
        self._cutter = SegmentCutter(channel, Muxer())
        self._audio: Codec | None = None  # what the publisher has
        self._sound_through = False

    def _wall_s(self) -> float | None:
        """What the timeline takes for wall time."""
        return self._now_s() if self._live else None

    def begin_source(self) -> None:
        """A publisher came back: its first picture is where wall time says."""
        self._timeline.begin_source(self._wall_s())

    def resume(self, position: bridge_pb2.Position) -> None:
        """Go on after what the session's bridge before this one had of its publisher."""
        by_wall = ORIGIN_TICKS + position.session_ms * MS
        latest = max(position.in_pts, position.out_pts)  # a still is above what the publisher sent
        self._timeline.resume(latest, by_wall, self._wall_s())

    def insert(self, after: int) -> int:
        """The time of a picture for the viewers that is none of the publisher's, above `after`."""
        assert self._live
        return self._timeline.insert(after, self._now_s())

    def send_sound_through(self) -> None:
        """The pipeline processes sound: it goes to the runner."""
        self._sound_through = True
        self._onward.announce(None)
        self._offer_sound()

    def announce(self, audio: Codec | None) -> None:
        """What the publisher's tables list; None: nothing."""
        self._audio = audio or self._audio
        self._offer_sound()

    def take(self, unit: AccessUnit, arrived_s: float) -> None:
        """Take one unit of the publisher, whose last byte was read at `arrived_s`."""
        if self._presence.paused:
            if unit.codec is Codec.H264:
                self._presence.in_at_s = self._now_s()
        elif unit.codec is Codec.H264:
            self._take_picture(unit, arrived_s)
        elif unit.codec in AUDIO and self._audio in {None, unit.codec} and fits(unit):
            self._take_sound(unit)

    def pause(self) -> None:
        self._cutter.end()  # a runner waits as long as it takes between two segments, but not within one

    def go_on(self) -> None:
        """Take the next key frame, and what comes after it."""
        self._started = False

    def end(self) -> None:
        self._cutter.end()

    def _take_picture(self, unit: AccessUnit, arrived_s: float) -> None:
        if unit.keyframe:
            self._parameter_sets = h264.parameter_sets(unit.data) or self._parameter_sets
            unit = replace(unit, data=h264.ensure_parameter_sets(unit.data, self._parameter_sets))
        elif not self._started:
            return  # nothing can be decoded before the first key frame
        stamped = self._timeline.stamp(unit, self._wall_s())
        if stamped is None:
            FRAME_DROPS.labels("clock").inc()
            return
        now_s = self._now_s()
        if not self._started or self._presence.was_silent(now_s):
            self._started = True
            self._onward.changed()
        self._presence.in_at_s = now_s
        self._cutter.write(stamped)
        self._onward.picture(stamped, arrived_s)

    def _take_sound(self, unit: AccessUnit) -> None:
        stamped = self._timeline.stamp(unit, self._wall_s())
        if stamped is None:
            return
        self._audio = unit.codec
        self._offer_sound()
        if not self._sound_through:
            self._onward.sound(stamped)
        elif unit.codec is self._cutter.muxer.audio:
            self._cutter.write(stamped)

    def _offer_sound(self) -> None:
        """Announce the publisher's sound to whoever gets it: the runner or the viewers."""
        if self._sound_through:
            self._cutter.muxer.change_audio(self._audio)
        else:
            self._onward.announce(self._audio)
