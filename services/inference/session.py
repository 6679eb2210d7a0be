"""One attached session at the runner: from the bridge to the engine, and from the engine back to the bridge.

The rule it keeps: media waits for nothing but media, and every end of a session has a reason.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final

import structlog
from aiohttp import ClientSession
from prometheus_client import Counter, Histogram

from services.common.errors import NotFoundError, SluiceError
from services.common.frame_drops import FRAME_DROPS
from services.common.latest import Latest
from services.common.lifecycle import background
from services.common.machine_clock import clock_name
from services.common.media.mpegts import AccessUnit, Codec, Demuxer, unwrap
from services.common.trickle.connection import trickle_session
from services.common.trickle.publisher import Publisher
from services.common.trickle.subscriber import ReceivedSegment, Subscriber
from services.inference.announcer import Announcer
from services.inference.assignment import Assignment, Report, State
from services.inference.control import Control
from services.inference.intake import Intake
from services.inference.outage import Outage
from services.inference.outlet import BRIDGE_LOST, Outlet
from services.inference.packets import SOUND_CODECS, Media, Packet, Sound
from services.inference.params import Fold, Patch
from services.inference.remarks import RemarkWriter
from services.inference.settings import InferenceSettings
from services.inference.supervisor import Line, SessionFailedError, Supervisor

log = structlog.get_logger()

FRAMES: Final = Counter("sluice_frames_total", "Pictures that left a stage.", ["stage"])
INFER_SECONDS: Final = Histogram(
    "sluice_infer_seconds",
    "A picture through a pipeline, with the conversion to RGB.",
    ["pipeline"],
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.033, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
)

GARBAGE_AFTER_S: Final = 5.0  # bytes without a single access unit in them
PAUSE_S: Final = 1.0  # bytes that come later than this after those before count as so late
EVENTS_WITHIN_S: Final = 1.0  # after the end, for the last words
UNDER_WAY: Final = 1024  # pictures whose times are kept until they are encoded; of more, the oldest are not
CLOCK: Final = clock_name()


@dataclass(frozen=True, slots=True)
class Voices:
    """What a session says and hears beside its media, in the dialect of whoever it works for."""

    events: Announcer
    remarks: RemarkWriter
    control: Control

    @classmethod
    def at_bridge(cls, of: Assignment, settings: InferenceSettings) -> Voices:
        channels = of.channels
        return cls(
            Announcer(channels.events), RemarkWriter(channels.data), Control(channels.control, settings)
        )


class Session:
    """`report` ends in a terminal state, set when the engine has let go of the session."""

    def __init__(
        self, assignment: Assignment, supervisor: Supervisor, settings: InferenceSettings, voices: Voices
    ) -> None:
        self.assignment = assignment
        self.report = Latest(Report())
        self.fold = assignment.fold
        self.stopped = (State.FAILED, "runner_stopped")  # what a cancellation means
        self._supervisor = supervisor
        self._bridge_lost_after_s = settings.bridge_lost_after_s
        self._line: Line | None = None
        self._input = Intake()
        self._output = Intake()
        self._events, self._remarks, self._control = voices.events, voices.remarks, voices.control
        self._demuxer = Demuxer()
        self._dts: int | None = None  # of the last picture, unwrapped
        self._processes_sound = False  # what the bridge keeps from us otherwise
        self._garbage_s = 0.0
        self._dropped: dict[str, int] = {}  # what the counters have seen
        self._received_s: OrderedDict[int, float] = OrderedDict()  # by PTS, of pictures not yet encoded
        self._now = asyncio.get_running_loop().time
        self._read_at_s = self._now()
        self._failed: asyncio.Future[SessionFailedError] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Live until the input has ended, something failed, or the task is cancelled."""
        state, reason, message = State.FAILED, "internal_error", ""
        try:
            state, reason, message = await self._live()
        except asyncio.CancelledError:
            state, reason = self.stopped
            raise
        finally:
            try:
                if self._line is not None:
                    await self._supervisor.close(self._line)
            finally:
                self._end(state, reason, message)

    async def reports(self, every_s: float) -> AsyncIterator[Report]:
        """The report now, whenever it changes, and at least every `every_s`; ends with a terminal one."""
        while True:
            version, report = self.report.version, self.report.value
            yield report
            if report.state.terminal:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(every_s):
                    await self.report.newer_than(version)

    def ended(self) -> None:
        """The task is over; if it was cancelled before its first step, `run` could not say so."""
        if not self.report.value.state.terminal:
            self._end(*self.stopped, "")

    def _end(self, state: State, reason: str, message: str) -> None:
        self.report.set(replace(self.report.value, state=state, reason=reason, message=message))
        log.info("session ended", state=state.name, reason=reason, message=message)

    async def update(self, patch: Patch, fold: Fold) -> None:
        """Take a revision in; `fold` is the session's with it. Raises NotFoundError when it just ended."""
        self.fold = fold
        if self._line is None:
            return  # it will be part of the opening
        try:
            await self._line.say(
                "update", revision=patch.revision, patch=patch.patch, apply_at_pts=patch.apply_at_pts
            )
        except SessionFailedError as failure:
            raise NotFoundError(failure.message, reason="SESSION_ENDED") from failure

    async def _live(self) -> tuple[State, str, str]:
        state, reason, message = State.FINISHED, "", ""
        async with trickle_session() as http:
            http.headers.update(self.assignment.headers)
            async with background(events=self._events.run(http), remarks=self._remarks.run(http)):
                try:
                    await self._stream(http)
                except* SessionFailedError as failures:
                    first = _first(failures)
                    state, reason, message = State.FAILED, first.reason, first.message
                if state is State.FINISHED:
                    self._events.tell(type="finished")
                else:
                    self._events.tell(type="error", reason=reason, message=message)
                await asyncio.gather(
                    self._events.delivered(EVENTS_WITHIN_S), self._remarks.delivered(EVENTS_WITHIN_S)
                )
        return state, reason, message

    async def _stream(self, http: ClientSession) -> None:
        """Raises SessionFailedError, in a group."""
        self._line = line = self._supervisor.line(self.assignment.slot, self._received)
        self._processes_sound = any(
            offer.processes_audio
            for offer in self._supervisor.offers.value
            if offer.name == self.assignment.pipeline
        )
        await self._open(line)
        async with (
            background(
                engine=_raises(line.failure),
                pipeline=_raises(self._failed),
                control=self._control.run(http, line),
            ),
            asyncio.TaskGroup() as group,
        ):
            group.create_task(self._read(http))
            group.create_task(self._feed(line))
            group.create_task(self._write(http, line))

    async def _open(self, line: Line) -> None:
        of = self.assignment
        scheduled = [
            {"revision": one.revision, "patch": one.patch, "apply_at_pts": one.apply_at_pts}
            for one in self.fold.patches
        ]
        await line.say(
            "open",
            pipeline=of.pipeline,
            revision=self.fold.revision,
            params=self.fold.params,
            scheduled=scheduled,
            live=of.live,
        )

    def _received(self, packet: Packet) -> None:
        """Called with what the engine says."""
        if isinstance(packet, Media | Sound):
            if isinstance(packet, Media) and self.report.value.state is State.STARTING:
                self.report.set(replace(self.report.value, state=State.RUNNING))
            if self.assignment.live:
                self._output.put_newest(packet)
            else:
                self._output.put(packet)  # bounded by what `_feed` lets in
        elif packet.type == "said":
            self._remarks.put(packet.fields["pts"], packet.fields["text"])
        elif packet.type == "stats":
            self._count(packet.fields)
        elif packet.type == "applied":
            self.fold, _ = self.fold.applied_at(packet.fields["pts"])
            if self._events.full:
                self._fail(BRIDGE_LOST, "events cannot be delivered")
            self._events.tell(type="applied", **packet.fields)
        elif packet.type == "finished":
            self._output.finish()
        elif packet.type == "failed":
            self._fail(packet.fields["reason"], packet.fields["message"])

    def _fail(self, reason: str, message: str) -> None:
        if not self._failed.done():
            self._failed.set_result(SessionFailedError(reason, message))

    def _count(self, stats: Mapping[str, Any]) -> None:
        was = self.report.value
        dropped = stats["dropped"] + self._input.dropped + self._output.dropped
        now = replace(
            was,
            decoded=stats["decoded"],
            inferred=stats["inferred"],
            encoded=stats["encoded"],
            dropped=dropped,
            infer_ms=stats["infer_ms"],
        )
        for stage in ("decoded", "inferred", "encoded"):
            FRAMES.labels(stage).inc(getattr(now, stage) - getattr(was, stage))
        pictures = self._pictures(stats["stamps"])
        for stage, total in (
            ("input", self._input.dropped),
            ("inference", stats["dropped"]),
            ("output", self._output.dropped),
            ("sound", self._input.dropped_sounds + stats["dropped_sounds"] + self._output.dropped_sounds),
        ):
            FRAME_DROPS.labels(stage).inc(total - self._dropped.get(stage, 0))
            self._dropped[stage] = total
        self._remarks.refused(stats["unsaid"])
        self.report.set(now)
        self._events.status(
            type="status",
            decoded=now.decoded,
            inferred=now.inferred,
            dropped=now.dropped,
            infer_ms=now.infer_ms,
            clock=CLOCK,
            pictures=pictures,
        )

    def _pictures(self, stamps: list[tuple[int, float, float, float, float]]) -> list[list[int]]:
        """When pictures passed each stage here, for the bridge, which knows when they left and came back.

        Each is its PTS, when it was received, and how long it took to be decoded, to be taken up, to be
        inferred and to be encoded: microseconds on this machine's monotonic clock.
        """
        pictures = []
        for pts, *moments_s in stamps:
            INFER_SECONDS.labels(self.assignment.pipeline).observe(moments_s[2] - moments_s[1])
            received_s = self._received_s.pop(pts, None)
            if received_s is not None:
                moments_us = [round(1e6 * moment_s) for moment_s in (received_s, *moments_s)]
                steps_us = [after - before for before, after in pairwise(moments_us)]
                pictures.append([pts, moments_us[0], *steps_us])
        return pictures

    async def _read(self, http: ClientSession) -> None:
        """Take the input in until its channel is closed."""
        outage = Outage(self._bridge_lost_after_s, self._now)
        start = self.assignment.channels.start if self.assignment.live else 0
        async with Subscriber(http, self.assignment.channels.in_, start=start) as subscriber:
            while True:
                try:
                    async for segment in subscriber:
                        outage.worked()
                        await self._take_in(segment)
                    break
                except SluiceError as error:
                    outage.failed()
                    if not error.retryable or outage.lost:
                        raise SessionFailedError(BRIDGE_LOST, f"input: {error.message}") from error
        self._input.finish()

    async def _take_in(self, segment: ReceivedSegment) -> None:
        if segment.lost:
            FRAME_DROPS.labels("input_segments").inc(segment.lost)
            log.warning("input segments were lost", count=segment.lost)
            if self.assignment.live:
                self._input.skip_to_keyframe()
        async for data in segment:
            units = self._demuxer.feed(data)
            was_s, self._read_at_s = self._read_at_s, self._now()
            self._garbage_s = 0.0 if units else self._garbage_s + min(self._read_at_s - was_s, PAUSE_S)
            if self._garbage_s >= GARBAGE_AFTER_S:
                raise SessionFailedError("input_undecodable", "the input is no MPEG-TS with H.264")
            await self._put_in(units)
        await self._put_in(self._demuxer.end_segment())

    async def _put_in(self, units: list[AccessUnit]) -> None:
        for unit in units:
            packet = self._packet(unit)
            if packet is None:
                continue
            if self.assignment.live:
                self._input.put_newest(packet)
            else:
                await self._input.room()
                self._input.put(packet)

    def _packet(self, unit: AccessUnit) -> Media | Sound | None:
        """`unit` for the engine; None if it has no use for it. Sound never comes before a picture."""
        slot = self.assignment.slot
        if unit.codec is not Codec.H264:
            if not self._processes_sound or self._dts is None or unit.codec not in SOUND_CODECS:
                return None
            return Sound(slot, unit.codec, unwrap(self._dts, unit.pts), unit.data)
        self._dts = dts = unit.dts if self._dts is None else unwrap(self._dts, unit.dts)
        pts = unwrap(dts, unit.pts)
        self._received_s[pts] = time.monotonic()
        if len(self._received_s) > UNDER_WAY:
            self._received_s.popitem(last=False)
        return Media(slot, pts, dts, unit.keyframe, unit.data)

    def _sound(self) -> Codec | None:
        """What goes into the tables of the output: the sound of the input, if the pipeline processes it."""
        if not self._processes_sound:
            return None
        return next((codec for codec in self._demuxer.streams if codec in SOUND_CODECS), None)

    async def _feed(self, line: Line) -> None:
        while (packet := await self._input.get()) is not None:
            if not self.assignment.live:
                await self._output.room()
            await line.feed(packet)
        await line.say("end_of_input")

    async def _write(self, http: ClientSession, line: Line) -> None:
        async with Publisher(http, self.assignment.channels.out) as publisher:
            outlet = Outlet(
                publisher,
                self._output,
                sound=self._sound,
                ask_keyframe=lambda: line.say("keyframe"),
                lost_after_s=self._bridge_lost_after_s,
            )
            await outlet.run()


def _first(failures: BaseExceptionGroup[SessionFailedError]) -> SessionFailedError:
    failure = failures.exceptions[0]
    return _first(failure) if isinstance(failure, BaseExceptionGroup) else failure


async def _raises(failure: asyncio.Future[SessionFailedError]) -> None:
    raise await asyncio.shield(failure)  # a wait that is cancelled would cancel the future too
