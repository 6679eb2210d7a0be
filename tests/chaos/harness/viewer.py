"""A real viewer: one HTTP connection, libav's decoder, and what it saw and heard, as it came.

The rule it keeps: it never connects again by itself, so a connection that broke is seen.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import httpx
import numpy as np

from services.common.media import h264
from services.common.media.codec import VideoDecoder
from services.common.media.mpegts import AccessUnit, Codec, Demuxer
from services.ingest.placeholder import AWAY, stills
from tests.chaos.harness import marks
from tests.chaos.harness.history import Heard, Shown
from tests.chaos.harness.pipeline import unstamped

QUIET_S = 60.0
STILLS = stills(*marks.SIZE, AWAY)  # what there is to see while the publisher is away


@dataclass(slots=True)
class Recording:
    """What the viewers of one stream got, one after the other. Lists only grow."""

    pictures: list[Shown] = field(default_factory=list)
    sounds: list[Heard] = field(default_factory=list)
    stills_s: list[float] = field(default_factory=list)  # when one came that is none of the stream's

    def since(self, from_s: float) -> list[Shown]:
        """The pictures since then; from the end, for it is asked often."""
        found: list[Shown] = []
        for at in range(len(self.pictures) - 1, -1, -1):
            if self.pictures[at].at_s < from_s:
                break
            found.append(self.pictures[at])
        return found[::-1]


class Viewer:
    """Watches `url` in a thread until the server ends it or `close`."""

    def __init__(self, url: str, recording: Recording, *, keep: bool = False) -> None:
        """`keep`: the decoded pictures too, for a contact sheet."""
        self._url = url
        self._recording = recording
        self.kept: list[tuple[Shown, np.ndarray]] | None = [] if keep else None
        self.ended_s: float | None = None
        self.status = 0
        self._closing = False
        self._decoder = VideoDecoder()
        self._client = httpx.Client(timeout=httpx.Timeout(QUIET_S, connect=5.0), trust_env=False)
        self._thread = threading.Thread(target=self._watch, name="viewer", daemon=True)
        self._thread.start()

    @property
    def connected(self) -> bool:
        return self.ended_s is None

    def close(self) -> None:
        self._closing = True
        self._thread.join(5)

    def _watch(self) -> None:
        demuxer = Demuxer()
        try:
            with self._client, self._client.stream("GET", self._url) as answer:
                self.status = answer.status_code
                if answer.status_code == httpx.codes.OK:
                    for data in answer.iter_raw():
                        if self._closing:
                            break
                        self._take(demuxer.feed(data), time.monotonic())
        except httpx.TransportError:
            pass  # a broken connection is an end like another; `ended_s` says so
        finally:
            self.ended_s = time.monotonic()

    def _take(self, units: list[AccessUnit], at_s: float) -> None:
        for unit in units:
            if unit.codec is not Codec.H264:
                self._recording.sounds.append(Heard(at_s, unit.pts))
                continue
            frames = self._decoder.decode(unit.data, unit.pts)
            if h264.strip_delimiter(unit.data) in STILLS:
                self._recording.stills_s.append(at_s)
                continue
            for frame in frames:
                grey = np.asarray(frame.frame.to_ndarray(format="gray"), np.uint8)
                maker, mark = unstamped(marks.read(grey, marks.STAMPED) or 0)
                number = marks.read(grey, marks.PUBLISHED)
                shown = Shown(
                    at_s=at_s,
                    pts=frame.pts,
                    number=-1 if number is None else number,
                    mark=mark,
                    maker=maker,
                    carried=marks.read(grey, marks.CARRIED) or 0,
                )
                self._recording.pictures.append(shown)
                if self.kept is not None:
                    self.kept.append((shown, frame.rgb()))
