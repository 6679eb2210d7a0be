"""A whole runner with everything real around it: NATS, gRPC, its engine, and bridges of trickle channels."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import psutil

from protos.events.v1 import events_pb2
from protos.inference.v1 import runner_pb2, runner_pb2_grpc
from protos.ingest.v1 import bridge_pb2
from services.common.bus import Bus, connect
from services.common.grpc_client import call, channel, stream
from services.common.lifecycle import background
from services.common.media.mpegts import AccessUnit, Codec, Demuxer, Muxer
from services.common.trickle.exchange import Exchange
from services.common.trickle.protocol import ChannelLimits
from services.common.trickle.registry import Registry
from services.common.trickle.server import serve_trickle, trickle_app
from services.inference.__main__ import serve
from services.inference.packets import Media, Sound
from services.inference.settings import InferenceSettings
from tests.support.nats import NatsServer

PIPELINES = ",".join(
    [
        "passthrough",
        *(f"tests.support.pipelines:{name}" for name in ("Grey", "Slow", "Broken", "Negative", "Talker")),
    ]
)
State = runner_pb2.SlotReport.State
LIMITS = ChannelLimits(depth=64)


async def until(condition: Callable[[], bool], within_s: float = 10.0) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.01)


class Bridge:
    """The bridge of one session: a publisher that writes `in`, and everything that comes back."""

    def __init__(self, registry: Registry, port: int, name: str, beside: Bridge | None = None) -> None:
        """`beside`: the channels of another runner, which reads the same input."""
        self._registry = registry
        self._name = name
        opened = {kind: registry.open(f"{name}/{kind}", limits=LIMITS) for kind in (*KINDS, "state")}
        base = f"http://127.0.0.1:{port}"
        self._in, self._out = opened["in"].channel, opened["out"].channel
        self._control, self._events = opened["control"].channel, opened["events"].channel
        self._data = opened["data"].channel
        paths = {"in": opened["in"].read_path, "control": opened["control"].read_path}
        paths |= {kind: opened[kind].write_path for kind in ("out", "events", "data", "state")}
        self.channels = bridge_pb2.Channels(**{kind: base + path for kind, path in paths.items()})
        if beside is not None:
            setattr(self.channels, "in", getattr(beside.channels, "in"))
            self.channels.restore = beside.remembered
        self.state = opened["state"].channel
        self.remembered: str = base + opened["state"].read_path
        self.muxer = Muxer()
        self._writer: Any = None
        self.newest_in = 0  # PTS
        self.out: list[Media] = []
        self.sound: list[Sound] = []
        self.segments: list[list[Media]] = []
        self.out_closed = False
        self.out_at_s: dict[int, float] = {}  # when each picture came, by PTS
        self.events: list[dict[str, Any]] = []
        self.said: list[dict[str, Any]] = []

    def push(self, packets: Sequence[Media | Sound]) -> None:
        """Publish; each key frame begins a segment."""
        for packet in packets:
            if isinstance(packet, Sound):
                unit = AccessUnit(packet.codec, packet.pts, packet.pts, packet.data, keyframe=True)
                self._writer.write(self.muxer.write(unit))
                continue
            if packet.keyframe or self._writer is None:
                self.end_segment()
                self._writer = self._in.begin_segment(random_access=packet.keyframe)
                self._writer.write(self.muxer.begin_segment())
            unit = AccessUnit(Codec.H264, packet.pts, packet.dts, packet.data, packet.keyframe)
            self._writer.write(self.muxer.write(unit))
            self.newest_in = packet.pts

    def push_bytes(self, data: bytes) -> None:
        self._writer = self._writer or self._in.begin_segment()
        self._writer.write(data)

    async def play(self, packets: list[Media], fps: float = 30) -> None:
        for packet in packets:
            self.push([packet])
            await asyncio.sleep(1 / fps)

    def finish(self) -> None:
        self.end_segment()
        self._registry.close(f"{self._name}/in")

    def leave(self) -> None:
        """Close all channels, as a bridge does that the session has left."""
        self.end_segment()
        for kind in (*KINDS, "state"):
            self.shut(kind)

    def shut(self, kind: str) -> None:
        self._registry.close(f"{self._name}/{kind}")

    def control(self, message: bytes) -> None:
        with self._control.begin_segment() as segment:
            segment.write(message)

    def applied(self) -> list[tuple[int, int]]:
        return [(one["revision"], one["pts"]) for one in self.told("applied")]

    def told(self, kind: str) -> list[dict[str, Any]]:
        return [one for one in self.events if one["type"] == kind]

    def end_segment(self) -> None:
        if self._writer is not None:
            self._writer.end()
            self._writer = None

    async def take_output(self) -> None:
        demuxer = Demuxer()
        async for segment in self._out.read(0):
            self.segments.append([])
            async for data in segment:
                self._keep(demuxer.feed(data))
            self._keep(demuxer.end_segment())
        self.out_closed = True
        await asyncio.Event().wait()

    def _keep(self, units: list[AccessUnit]) -> None:
        pictures = [unit for unit in units if unit.codec is Codec.H264]
        self.sound += [Sound(0, unit.codec, unit.pts, unit.data) for unit in units if unit not in pictures]
        media = [Media(0, unit.pts, unit.dts, unit.keyframe, unit.data) for unit in pictures]
        self.out += media
        self.out_at_s |= {one.pts: time.monotonic() for one in media}
        self.segments[-1] += media

    async def take_events(self) -> None:
        async for segment in self._events.read(0):
            text = b"".join([data async for data in segment])
            self.events += [json.loads(line) for line in text.splitlines()]
        await asyncio.Event().wait()

    async def take_data(self) -> None:
        async for segment in self._data.read(0):
            text = b"".join([data async for data in segment])
            self.said += [json.loads(line) for line in text.splitlines()]
        await asyncio.Event().wait()


KINDS = ("in", "out", "control", "events", "data")


@dataclass
class Runner:
    """A client of the runner, and the place where bridges are made."""

    port: int
    bus: Bus
    trickle: tuple[Registry, int]
    requests: list[tuple[str, str]]  # method and traceparent of each that the bridge got
    stub: runner_pb2_grpc.RunnerStub
    engine_pid: int
    reports: dict[str, list[runner_pb2.SlotReport]] = field(default_factory=dict)

    @asynccontextmanager
    async def bridge(self, name: str = "s1", beside: Bridge | None = None) -> AsyncIterator[Bridge]:
        bridge = Bridge(*self.trickle, name, beside)
        async with background(out=bridge.take_output(), events=bridge.take_events(), data=bridge.take_data()):
            yield bridge

    async def attach(self, bridge: Bridge, pipeline: str = "passthrough", **fields: Any) -> None:
        request: dict[str, Any] = {
            "session": "s1",
            "session_epoch": 1,
            "slot_epoch": 5,
            "channels": bridge.channels,
            "pipeline": pipeline,
            "params": "{}",
            "revision": 1,
            "delivery": runner_pb2.DELIVERY_COMPLETE,
        }
        message = runner_pb2.AttachRequest(**(request | fields))
        await call(self.stub.Attach, message, runner_pb2.AttachResponse, timeout_s=2)

    async def update(self, revision: int, patch: dict[str, Any], *, at: int = 0, slot_epoch: int = 5) -> str:
        message = runner_pb2.UpdateRequest(
            session="s1",
            slot_epoch=slot_epoch,
            patch=runner_pb2.Patch(revision=revision, patch=json.dumps(patch), apply_at_pts=at),
        )
        return (await call(self.stub.Update, message, runner_pb2.UpdateResponse, timeout_s=2)).applies

    async def detach(self, session: str = "s1", slot_epoch: int = 5) -> None:
        message = runner_pb2.DetachRequest(session=session, slot_epoch=slot_epoch, reason="stopped")
        await call(self.stub.Detach, message, runner_pb2.DetachResponse, timeout_s=5)

    async def watch(self, session: str = "s1") -> runner_pb2.SlotReport:
        """Follow a session to its end; returns the last report."""
        message = runner_pb2.WatchRequest(session=session, slot_epoch=5)
        reports = self.reports.setdefault(session, [])
        async with asyncio.timeout(20):
            async for report in stream(self.stub.Watch, message, runner_pb2.SlotReport):
                reports.append(report)
        return reports[-1]

    async def rebind(
        self, bridge: Bridge, session_epoch: int = 2, slot_epoch: int = 5
    ) -> runner_pb2.RebindResponse:
        message = runner_pb2.RebindRequest(
            session="s1", slot_epoch=slot_epoch, session_epoch=session_epoch, channels=bridge.channels
        )
        return await call(self.stub.Rebind, message, runner_pb2.RebindResponse, timeout_s=2)

    async def drain(self, *, cancel: bool = False) -> runner_pb2.DrainResponse:
        message = runner_pb2.DrainRequest(cancel=cancel)
        return await call(self.stub.Drain, message, runner_pb2.DrainResponse, timeout_s=2)

    async def describe(self) -> runner_pb2.DescribeResponse:
        return await call(
            self.stub.Describe, runner_pb2.DescribeRequest(), runner_pb2.DescribeResponse, timeout_s=2
        )

    async def ready(self) -> None:
        async with asyncio.timeout(15):
            while (await self.describe()).state.state != events_pb2.RUNNER_STATE_READY:
                await asyncio.sleep(0.05)


def engines_of(process: int) -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process(process).children()
        if "services.inference.engine" in child.cmdline()
    ]


@asynccontextmanager
async def running(nats: NatsServer, **more: Any) -> AsyncIterator[Runner]:
    usual: dict[str, Any] = {"pipelines": PIPELINES, "bridge_lost_after_s": 1.0}
    settings = InferenceSettings(listen="127.0.0.1:0", runner="r1", shutdown_grace_s=1.0, **(usual | more))
    registry, requests = Registry(), list[tuple[str, str]]()

    app = trickle_app(registry)

    async def noted(exchange: Exchange) -> None:
        requests.append((exchange.head.method, exchange.head.headers.get("traceparent", "")))
        await app.handle(exchange)

    async with (
        connect(nats.url, "test") as bus,
        serve_trickle(replace(app, handle=noted), "127.0.0.1:0", 1.0) as trickle_port,
        serve(bus, settings) as served,
        channel(f"127.0.0.1:{served.port}") as open_channel,
    ):
        await until(lambda: bool(engines_of(os.getpid())))
        (engine,) = engines_of(os.getpid())
        stub = runner_pb2_grpc.RunnerStub(open_channel)
        runner = Runner(served.port, bus, (registry, trickle_port), requests, stub, engine.pid)
        await runner.ready()
        yield runner
