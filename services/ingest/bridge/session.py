"""One session's media: publisher in, runner, viewers out, and the meter between them.

Everything here runs on one event loop, and nothing waits for a viewer, a runner or the control plane. What is
not newer than the last delivered picture is dropped. Sound goes round the runner, or through one that takes
it, and either way reaches the viewers with its picture.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Final

from protos.ingest.v1 import bridge_pb2
from services.common.errors import ConflictError, InvalidError, NotFoundError
from services.common.frame_drops import FRAME_DROPS
from services.common.latest import Latest
from services.common.machine_clock import clock_name
from services.common.media import h264
from services.common.media.clock import Timeline
from services.common.media.mpegts import CLOCK_HZ, AccessUnit, Codec, Demuxer, Muxer, unwrap
from services.common.trickle.channel import Channel, ChannelReader
from services.common.trickle.protocol import RANDOM_ACCESS
from services.common.trickle.registry import OpenChannel, Registry
from services.ingest.bridge.channels import JSON, LINES, SessionChannels
from services.ingest.bridge.chapters import Chapters, Counts
from services.ingest.bridge.cutter import SegmentCutter
from services.ingest.bridge.events import Status, parse
from services.ingest.bridge.heard import Heard
from services.ingest.bridge.identity import Closed, Identity
from services.ingest.bridge.latency import latency_of
from services.ingest.bridge.metrics import BAD_EVENTS, FIRST_FRAME, FRAME_AGE, FRAMES, count_stages
from services.ingest.bridge.outbox import Outbox
from services.ingest.bridge.playout import Playout
from services.ingest.bridge.presence import Presence, Publisher
from services.ingest.bridge.rates import Rates
from services.ingest.bridge.requests import Bitrate, RunnerRequests
from services.ingest.bridge.sound import AUDIO, fits, sound_among
from services.ingest.bridge.stages import PictureTimes, Stages
from services.ingest.bridge.taps import Tap, Taps
from services.ingest.bridge.under_way import Departure, UnderWay
from services.ingest.bridge.usage import Usage
from services.ingest.settings import IngestSettings

TICK_S: Final = 0.1
REPORT_S: Final = 1.0
EVENT_MAX_BYTES: Final = 64 * 1024
REORDERED: Final = 20  # pictures that a decoder may hold back (H.264: 16) before the first of them comes out
FLUSH_S: Final = 10.0  # without a picture for so long after the input ended, what is missing will not come


class BridgeSession:
    """One session at this pod. `run` is its task; everything else is called from the same event loop."""

    def __init__(
        self,
        identity: Identity,
        *,
        registry: Registry,
        outbox: Outbox,
        settings: IngestSettings,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.identity = identity
        self._settings = settings
        self._now_s = now_s
        self._opened_s = now_s()
        self.changed: Latest[None] = Latest(None)
        self.closed: asyncio.Future[Closed] = asyncio.get_running_loop().create_future()
        # in
        self._presence = Presence(
            self._opened_s, silent_after_s=settings.silent_after_s, grace_s=settings.publisher_grace_s
        )
        self.keyframe_wanted: Callable[[], None] | None = None  # asks the publisher, while there is one
        self._fault = ""
        self._timeline = Timeline()
        self._timeline.begin_source(self._wall_s())
        self._audio: Codec | None = None
        self._parameter_sets = b""
        self._started = False
        self._in_pts = 0
        self.frames_in = 0
        self._channels = SessionChannels(registry, identity.session, complete=identity.complete)
        self._in = SegmentCutter(self._channels.media("in"), Muxer())
        # out
        self.epoch = 0
        play = self._channels.media("play")
        self._channels.messages("data", LINES)
        self._requests: RunnerRequests | None = None  # from the moment when there is a runner to ask
        self._bitrate = Bitrate(settings.min_video_kbps * 1000, settings.max_video_kbps * 1000)
        self._taps = Taps(self.ask_keyframe)
        self._playout = Playout(play, self._taps, live=not identity.complete)
        self._processes_audio = False
        self.out_pts = 0
        self._out_at_s: float | None = None
        self._out_ended = False
        self.frames_out = 0
        self.frames_dropped = 0
        self._runner_dropped = 0
        self._under_way = UnderWay()
        self.stages = Stages(clock_name())
        self._chapters = Chapters(identity.traceparent, now_s=now_s)
        self._usage = Usage(identity, outbox)
        # what the runner says
        self.heard = Heard(self._opened_s, lambda: time.time_ns() // 1_000_000)
        self.infer_ms = 0.0
        self._rates = Rates()

    # --- the publisher's side

    @property
    def fault(self) -> str:
        return self._fault

    @property
    def connected(self) -> bool:
        return self._presence.connected

    @property
    def paused(self) -> bool:
        """By the client."""
        return self._presence.paused

    def rejoin(self) -> None:
        """A publisher came back within the grace. Raises ConflictError while the other one is still there."""
        if self.connected or self._presence.finished or self.closed.done():
            raise ConflictError(
                "the stream has a publisher already", reason="STREAM_BUSY", stream=self.identity.stream
            )
        self._presence.came_back()
        self._timeline.begin_source(self._wall_s())
        self.changed.set(None)

    def leave(self) -> None:
        """The publisher's connection broke: the grace begins."""
        self._presence.left(self._now_s(), finished=False)
        self.changed.set(None)

    def finish(self) -> None:
        """The publisher said that it is done: what is under way still comes back, then the session ends."""
        self._presence.left(self._now_s(), finished=True)
        self._in.end()
        self._channels.close("in")
        self.changed.set(None)

    def blame(self, fault: str) -> None:
        """The input can never work: the session ends, and says so."""
        self._fault = fault
        self.changed.set(None)

    def announce(self, streams: tuple[Codec, ...]) -> None:
        """Say what the publisher's tables list: viewers' are written before the first sound is there."""
        self._audio = sound_among(streams) or self._audio
        self._offer_sound(self._audio)

    def push(self, unit: AccessUnit, arrived_s: float) -> None:
        """Take one unit of the publisher, whose last byte was read at `arrived_s`."""
        if self._presence.finished or self.closed.done():
            return
        if self.paused:
            if unit.codec is Codec.H264:
                self._presence.in_at_s = self._now_s()
        elif unit.codec is Codec.H264:
            self._push_picture(unit, arrived_s)
        elif unit.codec in AUDIO and self._audio in {None, unit.codec} and fits(unit):
            self._push_audio(unit)

    def pause(self, paused: bool) -> None:
        """Keep the last picture, or go on with the publisher's next key frame, on the same clock."""
        if paused is self.paused:
            return
        self._presence.paused = paused
        if paused:
            self._in.end()  # a runner waits as long as it takes between two segments, but not within one
        else:
            self._started = False
            if self.keyframe_wanted is not None:
                self.keyframe_wanted()
        self.changed.set(None)

    def _push_picture(self, unit: AccessUnit, arrived_s: float) -> None:
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
            self.changed.set(None)
        self._in_pts = max(self._in_pts, stamped.pts)
        self._presence.in_at_s = now_s
        self.frames_in += 1
        FRAMES.labels("in").inc()
        self._rates.count_in(now_s)
        self._in.write(stamped)
        self._under_way.went(Departure(stamped.pts, arrived_s, self._now_s()))
        self._play_sound()

    def _push_audio(self, unit: AccessUnit) -> None:
        stamped = self._timeline.stamp(unit, self._wall_s())
        if stamped is None:
            return
        self._audio = unit.codec
        self._offer_sound(unit.codec)
        if not self._processes_audio:
            self._hear(stamped)
        elif unit.codec is self._in.muxer.audio:
            self._in.write(stamped)

    def _offer_sound(self, codec: Codec | None) -> None:
        """Announce the publisher's sound to whoever gets it: the runner or the viewers."""
        if self._processes_audio:
            self._in.muxer.change_audio(codec)
        else:
            self._playout.audio = codec

    async def room(self) -> None:
        """With `complete` delivery, wait until the output is close enough behind; live never waits."""
        if not self.identity.complete:
            return
        ahead = round(self._settings.complete_ahead_s * CLOCK_HZ)
        while self.frames_in and not self.closed.done():
            delivered = self.out_pts or self._first_pts
            if self._in_pts - delivered <= ahead or len(self._under_way) <= REORDERED:
                return
            self._presence.holding = True
            try:
                await self.changed.newer_than(self.changed.version)
            finally:
                self._presence.holding = False
                self._presence.in_at_s = self._now_s()  # it was not late: we kept it

    @property
    def _first_pts(self) -> int:
        earliest = self._under_way.next_pts
        return self._in_pts if earliest is None else earliest

    def _wall_s(self) -> float | None:
        """What the timeline takes for wall time: a `complete` publisher has none, for we hold it back."""
        return None if self.identity.complete else self._now_s()

    # --- the runner's side

    def open(self, request: bridge_pb2.OpenRequest) -> dict[str, OpenChannel]:
        """Make the channels of an epoch, or extend what it may spend."""
        if self.closed.done():
            raise NotFoundError(f"session {self.identity.session} is closed", reason="SESSION_CLOSED")
        if request.epoch < self.epoch:
            raise ConflictError("a newer epoch is open", reason="STALE_EPOCH", epoch=self.epoch)
        if request.epoch > self.epoch:
            if self.epoch:
                raise ConflictError(
                    "the session has an output already", reason="EPOCH_OPEN", epoch=self.epoch
                )
            self.epoch = request.epoch
            self._channels.media("out")
            self._requests = RunnerRequests(self._channels.messages("control", JSON), self._now_s)
            self._channels.messages("events", JSON)
            self._processes_audio = request.processes_audio  # an `Open` that extends the credit says nothing
            if self._processes_audio:
                self._playout.audio = None
                self._playout.fall_silent()
                self._offer_sound(self._audio)
        self._usage.extend(request)
        self.changed.set(None)
        return self._channels.opened

    async def run(self) -> None:
        """Everything of this session that waits; ends when it is closed, and leaves no channel open."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._read_output(), name="output"),
                    group.create_task(self._read_events(), name="events"),
                    group.create_task(self._tick(), name="tick"),
                ]
                await asyncio.shield(self.closed)
                self._playout.end()
                self._channels.close("in", "control", "play")
                for task in tasks:
                    task.cancel()
        finally:
            self.close("internal_error", "the session failed inside; it was reported")
            self._channels.close(*self._channels.opened)
            self._end_segment()
            await asyncio.shield(self._cut_usage(self.closed.result().reason))

    async def _opened(self) -> None:
        while not self.epoch:
            await self.changed.newer_than(self.changed.version)

    async def _read_output(self) -> None:
        await self._opened()
        demuxer = Demuxer()
        async for segment in self._channels["out"].channel.read(0):
            if segment.lost:
                FRAME_DROPS.labels("output_segments").inc(segment.lost)
            async for data in segment:
                self._deliver(demuxer.feed(data), demuxer.streams)
            self._deliver(demuxer.end_segment(), demuxer.streams)
        self._out_ended = True
        self._playout.finish()
        self.changed.set(None)
        await asyncio.Event().wait()

    def _deliver(self, units: Iterable[AccessUnit], streams: tuple[Codec, ...]) -> None:
        """Pass on what the runner returned; `streams` is what its tables list."""
        if self._processes_audio:
            self._playout.audio = sound_among(streams)
        for unit in units:
            if unit.codec is Codec.H264:
                self._deliver_picture(unit)
            elif self._processes_audio and unit.codec in AUDIO and fits(unit):
                pts = unwrap(self._in_pts, unit.pts)
                self._hear(replace(unit, pts=pts, dts=pts))
            else:
                FRAME_DROPS.labels("codec").inc()

    def _deliver_picture(self, unit: AccessUnit) -> None:
        """Pass a picture of the runner on to the viewers, if it is newer than the last."""
        pts = unwrap(self._in_pts, unit.pts)
        if self._usage.exhausted or pts <= self.out_pts or (not self.frames_out and not unit.keyframe):
            self.frames_dropped += 1
            FRAME_DROPS.labels("late").inc()
            return
        now_s = self._now_s()
        first = not self.frames_out
        self.out_pts = pts
        self._out_at_s = now_s
        self.frames_out += 1
        FRAMES.labels("out").inc()
        self._rates.count_out(now_s)
        self._usage.meter.delivered(self.session_ms)
        went = self._under_way.returned(pts, now_s)
        picture = replace(unit, pts=pts, dts=unwrap(pts, unit.dts))
        self._playout.show(picture, now_s, self._under_way.next_pts)
        if went is not None:
            self.stages.returned(pts, PictureTimes(went.arrived_s, went.sent_s, now_s, self._now_s()))
            FRAME_AGE.observe(now_s - went.arrived_s, self.identity.exemplar)
            self._chapters.returned(now_s - went.arrived_s)
        if first:
            FIRST_FRAME.observe(now_s - self._opened_s, self.identity.exemplar)
            self._chapters.first_picture()
        if first or self.identity.complete:
            self.changed.set(None)

    def _hear(self, unit: AccessUnit) -> None:
        """Take in sound for the viewers."""
        if not self._usage.exhausted:
            self._playout.hear(unit, self._now_s())
            self._play_sound()

    def _play_sound(self) -> None:
        self._playout.go_on(self._now_s(), self._under_way.next_pts)

    async def _read_events(self) -> None:
        await self._opened()
        async for segment in self._channels["events"].channel.read(0):
            line = bytearray()
            async for data in segment:
                line += data[: EVENT_MAX_BYTES - len(line)]
            for part in line.splitlines():
                self._take_event(part)
        await asyncio.Event().wait()

    def _take_event(self, line: bytes | bytearray) -> None:
        try:
            event = parse(line)
        except InvalidError:
            BAD_EVENTS.inc()
            return
        if isinstance(event, Status):
            self._runner_dropped, self.infer_ms = event.dropped, event.infer_ms
            count_stages(self.stages.complete(event.clock, event.pictures), self.identity.exemplar)
        elif event is not None and self.heard.take(event, self._now_s()):
            self.changed.set(None)

    def seen(self, through_pts: int) -> None:
        """A viewer's connection took everything up to the picture at `through_pts`."""
        self.stages.seen(through_pts, self._now_s())

    # --- time

    @property
    def session_ms(self) -> int:
        return round((self._now_s() - self._opened_s) * 1000)

    def publisher(self) -> Publisher:
        """What the publisher is doing now."""
        return self._presence.publisher(self._now_s())

    @property
    def drained(self) -> bool:
        """True when the input finished and what it caused has come back, or will not come any more."""
        idle_s = self._presence.done_s(self._now_s(), self._out_at_s)
        return idle_s is not None and (self._out_ended or idle_s > FLUSH_S)

    async def _tick(self) -> None:
        before = self.publisher()
        reported_s = self._now_s()
        while True:
            await asyncio.sleep(TICK_S)
            self._play_sound()
            publisher = self.publisher()
            silent = publisher in {Publisher.SILENT, Publisher.GONE}
            if silent and self.frames_out:
                self._usage.meter.paused(self.session_ms)
            elif not silent:
                self._usage.meter.resumed(self.session_ms)
            if self._requests is not None:
                self._requests.tick()
            if self.heard.tick(self._now_s()):
                self.changed.set(None)
            if self._usage.spend(self.session_ms):
                self._playout.fall_silent()
                self.changed.set(None)
            if self._chapters.due:
                self._end_segment()
            edge = publisher is not before
            if edge or self._usage.since_cut_ms(self.session_ms) >= self._settings.window_s * 1000:
                await self._cut_usage()
            if edge or self._now_s() - reported_s >= REPORT_S:
                reported_s = self._now_s()
                self.changed.set(None)
            before = publisher
            if self._presence.orphaned_s(self._now_s()) > self._settings.orphan_after_s:
                self.close("bridge_lost", "nobody ended the session after its publisher had gone")

    def _end_segment(self) -> None:
        if not self.epoch:
            return  # it never had a runner: `session.open` says why
        counts = Counts(
            frames_in=self.frames_in,
            frames_out=self.frames_out,
            frames_dropped=self.frames_dropped + self._runner_dropped,
            delivered_ms=self._usage.meter.delivered_ms,
        )
        found = self.stages.report()
        publisher = self.publisher().name.lower()
        self._chapters.end_segment(counts, publisher=publisher, stages=found[0] if found else None)

    async def _cut_usage(self, end_reason: str | None = None) -> None:
        frames = (self.frames_in, self.frames_out, self.frames_dropped + self._runner_dropped)
        await self._usage.cut(self.session_ms, frames, end_reason=end_reason)

    # --- viewers, reports, the end

    @property
    def play(self) -> Channel:
        """The continuous output."""
        return self._channels["play"].channel

    @property
    def sound(self) -> Codec | None:
        """The sound of the output, if it has any."""
        return self._playout.audio

    @property
    def data(self) -> Channel:
        """What the pipeline says, JSON lines."""
        return self._channels["data"].channel

    def tap(self) -> Tap:
        """Read the output as access units from the next key frame on.

        Who cannot wait for it asks: a request spent on nobody delays the next one.
        """
        return self._taps.open()

    def ask_keyframe(self) -> None:
        """Ask the runner for a key frame; however many ask, it hears of it once in half a second."""
        if self._requests is not None:
            self._requests.ask_keyframe()

    def receiver_estimate(self, viewer: object, bits_per_second: int | None) -> None:
        """Take in what a viewer's connection can carry; None when it left. The slowest sets the bitrate."""
        target = self._bitrate.estimate(viewer, bits_per_second)
        if self._requests is not None:
            self._requests.ask_bitrate(target)

    def watch(self) -> ChannelReader:
        """Read `play` from where a decoder can start soonest; with `complete` delivery from the beginning."""
        return self.play.read(0 if self.identity.complete else RANDOM_ACCESS)

    def report(self) -> bridge_pb2.BridgeReport:
        now_s = self._now_s()
        fps_in, fps_out = self._rates.now(now_s)
        heard = self.heard
        return bridge_pb2.BridgeReport(
            publisher=self.publisher().value,  # type: ignore[arg-type]  # the enum's values are the wire's
            session_ms=self.session_ms,
            delivered_ms=self._usage.meter.delivered_ms,
            paused_ms=self._usage.meter.paused_ms,
            frames_in=self.frames_in,
            frames_out=self.frames_out,
            frames_dropped=self.frames_dropped + self._runner_dropped,
            fps_in=fps_in,
            fps_out=fps_out,
            output_age_ms=-1 if self._out_at_s is None else round((now_s - self._out_at_s) * 1000),
            input_age_ms=self._presence.input_age_ms(now_s),
            applied_revision=heard.applied_revision,
            applied_pts=heard.applied_pts,
            paid_until_ms=self._usage.paid_until_ms or 0,
            latency_ms=self._under_way.transit_s * 1000,
            drained=self.drained,
            credit_exhausted=self._usage.exhausted,
            fault=self._fault,
            health=heard.health.state if heard.health else "",
            health_cause=heard.health.cause if heard.health else "",
            progress_age_ms=heard.progress_age_ms(now_s),
            refused_revisions=heard.refused_revisions,
        )

    def latency(self) -> bridge_pb2.Latency:
        """Where the time of the newest pictures went, stage by stage and in total."""
        return latency_of(self.stages)

    def close(self, reason: str, message: str) -> None:
        """End it here: publisher and viewers are let go. Again is harmless."""
        if not self.closed.done():
            self.closed.set_result(Closed(reason, message))
            self.changed.set(None)
