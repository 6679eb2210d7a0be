"""Sound and pictures of one sender on one clock: by its sender reports, until then by their arrival. Pure.

RTP gives each track a timestamp of its own that begins anywhere and wraps at 32 bits. What comes out are
90 kHz ticks on the pictures' timestamps, unwrapped; they never jump back by a wrap.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from services.common.media.mpegts import CLOCK_HZ
from services.ingest.transports.webrtc.rtcp import SenderReport
from services.ingest.transports.webrtc.rtp import TIMESTAMPS, near

# An offset that differs by less is kept: each report is a little off, and lips are not that exact.
TOLERANCE: Final = CLOCK_HZ * 15 // 1000
FURTHEST: Final = 5 * CLOCK_HZ  # reports that say more are wrong


@dataclass(slots=True)
class _Track:
    scale: Fraction  # from its own clock to 90 kHz
    timestamp: int | None = None  # the newest, unwrapped, on its own clock
    first: tuple[int, float] | None = None  # ticks and when they arrived
    report: tuple[int, float] | None = None  # ticks and the sender's wall clock

    def ticks(self, raw: int) -> int:
        timestamp = raw if self.timestamp is None else near(self.timestamp, raw, TIMESTAMPS)
        self.timestamp = timestamp if self.timestamp is None else max(self.timestamp, timestamp)
        return int(timestamp * self.scale)


class Alignment:
    """The common clock of a picture track and a sound track of `audio_clock` Hz."""

    def __init__(self, audio_clock: int = 48_000) -> None:
        self._video = _Track(Fraction(1))
        self._audio = _Track(Fraction(CLOCK_HZ, audio_clock))
        self._offset: int | None = None

    def video(self, timestamp: int, arrived_s: float) -> int:
        """The time of a picture."""
        ticks = self._video.ticks(timestamp)
        if self._video.first is None:
            self._video.first = ticks, arrived_s
        return ticks

    def audio(self, timestamp: int, arrived_s: float) -> int | None:
        """The time of a sound; None before there was a picture to go by."""
        ticks = self._audio.ticks(timestamp)
        if self._audio.first is None:
            self._audio.first = ticks, arrived_s
        if self._offset is None:
            self._offset = self._between(self._video.first, self._audio.first)
        return None if self._offset is None else ticks + self._offset

    def report(self, kind: str, report: SenderReport) -> None:
        """Take in a sender report of the track of `kind`."""
        track = self._video if kind == "video" else self._audio
        if track.timestamp is None:
            return  # nothing to unwrap it by
        ticks = int(near(track.timestamp, report.timestamp, TIMESTAMPS) * track.scale)
        track.report = ticks, report.ntp / (1 << 32)
        said = self._between(self._video.report, self._audio.report)
        if said is None or self._offset is None:
            return
        by_arrival = self._between(self._video.first, self._audio.first)
        if by_arrival is None or abs(said - by_arrival) > FURTHEST:
            return
        if abs(said - self._offset) > TOLERANCE:
            self._offset = said

    @staticmethod
    def _between(video: tuple[int, float] | None, audio: tuple[int, float] | None) -> int | None:
        """What has to be added to the sound's ticks, by a moment of each track."""
        if video is None or audio is None:
            return None
        return video[0] - audio[0] + round((audio[1] - video[1]) * CLOCK_HZ)
