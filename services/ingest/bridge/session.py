"""One session's media: publisher in, runners, viewers out, and the meter between them.

Everything here runs on one event loop, and nothing waits for a viewer, a runner or the control plane. What is
not newer than the last delivered picture is dropped. Sound goes round the runner, or through one that takes
it, and either way reaches the viewers with its picture.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Final

from protos.ingest.v1 import bridge_pb2
from services.common.errors import ConflictError, NotFoundError
from services.common.frame_drops import FRAME_DROPS
from services.common.latest import Latest
from services.common.media.mpegts import AccessUnit, Codec
from services.common.trickle.channel import Channel, ChannelReader
from services.common.trickle.protocol import RANDOM_ACCESS
from services.common.trickle.registry import OpenChannel, Registry
from services.ingest.bridge.channels import LINES, SessionChannels
from services.ingest.bridge.figures import Figures
from services.ingest.bridge.heard import Heard, unix_ms
from services.ingest.bridge.identity import Closed, Identity
from services.ingest.bridge.incoming import Incoming, Onward
from services.ingest.bridge.latency import latency_of
from services.ingest.bridge.outbox import Outbox
from services.ingest.bridge.outputs import Audience, Outputs, Seam
from services.ingest.bridge.pace import room
from services.ingest.bridge.playout import Playout
from services.ingest.bridge.presence import Presence, Publisher
from services.ingest.bridge.reports import report_of
from services.ingest.bridge.requests import Bitrate
from services.ingest.bridge.sound import AUDIO, fits, sound_among
from services.ingest.bridge.stages import Stages
from services.ingest.bridge.stand_in import MakeStills, StandIn
from services.ingest.bridge.taps import Tap, Taps
from services.ingest.bridge.under_way import Departure
from services.ingest.bridge.usage import Usage
from services.ingest.placeholder import away
from services.ingest.settings import IngestSettings

TICK_S: Final = 0.1
REPORT_S: Final = 1.0
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
        stills: MakeStills = away,
    ) -> None:
        """`stills` makes what viewers see while the publisher is away."""
        self.identity = identity
        self._settings = settings
        self._now_s = now_s
        self._opened_s = now_s()
        self.changed: Latest[None] = Latest(None)
        self.closed: asyncio.Future[Closed] = asyncio.get_running_loop().create_future()
        # in
        self.presence = Presence(
            self._opened_s,
            silent_after_s=settings.silent_after_s,
            grace_s=settings.publisher_grace_s,
            first_picture_s=settings.first_picture_s,
        )
        self.displaced: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.keyframe_wanted: Callable[[], None] | None = None  # asks the publisher, while there is one
        self._fault = ""
        self._channels = SessionChannels(registry, identity.session, complete=identity.complete)
        onward = Onward(self._take_picture, self._hear, self._announce, self._note)
        self._incoming = Incoming(
            self._channels.media("in"), self.presence, onward, live=not identity.complete, now_s=now_s
        )
        # out
        self.figures = Figures(identity, now_s=now_s)
        self.usage = Usage(identity, outbox)
        play = self._channels.media("play")
        self._channels.messages("data", LINES)
        self._bitrate = Bitrate(settings.min_video_kbps * 1000, settings.max_video_kbps * 1000)
        self._taps = Taps(self.ask_keyframe)
        self._playout = Playout(play, self._taps, live=not identity.complete)
        self.heard = Heard(self._opened_s, unix_ms)
        self.outputs = Outputs(
            self._channels,
            heard=self.heard,
            live=not identity.complete,
            now_s=now_s,
            audience=Audience(
                show=self._show,
                status=self.figures.status,
                relay=self._channels.relay,
                changing=self._settle,
                moved=self._take_seam,
                ended=self._playout.finish,
                changed=self._note,
            ),
        )
        self._stand_in = StandIn(self._incoming, self.outputs, self._playout, stills=stills, now_s=now_s)

    # --- the publisher's side

    @property
    def fault(self) -> str:
        return self._fault

    @property
    def connected(self) -> bool:
        return self.presence.connected

    @property
    def busy(self) -> bool:
        """Whether its publisher is there, and not one that hangs, whose place another may take."""
        return self.connected and not self.presence.hangs(self._now_s())

    @property
    def paused(self) -> bool:
        """By the client."""
        return self.presence.paused

    def rejoin(self) -> None:
        """A publisher came back within the grace. Raises ConflictError while the other one is still there.

        One that hangs is told by `displaced`, of which there is another then.
        """
        if self.busy or self.presence.finished or self.closed.done():
            raise ConflictError(
                "the stream has a publisher already", reason="STREAM_BUSY", stream=self.identity.stream
            )
        self.displaced.set_result(None)
        self.displaced = asyncio.get_running_loop().create_future()
        self.presence.came_back(self._now_s())
        self._incoming.begin_source()
        self.changed.set(None)

    def leave(self) -> None:
        """The publisher's connection broke: the grace begins."""
        self.presence.left(self._now_s(), finished=False)
        self.changed.set(None)

    def finish(self) -> None:
        """The publisher said that it is done: what is under way still comes back, then the session ends."""
        self.presence.left(self._now_s(), finished=True)
        self._incoming.end()
        self._channels.close("in")
        self.changed.set(None)

    def blame(self, fault: str) -> None:
        """The input can never work: the session ends, and says so."""
        self._fault = fault
        self.changed.set(None)

    def announce(self, streams: tuple[Codec, ...]) -> None:
        """Say what the publisher's tables list: viewers' are written before the first sound is there."""
        self._incoming.announce(sound_among(streams))

    def push(self, unit: AccessUnit, arrived_s: float) -> None:
        """Take one unit of the publisher, whose last byte was read at `arrived_s`."""
        if not self.presence.finished and not self.closed.done():
            self._incoming.take(unit, arrived_s)

    def pause(self, paused: bool) -> None:
        """Keep the last picture, or go on with the publisher's next key frame, on the same clock."""
        if paused is self.paused:
            return
        self.presence.paused = paused
        if paused:
            self._incoming.pause()
        else:
            self._incoming.go_on()
            if self.keyframe_wanted is not None:
                self.keyframe_wanted()
        self.changed.set(None)

    def _take_picture(self, picture: AccessUnit, arrived_s: float) -> None:
        """A picture of the publisher went to the runners."""
        now_s = self._now_s()
        self.figures.picture_in(now_s)
        self.outputs.sent(Departure(picture.pts, arrived_s, now_s))
        self._play_sound()

    def _announce(self, audio: Codec | None) -> None:
        """The viewers will have this sound."""
        self._playout.audio = audio

    async def room(self) -> None:
        """With `complete` delivery, wait until the output is close enough behind; live never waits."""
        if self.identity.complete:
            await room(
                self.outputs,
                self.presence,
                ahead_s=self._settings.complete_ahead_s,
                changed=self.changed,
                closed=self.closed,
                now_s=self._now_s,
            )

    # --- the runners' side

    @property
    def epoch(self) -> int:
        """Whose output viewers get; 0: no runner was there yet."""
        return self.outputs.epoch

    @property
    def out_pts(self) -> int:
        """The newest picture that viewers got."""
        return self.outputs.out_pts

    @property
    def infer_ms(self) -> float:
        return self.outputs.infer_ms

    def open(self, request: bridge_pb2.OpenRequest) -> Mapping[str, OpenChannel]:
        """Make the channels of an epoch, or extend what may be spent."""
        if self.closed.done():
            raise NotFoundError(f"session {self.identity.session} is closed", reason="SESSION_CLOSED")
        first = not self.epoch
        channels = self.outputs.open(request)
        if first and request.HasField("resume"):
            self._resume(request.resume)
        if first and self.outputs.processes_audio:
            self._playout.fall_silent()
            self._incoming.send_sound_through()
        if request.epoch == self.epoch:
            assert self.outputs.current is not None
            self.usage.runs(self.epoch, self.outputs.current.runner)
        self.usage.extend(request)
        self.changed.set(None)
        return channels

    def _resume(self, position: bridge_pb2.Position) -> None:
        """The session was at another bridge before: its clock, meter and time go on from there."""
        now_s = self._now_s()
        self.figures.resumed = True
        self._opened_s = now_s - position.session_ms / 1000
        self.presence.resume(now_s)
        self._incoming.resume(position)
        self.outputs.resume(position, now_s)
        self.usage.resume(position)
        self.ask_keyframe()

    async def run(self) -> None:
        """Everything of this session that waits; ends when it is closed, and leaves no channel open."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self.outputs.run(), name="outputs"),
                    group.create_task(self._look_after_outputs(), name="look after outputs"),
                    group.create_task(self._tick(), name="tick"),
                    group.create_task(self._stand_in.run(self._is_away), name="stand in"),
                ]
                await asyncio.shield(self.closed)
                self._playout.end()
                self.outputs.stop()  # first: to a runner whose `in` ends before the rest the input has ended
                self._channels.close("in", "play")
                for task in tasks:
                    task.cancel()
        finally:
            self.close("internal_error", "the session failed inside; it was reported")
            self._channels.close(*self._channels.opened)
            self._end_segment()
            await asyncio.shield(self._cut_usage(self.closed.result().reason))

    def _show(self, unit: AccessUnit) -> None:
        """Pass on to the viewers what a runner returned."""
        if self.outputs.processes_audio:
            self._playout.audio = sound_among(self.outputs.sounds)
        if unit.codec is Codec.H264:
            self._show_picture(unit)
        elif self.outputs.processes_audio and unit.codec in AUDIO and fits(unit):
            self._hear(unit)
        else:
            FRAME_DROPS.labels("codec").inc()

    def _show_picture(self, picture: AccessUnit) -> None:
        if self.usage.exhausted:
            self.outputs.late += 1
            FRAME_DROPS.labels("late").inc()
            return
        now_s = self._now_s()
        first = not self.frames_out
        self.figures.picture_out(now_s)
        self.usage.meter.delivered(self.session_ms)
        under_way = self.outputs.under_way
        went = under_way.returned(picture.pts, now_s)
        self._playout.show(picture, now_s, under_way.next_pts)
        if went is not None:
            self.figures.shown(went, now_s, self._now_s())
        if first or self.identity.complete:
            self.changed.set(None)

    def _hear(self, unit: AccessUnit) -> None:
        """Take in sound for the viewers."""
        if not self.usage.exhausted:
            self._playout.hear(unit, self._now_s())
            self._play_sound()

    def _play_sound(self) -> None:
        self._playout.go_on(self._now_s(), self.outputs.under_way.next_pts)

    def _settle(self) -> None:
        """The runner changes with the next picture: what the one before it delivered is its own."""
        self.usage.settle(self.session_ms, self._frames)

    def _take_seam(self, seam: Seam) -> None:
        current = self.outputs.current
        assert current is not None
        self.usage.runs(current.epoch, current.runner)
        self.figures.moved(seam, current.runner)
        self.changed.set(None)

    def _note(self) -> None:
        """Tell those who follow that something is new."""
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
        return self.presence.publisher(self._now_s())

    def _is_away(self) -> bool:
        """The publisher, and viewers are to see that; a file has no wall clock to show it by."""
        silent = self.publisher() in {Publisher.SILENT, Publisher.GONE} and not self.paused
        return silent and not (self.identity.complete or self.usage.exhausted or self.closed.done())

    @property
    def drained(self) -> bool:
        """True when the input finished and what it caused has come back, or will not come any more."""
        idle_s = self.presence.done_s(self._now_s(), self.outputs.out_at_s)
        return idle_s is not None and (self.outputs.ended or idle_s > FLUSH_S)

    async def _look_after_outputs(self) -> None:
        """What cannot wait for a disk."""
        while True:
            await self.outputs.due(TICK_S)
            self._play_sound()
            if self.presence.holding:
                self.outputs.hold_input()
            self.outputs.tick()

    async def _tick(self) -> None:
        before = self.publisher()
        reported_s = self._now_s()
        while True:
            await asyncio.sleep(TICK_S)
            publisher = self.publisher()
            silent = publisher in {Publisher.SILENT, Publisher.GONE}
            if silent and self.out_pts:
                self.usage.meter.paused(self.session_ms)
            elif not silent:
                self.usage.meter.resumed(self.session_ms)
            if self.usage.spend(self.session_ms):
                self._playout.fall_silent()
                self.changed.set(None)
            if self.figures.chapters.due:
                self._end_segment()
            edge = publisher is not before
            if edge or self.usage.since_cut_ms(self.session_ms) >= self._settings.window_s * 1000:
                await self._cut_usage()
            if edge or self._now_s() - reported_s >= REPORT_S:
                reported_s = self._now_s()
                self.changed.set(None)
            before = publisher
            self._close_if_forgotten()

    def _close_if_forgotten(self) -> None:
        """Its owner may have ended it without reaching us, and its publisher sends into nothing."""
        forgotten_s = self._settings.orphan_after_s
        if self.presence.orphaned_s(self._now_s()) > forgotten_s:
            self.close("bridge_lost", "nobody ended the session after its publisher had gone")
        elif self.usage.unpaid_ms(self.session_ms) > forgotten_s * 1000:
            self.close("bridge_lost", "nobody ended the session after its credit had ended")

    def _end_segment(self) -> None:
        if not self.epoch:
            return  # it never had a runner: `session.open` says why
        self.figures.end_segment(
            dropped=self.frames_dropped,
            delivered_ms=self.usage.meter.delivered_ms,
            publisher=self.publisher(),
        )

    async def _cut_usage(self, end_reason: str | None = None) -> None:
        await self.usage.cut(self.session_ms, self._frames, end_reason=end_reason)

    @property
    def _frames(self) -> tuple[int, int, int]:
        return self.frames_in, self.frames_out, self.frames_dropped

    @property
    def frames_in(self) -> int:
        return self.figures.frames_in

    @property
    def frames_out(self) -> int:
        return self.figures.frames_out

    @property
    def stages(self) -> Stages:
        return self.figures.stages

    @property
    def frames_dropped(self) -> int:
        """By the runner, as it says, and because they came too late."""
        return self.outputs.late + self.outputs.runner_dropped

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

    def tap(self, *, stills: bool = True) -> Tap:
        """Read the output as access units from the next key frame on.

        `stills`: also what is shown while the publisher is away. Who cannot wait for a key frame asks: a
        request spent on nobody delays the next one.
        """
        return self._taps.open(stills=stills)

    def ask_keyframe(self) -> None:
        """Ask the runner for a key frame; however many ask, it hears of it once in half a second."""
        self.outputs.ask_keyframe()

    def receiver_estimate(self, viewer: object, bits_per_second: int | None) -> None:
        """Take in what a viewer's connection can carry; None when it left. The slowest sets the bitrate."""
        self.outputs.ask_bitrate(self._bitrate.estimate(viewer, bits_per_second))

    def watch(self) -> ChannelReader:
        """Read `play` from where a decoder can start soonest; with `complete` delivery from the beginning."""
        return self.play.read(0 if self.identity.complete else RANDOM_ACCESS)

    def report(self) -> bridge_pb2.BridgeReport:
        """What it is like now."""
        return report_of(self, self._now_s())

    def latency(self) -> bridge_pb2.Latency:
        """Where the time of the newest pictures went, stage by stage and in total."""
        return latency_of(self.stages)

    def close(self, reason: str, message: str) -> None:
        """End it here: publisher and viewers are let go. Again is harmless."""
        if not self.closed.done():
            self.closed.set_result(Closed(reason, message))
            self.changed.set(None)
