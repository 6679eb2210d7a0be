"""Everybody here who watches one stream: its output read once, made into packets once, and sent to each.

The rule it keeps: a viewer's timestamps only go forward, over the stream's sessions and the still between
them; nobody waits for a viewer.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Executor
from functools import lru_cache, partial
from typing import Final

import structlog

from services.common.errors import InvalidError, NotFoundError, SluiceError
from services.common.media import h264
from services.common.media.mpegts import CLOCK_HZ, AccessUnit, Codec
from services.ingest.bridge.hub import Hub
from services.ingest.bridge.session import BridgeSession
from services.ingest.control_plane import ControlPlane
from services.ingest.placeholder import SIZE, stills
from services.ingest.transports.webrtc import h264_rtp, vpx_rtp
from services.ingest.transports.webrtc.conversion import Conversion, SoundConverter, VideoConverter
from services.ingest.transports.webrtc.viewer import Showing, Viewer

log = structlog.get_logger()
STILL_S: Final = 1.0
LIVE_WITHIN_S: Final = 1.0  # what a live stream's key frame may take before there is a still instead
LOOK_S: Final = 1.0
ASK_S: Final = 3.0  # how often a stream that is not live here is looked up
ENDING_S: Final = 0.1
LEAST_STEP: Final = CLOCK_HZ // 30

Form = tuple[str, int, int]  # codec, width, height


class Audience:
    """The viewers of one stream. `run` is its task; `tick` is called ten times a second."""

    def __init__(
        self, stream: str, *, hub: Hub, plane: ControlPlane, executor: Executor, idle_s: float
    ) -> None:
        self.stream = stream
        self._hub = hub
        self._plane = plane
        self._executor = executor
        self._idle_s = idle_s
        self._viewers: set[Viewer] = set()
        self._session: BridgeSession | None = None
        self._began_s = time.monotonic()
        self._live_s = self._began_s  # when there was a picture
        self._offset: int | None = None  # from the session's time to the viewers'
        self._last = 0  # the newest time handed out
        self._size = SIZE
        self._still_s = 0.0
        self._still = 0
        self._stills: dict[Form, tuple[list[bytes], list[bytes]]] = {}  # of each codec, the newest size
        self._undrawn: Form | None = None
        self._draw = asyncio.Event()
        self._vp8: Conversion | None = None  # while anybody takes only that
        self._vp8_task: asyncio.Task[None] | None = None
        self._opus: Conversion | None = None
        self._sound_task: asyncio.Task[None] | None = None
        self._group: asyncio.TaskGroup | None = None

    def __len__(self) -> int:
        return len(self._viewers)

    @property
    def converts_sound(self) -> bool:
        return self._session is not None and self._session.sound is Codec.AAC

    def ticks(self, now_s: float) -> int:
        """The viewers' time of a moment, 90 kHz."""
        return int((now_s - self._began_s + 1) * CLOCK_HZ)

    # --- viewers

    def add(self, viewer: Viewer) -> None:
        self._viewers.add(viewer)
        self._still_s = 0.0
        if viewer.codec == "VP8":
            self._need_vp8()

    def remove(self, viewer: Viewer) -> None:
        self._viewers.discard(viewer)
        if self._session is not None:
            self._session.receiver_estimate(viewer, None)
        if self._vp8_task is not None and not any(each.codec == "VP8" for each in self._viewers):
            self._vp8_task.cancel()
            self._vp8 = self._vp8_task = None

    def connected(self, viewer: Viewer) -> None:
        """Its connection is there: it needs a key frame."""
        viewer.connected = True
        viewer.joined_s = time.monotonic()
        self.ask_keyframe(viewer)

    def ask_keyframe(self, viewer: Viewer) -> None:
        """`viewer` cannot go on without a key frame."""
        if viewer.codec == "VP8" and self._vp8 is not None:
            self._vp8.want_keyframe()
        elif self._session is not None:
            self._session.ask_keyframe()

    def reported(self, viewer: Viewer) -> None:
        """Something was learned about what `viewer` can carry."""
        if self._session is not None:
            limit_bps = viewer.congestion.limit_bps
            self._session.receiver_estimate(viewer, None if limit_bps is None else int(limit_bps))

    # --- the stream

    async def run(self) -> None:
        """Read the stream's sessions, one after the other, for ever."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            group.create_task(self._draw_stills(), name="stills")
            self._run_vp8()
            asked_s = time.monotonic()
            while True:
                session = await self._hub.wait_for(self.stream, LOOK_S)
                if session is not None and not session.closed.done():
                    await self._show(session)
                elif session is not None:
                    await asyncio.sleep(ENDING_S)
                elif time.monotonic() - asked_s >= ASK_S:
                    asked_s = time.monotonic()
                    await self._look_up()

    async def _look_up(self) -> None:
        """Let the viewers go where their stream is gone, or lives in another process."""
        try:
            record = await self._plane.stream(self.stream)
        except NotFoundError:
            self._end("stream_deleted", "the stream was deleted")
        except SluiceError as error:
            log.info("stream not looked up", error=error.reason)
        else:
            if record.session and self._hub.of_stream(self.stream) is None:
                self._end("moved", "the stream is published through another ingest process: connect again")

    async def _show(self, session: BridgeSession) -> None:
        self._session, self._offset = session, None
        tap = session.tap()
        if any(viewer.connected for viewer in self._viewers):  # the others ask when they are
            session.ask_keyframe()
        try:
            async for unit in tap:
                if unit.codec is Codec.H264:
                    self._take_picture(session, unit)
                elif unit.codec is Codec.AAC:
                    self._opus_of_session().put(unit.data, self._place(unit), keyframe=True)
                elif unit.codec is Codec.OPUS:
                    self._send_sound(unit.data, self._place(unit))
        finally:
            tap.close()
            if self._sound_task is not None:
                self._sound_task.cancel()
            self._opus = self._sound_task = None
            self._session = None
            for viewer in self._viewers:
                viewer.showing = Showing.NOTHING
                session.receiver_estimate(viewer, None)
            self._still_s = 0.0
        if session.closed.done() and session.closed.result().reason == "stream_deleted":
            self._end("stream_deleted", "the stream was deleted")

    def _place(self, unit: AccessUnit) -> int:
        """Where a unit of the session is in the viewers' time."""
        if self._offset is None:
            self._offset = max(self.ticks(time.monotonic()), self._last + LEAST_STEP) - unit.pts
        return unit.pts + self._offset

    def _take_picture(self, session: BridgeSession, unit: AccessUnit) -> None:
        ticks = self._place(unit)
        self._last = max(self._last, ticks)
        self._live_s = time.monotonic()
        if unit.keyframe:
            self._learn_size(unit.data)
        if self._vp8 is not None:
            self._vp8.put(unit.data, ticks, keyframe=unit.keyframe)
        if self._send_picture("H264", h264_rtp.payloads(unit.data), ticks, keyframe=unit.keyframe):
            session.seen(unit.pts)

    def _learn_size(self, data: bytes) -> None:
        try:
            self._size = h264.picture_size(data)
        except InvalidError:
            log.info("a picture of unknown size", stream=self.stream)

    def _send_picture(self, codec: str, payloads: list[bytes], ticks: int, *, keyframe: bool) -> bool:
        """Send to the viewers of that codec; whether there were any."""
        now_s, unix_s = time.monotonic(), time.time()
        any_there = False
        for viewer in self._viewers:
            if viewer.codec != codec:
                continue
            any_there = True
            if not viewer.picture(payloads, ticks, now_s, unix_s, keyframe=keyframe) and not keyframe:
                self.ask_keyframe(viewer)
        return any_there

    def _send_sound(self, data: bytes, ticks: int) -> None:
        unix_s = time.time()
        for viewer in self._viewers:
            viewer.sound(data, ticks, unix_s)

    # --- conversions

    def _need_vp8(self) -> None:
        if self._vp8 is None:
            self._vp8 = Conversion(
                VideoConverter("H264", "VP8"),
                self._executor,
                deliver=self._deliver_vp8,
                ask_keyframe=self._ask_runner,
            )
            self._run_vp8()
            self._ask_runner()

    def _run_vp8(self) -> None:
        if self._vp8 is not None and self._group is not None:
            self._vp8_task = self._group.create_task(self._vp8.run(), name="vp8")

    def _opus_of_session(self) -> Conversion:
        """AAC to Opus, once for all viewers; a session's sound has no past in another."""
        if self._opus is None:
            assert self._group is not None
            self._opus = Conversion(
                SoundConverter(), self._executor, deliver=self._deliver_opus, ask_keyframe=lambda: None
            )
            self._sound_task = self._group.create_task(self._opus.run(), name="opus")
        return self._opus

    def _deliver_opus(self, unit: AccessUnit) -> None:
        self._send_sound(unit.data, unit.pts)

    def _ask_runner(self) -> None:
        if self._session is not None:
            self._session.ask_keyframe()

    def _deliver_vp8(self, unit: AccessUnit) -> None:
        self._send_picture("VP8", vpx_rtp.vp8_payloads(unit.data), unit.pts, keyframe=unit.keyframe)

    # --- time

    def tick(self, now_s: float) -> None:
        """Show the still to whoever has nothing, once a second; let go who has had nothing for too long."""
        if now_s - self._still_s >= STILL_S:
            self._still_s = now_s
            self._show_still(now_s)
        for viewer in list(self._viewers):
            if now_s - max(self._live_s, viewer.joined_s) > self._idle_s:
                viewer.over("idle", f"the stream had no picture for {self._idle_s:g} s")

    def _show_still(self, now_s: float) -> None:
        waiting = [
            viewer
            for viewer in self._viewers
            if viewer.connected
            and viewer.showing is not Showing.LIVE
            and (self._session is None or now_s - viewer.joined_s > LIVE_WITHIN_S)
        ]
        if not waiting:
            return
        self._still ^= 1
        ticks = max(self.ticks(now_s), self._last + LEAST_STEP)
        self._last = ticks
        for viewer in waiting:
            payloads = self._stills.get((viewer.codec, *self._size))
            if payloads is None:
                self._undrawn = viewer.codec, *self._size
                self._draw.set()
            else:
                viewer.still(payloads[self._still], ticks, time.time())

    async def _draw_stills(self) -> None:
        """Draw what is missing, in a thread, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            await self._draw.wait()
            self._draw.clear()
            if self._undrawn is not None:
                wanted = self._undrawn
                made = await loop.run_in_executor(self._executor, partial(still_payloads, *wanted))
                self._stills = {form: kept for form, kept in self._stills.items() if form[0] != wanted[0]} | {
                    wanted: made
                }
                self._still_s = 0.0

    def _end(self, reason: str, message: str) -> None:
        for viewer in list(self._viewers):
            viewer.over(reason, message)


@lru_cache(maxsize=16)
def still_payloads(codec: str, width: int, height: int) -> tuple[list[bytes], list[bytes]]:
    """The payloads of the still's two key frames, made once."""
    first, second = stills(width, height)
    if codec == "H264":
        return h264_rtp.payloads(first), h264_rtp.payloads(second)
    converter = VideoConverter("H264", "VP8")
    one, two = (
        converter.convert(data, pts, keyframe=True)[0].data for pts, data in enumerate((first, second))
    )
    return vpx_rtp.vp8_payloads(one), vpx_rtp.vp8_payloads(two)
