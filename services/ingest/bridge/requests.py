"""What the viewers of a session want of its runner: key frames and a bitrate, said on `control`.

The rule it keeps: a runner hears of any of them at most once in an interval, and of the newest.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

from prometheus_client import Counter

from services.common.errors import SluiceError
from services.common.trickle.channel import Channel

REQUESTS: Final = Counter(
    "sluice_runner_requests_total", "What viewers asked of runners, by kind and outcome.", ["kind", "outcome"]
)
KEYFRAME_S: Final = 0.5
BITRATE_S: Final = 1.0
LEAST_CHANGE: Final = 0.1  # of the bitrate; smaller ones are noise of the estimate


class Bitrate:
    """The slowest viewer's estimate, within bounds; None while nobody gives one. Pure.

    The lower bound protects the others: a viewer below it drops pictures instead.
    """

    def __init__(self, lowest_bps: int, highest_bps: int) -> None:
        self._lowest_bps = lowest_bps
        self._highest_bps = highest_bps
        self._estimates: dict[object, int] = {}

    def estimate(self, viewer: object, bits_per_second: int | None) -> int | None:
        """Take in one viewer's, None when it left; return the target."""
        if bits_per_second is None:
            self._estimates.pop(viewer, None)
        else:
            self._estimates[viewer] = bits_per_second
        if not self._estimates:
            return None
        return max(self._lowest_bps, min(self._highest_bps, *self._estimates.values()))


class RunnerRequests:
    """The way to one runner. `tick` is called ten times a second and sends what had to wait."""

    def __init__(self, control: Channel, now_s: Callable[[], float]) -> None:
        self._control = control
        self._now_s = now_s
        self._keyframe_at_s = -KEYFRAME_S
        self._keyframe_waits = False
        self._bitrate_at_s = -BITRATE_S
        self._bitrate: int | None = None  # as the runner knows it; None: its own
        self._wanted: int | None = None

    def ask_keyframe(self) -> None:
        if self._keyframe_waits:
            REQUESTS.labels("keyframe", "coalesced").inc()
        self._keyframe_waits = True
        self._send_keyframe()

    def ask_keyframe_at(self, pts: int) -> None:
        """The first picture that is not before `pts`; 0 is as `ask_keyframe`."""
        if pts:
            self._say("keyframe", at_pts=pts)
        else:
            self.ask_keyframe()

    def ask_bitrate(self, bits_per_second: int | None) -> None:
        """None: whatever the runner would do by itself."""
        self._wanted = bits_per_second
        self._send_bitrate()

    def tick(self) -> None:
        self._send_keyframe()
        self._send_bitrate()

    def _send_keyframe(self) -> None:
        now_s = self._now_s()
        if self._keyframe_waits and now_s - self._keyframe_at_s >= KEYFRAME_S:
            self._keyframe_waits = False
            self._keyframe_at_s = now_s
            self._say("keyframe")

    def _send_bitrate(self) -> None:
        now_s = self._now_s()
        known, wanted = self._bitrate, self._wanted
        if known == wanted or now_s - self._bitrate_at_s < BITRATE_S:
            return
        if known is not None and wanted is not None and abs(wanted - known) < LEAST_CHANGE * known:
            return
        self._bitrate_at_s = now_s
        self._bitrate = wanted
        self._say("bitrate", bits_per_second=wanted)

    def _say(self, kind: str, **fields: Any) -> None:
        try:
            with self._control.begin_segment() as segment:
                segment.write(json.dumps({"type": kind, **fields}).encode())
        except SluiceError:
            REQUESTS.labels(kind, "lost").inc()  # the channel closed: there is no runner any more
            return
        REQUESTS.labels(kind, "sent").inc()
