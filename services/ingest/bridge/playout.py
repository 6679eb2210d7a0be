"""What viewers get: pictures as they come back, and between them the sound of their time, on one channel.

The rule it keeps: sound that the tables in force do not announce is not written; a segment brings new tables.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from prometheus_client import Counter

from services.common.errors import InvalidError
from services.common.media import h264
from services.common.media.mpegts import AccessUnit, Codec, Muxer
from services.common.trickle.channel import Channel
from services.ingest.bridge.cutter import SegmentCutter
from services.ingest.bridge.hold import Hold
from services.ingest.bridge.taps import Taps

SOUND: Final = Counter(
    "sluice_bridge_sound_total",
    "Units of sound that did not go out with their picture: alone, for it stalled, or not at all.",
    ["outcome"],
)


class Playout:
    """The way to `channel`. `audio` is the sound that is to be announced; it may change at any time."""

    def __init__(self, channel: Channel, taps: Taps, *, live: bool) -> None:
        self.audio: Codec | None = None
        self._taps = taps
        self._cutter = SegmentCutter(channel, Muxer())
        self._hold = Hold(live=live)
        self._sets_before: bytes | None = None  # the stream's parameter sets, while a still is shown
        self._counted_early = self._counted_dropped = 0

    def hear(self, unit: AccessUnit, now_s: float) -> None:
        """Take sound; it goes out in `show` or in `go_on`."""
        self._hold.push(unit, now_s)

    def show(self, picture: AccessUnit, now_s: float, next_pts: int | None) -> None:
        """Write a picture, with the sound before it, and begin with the sound after it."""
        if self.audio is not self._cutter.muxer.audio:
            self._cutter.muxer.change_audio(self.audio)
        if self._sets_before is not None:
            # A runner may have sent them once and for all; the still had others.
            data = h264.ensure_parameter_sets(picture.data, self._sets_before)
            picture, self._sets_before = replace(picture, data=data), None
        self._write(self._hold.deliver(picture.pts, now_s))
        self._cutter.write(picture)
        self._taps.write(picture)
        self.go_on(now_s, next_pts)

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height of the pictures; None where they did not say."""
        try:
            return h264.picture_size(self._cutter.muxer.parameter_sets)
        except InvalidError:
            return None

    def show_still(self, still: AccessUnit) -> None:
        """Write a key frame that is none of the stream's; the next picture is to be one as well.

        Sound has no part in it: it goes on by itself, if there is any.
        """
        if self._sets_before is None:
            self._sets_before = self._cutter.muxer.parameter_sets
        self._cutter.write(still)
        self._taps.write_still(still)

    def go_on(self, now_s: float, next_pts: int | None) -> None:
        """Write the sound that is due; `next_pts` is of the earliest picture that may come next, if any."""
        self._write(self._hold.release(now_s, next_pts))
        self._count()

    def fall_silent(self) -> None:
        """Write no more of the sound that is held."""
        self._hold.clear()

    def finish(self) -> None:
        """Write all that is held: no picture will come any more."""
        self._write(self._hold.rest())

    def end(self) -> None:
        self._cutter.end()
        self._taps.end()

    def _write(self, sound: Iterable[AccessUnit]) -> None:
        for unit in sound:
            if unit.codec is self._cutter.muxer.audio:
                self._cutter.write(unit)
                self._taps.write(unit)
            else:
                SOUND.labels("not_announced").inc()

    def _count(self) -> None:
        early, dropped = self._hold.early, self._hold.dropped
        if early > self._counted_early:
            SOUND.labels("alone").inc(early - self._counted_early)
        if dropped > self._counted_dropped:
            SOUND.labels("dropped").inc(dropped - self._counted_dropped)
        self._counted_early, self._counted_dropped = early, dropped
