"""What we see of a session's media beside a container: which pictures go in, and whether any come out.

The media go from the bridge to the container and back without us. We read the input too, for its times: they
say when a change of parameters is due, and which picture is the first that can show it.
"""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import ClientSession

from services.common.errors import SluiceError
from services.common.latest import Latest
from services.common.media.mpegts import Codec, Demuxer, unwrap
from services.common.trickle.connection import DEFAULT_PATIENCE, find_head
from services.common.trickle.protocol import ChannelClosedError
from services.common.trickle.subscriber import Subscriber
from services.inference.line import HUNG, SessionFailedError
from services.inference.outage import Outage
from services.inference.outlet import BRIDGE_LOST

LOOK_S: Final = 0.25
FLOWS_WITHIN_S: Final = 2.0  # input with a longer pause does not flow


class InputClock:
    """The times of the pictures that go in."""

    def __init__(self, url: str, start: int, lost_after_s: float) -> None:
        self.newest: Latest[int | None] = Latest(None)  # PTS
        self.first_pts = 0
        self.pictures = 0
        self._url = url
        self._start = start
        self._now_s = asyncio.get_running_loop().time
        self._outage = Outage(lost_after_s, self._now_s)
        self._at_s = 0.0
        self._since_s = 0.0

    async def run(self, http: ClientSession) -> None:
        """Follow the input to its end. Raises SessionFailedError when the bridge is lost."""
        demuxer, dts = Demuxer(), None
        async with Subscriber(http, self._url, start=self._start) as subscriber:
            while True:
                try:
                    async for segment in subscriber:
                        self._outage.worked()
                        async for data in segment:
                            for unit in demuxer.feed(data):
                                if unit.codec is Codec.H264:
                                    dts = unit.dts if dts is None else unwrap(dts, unit.dts)
                                    self._saw(unwrap(dts, unit.pts))
                        demuxer.end_segment()
                    break
                except SluiceError as error:
                    self._outage.failed()
                    if not error.retryable or self._outage.lost:
                        raise SessionFailedError(BRIDGE_LOST, f"input: {error.message}") from error

    def flows_since_s(self) -> float | None:
        """Since when pictures come in; None if they do not."""
        return self._since_s if self.pictures and self._now_s() - self._at_s < FLOWS_WITHIN_S else None

    def _saw(self, pts: int) -> None:
        now_s = self._now_s()
        if now_s - self._at_s >= FLOWS_WITHIN_S:
            self._since_s = now_s
        self._at_s = now_s
        self.first_pts = self.first_pts or pts
        self.pictures += 1
        self.newest.set(max(pts, self.newest.value or 0))


class OutputWatch:
    """Whether a container's segments arrive at the bridge: its head moves."""

    def __init__(self, url: str, clock: InputClock, *, hang_after_s: float, lost_after_s: float) -> None:
        self.begun = asyncio.Event()  # something came out
        self._url = url
        self._clock = clock
        self._hang_after_s = hang_after_s
        self._now_s = asyncio.get_running_loop().time
        self._outage = Outage(lost_after_s, self._now_s)

    async def reach(self, http: ClientSession) -> None:
        """Raises SessionFailedError if the bridge is out of reach: for the container it is, too."""
        try:
            await find_head(http, self._url, DEFAULT_PATIENCE)
        except SluiceError as error:
            raise SessionFailedError(BRIDGE_LOST, f"output: {error.message}") from error

    async def run(self, http: ClientSession) -> None:
        """Look for ever. Raises SessionFailedError when input flows and no output does any more."""
        head, moved_s = 0, 0.0
        while True:
            try:
                newest, _ = await find_head(http, self._url, DEFAULT_PATIENCE)
            except ChannelClosedError as error:
                raise SessionFailedError(BRIDGE_LOST, "the output channel is closed") from error
            except SluiceError as error:
                self._outage.failed()
                if not error.retryable or self._outage.lost:
                    raise SessionFailedError(BRIDGE_LOST, f"output: {error.message}") from error
                continue
            self._outage.worked()
            if newest != head:
                head, moved_s = newest, self._now_s()
                self.begun.set()
            flows_since_s = self._clock.flows_since_s()
            if self.begun.is_set() and flows_since_s is not None:
                silent_s = self._now_s() - max(moved_s, flows_since_s)
                if silent_s > self._hang_after_s:
                    raise SessionFailedError(HUNG, f"nothing came out of the container for {silent_s:.0f} s")
            await asyncio.sleep(LOOK_S)
