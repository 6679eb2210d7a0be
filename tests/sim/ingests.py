"""An ingest process without its sockets: the real hub, bridge, outbox and `Publishing`, publishers played."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from protos.ingest.v1.bridge_pb2_grpc import add_BridgeServicer_to_server
from services.common import bus as nats_bus
from services.common import lifecycle
from services.common.media.mpegts import AccessUnit, Codec, Demuxer
from services.common.topology import USAGE
from services.common.trickle.registry import Registry
from services.ingest.bridge.hub import Hub
from services.ingest.bridge.outbox import outbox
from services.ingest.bridge.server import BridgeServicer
from services.ingest.bridge.session import BridgeSession
from services.ingest.control_plane import ControlPlane
from services.ingest.publishing import Publishing
from services.ingest.settings import IngestSettings
from services.ingest.source import PublisherVanishedError, Source
from services.ingest.stream_keys import StreamKeys
from services.ingest.transports.rtmp.pushes import Pushes
from tests.sim.clock import PROCESS, Process
from tests.sim.pictures import FPS, GROUP, TICKS, origin_of, picture

if TYPE_CHECKING:
    from tests.sim.world import World


@dataclass(frozen=True, slots=True)
class Ingest:
    """What others in the world reach of one ingest process."""

    process: Process
    registry: Registry
    hub: Hub
    publishing: Publishing
    keys: StreamKeys


class Camera(Source):
    """What a publisher sends over one connection. It is told to stop, to be silent, or its wire is cut."""

    def __init__(self) -> None:
        self.arrived_s = time.monotonic()
        self.silent = False
        self.vanished = False
        self.done = False
        self._pictures = 0
        self._held: list[AccessUnit] = []

    @property
    def streams(self) -> tuple[Codec, ...]:
        return (Codec.H264,)

    async def first_picture(self) -> list[AccessUnit]:
        return [self._next()]

    async def hold(self, first: list[AccessUnit]) -> None:
        self._held = first
        async for _ in self._flow():
            self._held = [self._next()]

    def close(self) -> None:
        """There is nothing to close."""

    count_damage = close

    async def _flow(self) -> AsyncIterator[None]:
        while not self.done:
            await asyncio.sleep(1 / FPS)
            if self.vanished:
                raise PublisherVanishedError
            if not self.silent:
                yield

    async def _units(self) -> AsyncIterator[list[AccessUnit]]:
        if self._held:
            held, self._held = self._held, []
            yield held
        async for _ in self._flow():
            yield [self._next()]

    def __aiter__(self) -> AsyncIterator[list[AccessUnit]]:
        return self._units()

    def _next(self) -> AccessUnit:
        unit = picture(self._pictures * TICKS, keyframe=self._pictures % GROUP == 0)
        self._pictures += 1
        self.arrived_s = time.monotonic()
        return unit


async def run(world: World, settings: IngestSettings) -> None:
    """Serve until terminated."""
    process = PROCESS.get()
    assert process is not None, "an ingest is a process"
    registry = Registry(max_channels=1000, linger_s=60.0)
    async with (
        nats_bus.connect(settings.nats_url, process.name) as bus,
        outbox(settings.outbox_path, bus) as box,
    ):
        await bus.ensure_stream(USAGE, 1)
        keys = StreamKeys(settings.stream_secret.encode())
        plane = ControlPlane(world.net, settings)  # type: ignore[arg-type]
        async with (
            lifecycle.background(sweep=registry.sweep(), deliver=box.deliver(), confirm=box.confirm()),
            Pushes(settings) as pushes,
            Hub(registry, box, settings) as hub,
            world.net.serve(
                lambda server: add_BridgeServicer_to_server(
                    BridgeServicer(hub, settings.trickle_url), server
                ),
                settings.bridge_listen,
                settings.shutdown_grace_s,
            ),
        ):
            publishing = Publishing(
                hub=hub,
                plane=plane,
                keys=keys,
                bridge_address=settings.bridge_listen,
                pushes=pushes,
                settings=settings,
            )
            world.ingests[process.name] = Ingest(process, registry, hub, publishing, keys)
            async with lifecycle.background(viewers=_view_all(world, hub)):
                await world.until_terminated()
                hub.close_all("the ingest process ends")


async def _view_all(world: World, hub: Hub) -> None:
    """Somebody watches every session that comes up here."""
    watched: dict[int, asyncio.Task[None]] = {}
    async with asyncio.TaskGroup() as group:
        while True:
            for session in list(hub._sessions.values()):
                if id(session) not in watched:
                    watched[id(session)] = group.create_task(_view(world, session))
            await hub._changed.newer_than(hub._changed.version)


async def _view(world: World, session: BridgeSession) -> None:
    """A viewer of `play`, to its end."""
    demuxer = Demuxer()
    async for segment in session.watch():
        async for data in segment:
            for unit in demuxer.feed(data):
                world.seen(session, unit, origin_of(unit))
        for unit in demuxer.end_segment():
            world.seen(session, unit, origin_of(unit))
