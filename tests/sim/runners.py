"""A runner's process: the real slots, servicer and presence; its engine and its HTTP are played.

The rule it keeps: it behaves as well as a real one, and no better: it can hang, lose its engine, and go on
writing after it was given up.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeAlias

from services.common.errors import NotFoundError, SluiceError
from services.common.latest import Latest
from services.common.media.mpegts import AccessUnit, Codec, Demuxer, Muxer
from services.common.trickle.channel import Channel, SegmentWriter
from services.common.trickle.protocol import RANDOM_ACCESS
from services.inference.assignment import Assignment, Channels, Report, State
from services.inference.hosting import Offer
from services.inference.params import Fold, Patch
from services.inference.settings import InferenceSettings
from tests.sim.clock import PROCESS, Process
from tests.sim.pictures import GROUP, Origin, picture

if TYPE_CHECKING:
    from tests.sim.ingests import Ingest
    from tests.sim.world import World

PIPELINE: Final = "effects"
OFFER: Final = Offer(
    name=PIPELINE,
    version="1.0",
    description="",
    params_schema={
        "type": "object",
        "properties": {"strength": {"type": "integer", "default": 0}},
        "additionalProperties": False,
    },
    processes_audio=False,
    slots_per_engine=64,
)
Sink: TypeAlias = "Callable[[Ingest, Channel], Coroutine[object, object, None]]"
RECONNECT_S: Final = 0.5
FIRST_PICTURE_S: Final = 0.1


class Engine:
    """What all sessions of a runner share; it may stand still, or die and start again."""

    def __init__(self) -> None:
        self.offers: Latest[tuple[Offer, ...]] = Latest((OFFER,))
        self.ready = True
        self.hung = False
        self.sessions: list[Hosted] = []

    async def die(self, restart_s: float) -> None:
        """Every session is interrupted until the next engine is up."""
        self.ready = False
        self.hung = True
        self.offers.set(())
        for session in self.sessions:
            session.interrupt("engine_crashed")
        await asyncio.sleep(restart_s)
        self.ready, self.hung = True, False
        self.offers.set((OFFER,))
        for session in self.sessions:
            session.resume()


class Host(Engine):
    """In the place of a supervised engine."""

    def __init__(self, world: World, process: Process, settings: InferenceSettings) -> None:
        super().__init__()
        self._world = world
        self._process = process
        self._settings = settings

    def session(self, of: Assignment) -> Hosted:
        self.sessions = [one for one in self.sessions if not one.report.value.state.terminal]
        session = Hosted(self._world, self._process, self, of, self._settings)
        self.sessions.append(session)
        return session


class Hosted:
    """A session on a played engine: each picture comes back as it is, signed with the runner's epochs."""

    def __init__(
        self,
        world: World,
        process: Process,
        host: Host,
        of: Assignment,
        settings: InferenceSettings,
    ) -> None:
        self.assignment = of
        self.report: Latest[Report] = Latest(Report())
        self.fold: Fold = of.fold
        self.stopped = (State.DETACHED, "")
        self._world = world
        self._process = process
        self._host = host
        self._lost_after_s = settings.bridge_lost_after_s
        self._in_pts = 0
        self._out_pts = 0
        self._first = True
        self._since_key = 0
        self._key_wanted = False
        self._key_at: int | None = None
        self._applied = -1
        self._muxer = Muxer()
        self._writer: SegmentWriter | None = None
        self._alias = ""
        self._ended = False
        self._moved = asyncio.Event()

    @property
    def newest(self) -> Report:
        return replace(self.report.value, in_pts=self._in_pts, out_pts=self._out_pts)

    def _shown_params(self) -> Mapping[str, object]:
        return self.fold.effective(self._out_pts)[0]

    async def update(self, patch: Patch, fold: Fold) -> None:
        self.fold = fold

    def rebind(self, channels: Channels, session_epoch: int) -> None:
        self.assignment = replace(self.assignment, channels=channels, session_epoch=session_epoch)
        self._writer = None
        self._first = True
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()
        self._world.attached(self._process, self.assignment, self._shown_params)

    def interrupt(self, reason: str) -> None:
        self.report.set(replace(self.report.value, interrupted=True, reason=reason))

    def resume(self) -> None:
        self.report.set(replace(self.report.value, interrupted=False, reason=""))
        self._first = True

    async def reports(self, every_s: float) -> AsyncIterator[Report]:
        while True:
            version, newest = self.report.version, self.newest
            yield newest
            if newest.state.terminal:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(every_s):
                    await self.report.newer_than(version)

    def ended(self) -> None:
        if not self.report.value.state.terminal:
            self._end(*self.stopped, "")

    def _end(self, state: State, reason: str, message: str) -> None:
        self.report.set(replace(self.newest, state=state, reason=reason, message=message, interrupted=False))
        self._world.detached(self._process, self.assignment)

    async def run(self) -> None:
        self._world.attached(self._process, self.assignment, self._shown_params)
        self.report.set(replace(self.report.value, state=State.RUNNING))
        try:
            outcome = await self._live()
        except asyncio.CancelledError:
            self._end(*self.stopped, "")
            raise
        self._end(*outcome)

    async def _live(self) -> tuple[State, str, str]:
        await asyncio.sleep(FIRST_PICTURE_S)
        async with asyncio.TaskGroup() as group:
            control = group.create_task(self._obey())
            try:
                return await self._read()
            finally:
                control.cancel()

    async def _read(self) -> tuple[State, str, str]:
        loop = asyncio.get_running_loop()
        there_s = loop.time()
        while True:
            moved = self._moved
            at_s = loop.time()
            try:
                await self._unless_moved(self._follow(self.assignment.channels.in_, self._intake), moved)
                if not moved.is_set() and self._in_order():
                    self._close_output()
                    return State.FINISHED, "", ""
            except (ConnectionError, NotFoundError):
                self._world.weather.sometimes("a runner's input broke")
            if moved.is_set():
                there_s = loop.time()
                continue
            if loop.time() - at_s > 1.0:
                there_s = loop.time()
            if loop.time() - there_s > self._lost_after_s:
                return State.FAILED, "bridge_lost", "the bridge cannot be reached"
            await asyncio.sleep(RECONNECT_S)

    async def _unless_moved(self, work: Coroutine[object, object, None], moved: asyncio.Event) -> None:
        tasks = [asyncio.ensure_future(work), asyncio.ensure_future(_set(moved))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if tasks[0].done():
                await tasks[0]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _follow(self, url: str, sink: Sink) -> None:
        """Read a channel as HTTP would: to its end, or until the peer is gone, which is a ConnectionError."""
        ingest, alias = self._world.ingest_of(url)
        if not self._world.net.reaches(self._process.name, ingest.process.name):
            raise ConnectionError("no route")
        channel = ingest.registry.readable(alias)
        reading = asyncio.ensure_future(sink(ingest, channel))
        try:
            await asyncio.wait({reading, ingest.process.died}, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                raise ConnectionError("the bridge is gone")
            await reading
        finally:
            reading.cancel()
            await asyncio.wait({reading})

    async def _intake(self, ingest: Ingest, channel: Channel) -> None:
        demuxer = Demuxer()
        async for segment in channel.read(RANDOM_ACCESS):
            async for data in segment:
                await self._world.net.hop(ingest.process, self._process)
                for unit in demuxer.feed(data):
                    await self._take(unit)
            for unit in demuxer.end_segment():
                await self._take(unit)

    async def _take(self, unit: AccessUnit) -> None:
        if unit.codec is not Codec.H264:
            return
        pts = unit.pts
        self._in_pts = max(self._in_pts, pts)
        if pts <= max(self._out_pts, self.assignment.after_pts) or self._host.hung:
            return
        asked = self._key_wanted or (self._key_at is not None and pts >= self._key_at)
        keyframe = self._first or asked or self._since_key >= GROUP
        if asked:
            self._key_wanted, self._key_at = False, None
        self._first = False
        self._since_key = 0 if keyframe else self._since_key + 1
        self._out_pts = pts
        of = self.assignment
        origin = Origin(self._process.name, of.slot_epoch, of.session_epoch)
        await self._put(picture(pts, keyframe=keyframe, origin=origin))
        _, revision = self.fold.effective(pts)
        if revision > self._applied:
            self._applied = revision
            self._tell({"type": "applied", "revision": revision, "pts": pts, "applies": "live"})

    async def _put(self, unit: AccessUnit) -> None:
        url = self.assignment.channels.out
        try:
            ingest, alias = self._world.ingest_of(url)
            await self._world.net.hop(self._process, ingest.process)
            if self._process.dead:
                return
            channel = ingest.registry.writable(alias)
            if self._writer is None or self._alias != alias or self._writer.ended or unit.keyframe:
                if self._writer is not None and self._alias == alias:
                    self._writer.end()
                if not unit.keyframe:
                    self._first = True
                    return
                self._writer, self._alias = channel.begin_segment(random_access=True), alias
                self._process.died.add_done_callback(self._break_off(self._writer, ingest.process))
                self._writer.write(self._muxer.begin_segment())
            self._writer.write(self._muxer.write(unit))
        except (ConnectionError, SluiceError):
            self._world.weather.sometimes("a picture found its channel closed")
            self._writer = None
            self._first = True

    def _break_off(self, writer: SegmentWriter, at: Process) -> Callable[[object], None]:
        """What the listener does when the connection of a writer breaks."""
        return lambda _: at.call(writer.abandon, after_s=self._world.weather.hop_s())

    def _tell(self, event: dict[str, object]) -> None:
        with suppress(SluiceError, ConnectionError):
            ingest, alias = self._world.ingest_of(self.assignment.channels.events)
            if not self._process.dead and self._world.net.reaches(self._process.name, ingest.process.name):
                with ingest.registry.writable(alias).begin_segment() as writer:
                    writer.write(json.dumps(event).encode() + b"\n")

    async def _obey(self) -> None:
        while True:
            moved = self._moved
            with suppress(ConnectionError, NotFoundError):
                await self._unless_moved(
                    self._follow(self.assignment.channels.control, self._commands), moved
                )
            await asyncio.sleep(RECONNECT_S)

    async def _commands(self, ingest: Ingest, channel: Channel) -> None:
        async for segment in channel.read(0):
            text = b""
            async for data in segment:
                text += data
            await self._world.net.hop(ingest.process, self._process)
            message = json.loads(text)
            if message.get("type") == "keyframe":
                at_pts = message.get("at_pts")
                if at_pts is None:
                    self._key_wanted = True
                else:
                    self._key_at = at_pts

    def _in_order(self) -> bool:
        """Whether an input that ended did so because the publisher is done: then control goes on."""
        ingest, alias = self._world.ingest_of(self.assignment.channels.control)
        return not ingest.registry.readable(alias).closed

    def _close_output(self) -> None:
        with suppress(SluiceError, ConnectionError):
            ingest, alias = self._world.ingest_of(self.assignment.channels.out)
            if self._writer is not None:
                self._writer.end()
            ingest.registry.close(ingest.registry.name_of(alias))


async def _set(event: asyncio.Event) -> None:
    await event.wait()


@asynccontextmanager
async def played_host(world: World, settings: InferenceSettings) -> AsyncIterator[Host]:
    """In the place of what supervises an engine."""
    process = PROCESS.get()
    assert process is not None, "a runner is a process"
    host = Host(world, process, settings)
    world.hosts[process.name] = host
    yield host
