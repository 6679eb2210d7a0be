"""One peer's view of a stream: what it is shown now, and what it can carry."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence

from services.common.frame_drops import FRAME_DROPS
from services.ingest.transports.webrtc.congestion import Congestion
from services.ingest.transports.webrtc.outgoing import OutgoingTrack


class Showing(enum.Enum):
    """What a viewer sees."""

    NOTHING = enum.auto()
    STILL = enum.auto()
    LIVE = enum.auto()


class Viewer:
    """What an audience sends to. `over` ends its peer, with a reason and a message."""

    def __init__(
        self,
        video: OutgoingTrack | None,
        audio: OutgoingTrack | None,
        *,
        over: Callable[[str, str], None],
        now_s: float,
    ) -> None:
        self.video = video
        self.audio = audio
        self.over = over
        self.showing = Showing.NOTHING
        self.connected = False
        self.joined_s = now_s
        self.congestion = Congestion(now_s)
        self._skipping = False  # up to a key frame

    @property
    def codec(self) -> str:
        """Of the pictures; H264 where there are none."""
        return "H264" if self.video is None else self.video.codec

    def picture(
        self, payloads: Sequence[bytes], ticks: int, now_s: float, unix_s: float, *, keyframe: bool
    ) -> bool:
        """Send a picture of the stream; False when a key frame is needed before there can be another."""
        if not self.connected:
            return True
        if self.video is None:
            self.showing = Showing.LIVE
            return True
        if (self.showing is not Showing.LIVE or self._skipping) and not keyframe:
            if self._skipping:
                FRAME_DROPS.labels("webrtc_out").inc()
            return False
        bits = 8 * sum(map(len, payloads))
        if not self.congestion.allows(bits, now_s, keyframe=keyframe):
            FRAME_DROPS.labels("webrtc_out").inc()
            self._skipping = True
            return True  # another key frame would only make it worse: the next one comes by itself
        self.showing = Showing.LIVE
        self._skipping = not self.video.send(payloads, ticks, unix_s)
        return not self._skipping

    def still(self, payloads: Sequence[bytes], ticks: int, unix_s: float) -> None:
        """Send the picture of a stream without one."""
        if self.video is not None and self.connected:
            self.showing = Showing.STILL
            self.video.send(payloads, ticks, unix_s)

    def sound(self, payload: bytes, ticks: int, unix_s: float) -> None:
        if self.audio is not None and self.connected and self.showing is Showing.LIVE:
            self.audio.send((payload,), ticks, unix_s)
