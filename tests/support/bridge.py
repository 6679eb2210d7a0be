"""A session at the bridge with the ends of its channels in hand: its publisher, runner and viewer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

from protos.events.v1 import events_pb2
from protos.ingest.v1 import bridge_pb2
from services.common.media.clock import ORIGIN_TICKS
from services.common.media.mpegts import CLOCK_HZ, AccessUnit, Codec, Demuxer, Muxer
from services.common.trickle.channel import SegmentWriter
from services.common.trickle.registry import Registry
from services.ingest.bridge.events import Status, parse
from services.ingest.bridge.identity import Identity
from services.ingest.bridge.outbox import Outbox
from services.ingest.bridge.session import BridgeSession
from services.ingest.placeholder import AWAY, stills
from services.ingest.settings import IngestSettings
from tests.support.media import FRAME, moved, pictures, units_of

FRAME_S = FRAME / CLOCK_HZ
IDENTITY = Identity("ses_a", "str_a", "acme", "effects", complete=False, traceparent="")
COMPLETE = replace(IDENTITY, complete=True)


@dataclass
class Disk:
    """The outbox, with a disk as slow as a test wants."""

    source: str = "this process"
    windows: list[events_pb2.UsageWindow] = field(default_factory=list)
    takes_s: float = 0.0

    async def put(self, window: events_pb2.UsageWindow) -> None:
        if self.takes_s:
            await asyncio.sleep(self.takes_s)
        if window.id not in {known.id for known in self.windows}:
            self.windows.append(window)


class Runner:
    """A runner's ends of one epoch's channels."""

    def __init__(self, session: BridgeSession, epoch: int) -> None:
        self.session = session
        self.epoch = epoch
        self.muxer = Muxer()
        self._writer: SegmentWriter | None = None
        self._out = session._channels[f"out-{epoch}"].channel
        self._control = session._channels[f"control-{epoch}"].channel

    def put(self, units: Iterable[AccessUnit]) -> None:
        """Write `units`, each at once. Raises what a runner is refused with, when its epoch is closed."""
        for unit in units:
            if self._writer is None or (unit.keyframe and unit.codec is Codec.H264):
                if self._writer is not None:
                    self._writer.end()
                self._writer = self._out.begin_segment(random_access=unit.keyframe)
                self._writer.write(self.muxer.begin_segment())
            self._writer.write(self.muxer.write(unit))

    async def reply(self, units: Iterable[AccessUnit]) -> None:
        """Write `units`, and the session takes them in."""
        self.put(units)
        await settled()

    def die(self) -> None:
        """Its connections break."""
        assert self._writer is not None
        self._writer.abandon()

    async def event(self, *lines: object) -> None:
        """Say something on `events`, one segment."""
        await self.say("events", *lines)

    async def say(self, kind: str, *lines: object) -> None:
        with self.session._channels[f"{kind}-{self.epoch}"].channel.begin_segment() as writer:
            for line in lines:
                text = line if isinstance(line, bytes) else json.dumps(line).encode()
                writer.write(text + b"\n")
        await settled()

    @property
    def asked(self) -> int:
        """How much was said on `control`."""
        return self._control.head

    def told(self) -> list[dict[str, Any]]:
        """What it was asked on `control`, all of it."""
        segments = self._control._segments
        return [json.loads(b"".join(segments[index].pieces)) for index in sorted(segments)]


async def _stills(width: int, height: int) -> tuple[bytes, bytes]:
    """At once: virtual time does not wait for a thread."""
    return stills(width, height, AWAY)


class Stage:
    """A session with the ends of its channels: the publisher's, the runner's, a viewer's."""

    def __init__(
        self, identity: Identity, disk: Disk, now_s: Callable[[], float] | None = None, **settings: Any
    ) -> None:
        self.now = now_s or asyncio.get_running_loop().time
        self.registry = Registry()
        self.disk = disk
        self.settings = IngestSettings(stream_secret="x" * 16, **settings)
        self.session = BridgeSession(
            identity,
            registry=self.registry,
            outbox=cast("Outbox", disk),
            settings=self.settings,
            now_s=self.now,
            stills=_stills,
        )
        self.runner: Runner | None = None  # of the epoch that was opened first
        self.muxer = Muxer()  # that runner's

    def open(self, epoch: int = 1, **facts: Any) -> Mapping[str, Any]:
        paid = {"paid_until_ms": 3_600_000, "overdraft_ms": 60_000, "runner": "r0", **facts}
        channels = self.session.open(bridge_pb2.OpenRequest(session="ses_a", epoch=epoch, **paid))
        if self.runner is None:
            self.runner = Runner(self.session, epoch)
            self.runner.muxer = self.muxer
        return channels

    def candidate(self, epoch: int = 2, **facts: Any) -> Runner:
        """Open another epoch, for another runner."""
        self.open(epoch, runner=f"r{epoch - 1}", **facts)
        return Runner(self.session, epoch)

    def push(self, units: Iterable[AccessUnit]) -> None:
        for unit in units:
            self.session.push(unit, self.now())

    async def reply(self, units: Iterable[AccessUnit]) -> None:
        """The runner writes `units`, and the session takes them in."""
        self.put(units)
        await settled()

    def put(self, units: Iterable[AccessUnit]) -> None:
        """The runner writes `units`, each at once."""
        assert self.runner is not None
        self.runner.put(units)

    async def event(self, *lines: object) -> None:
        """The runner says something on `events`, one segment."""
        assert self.runner is not None
        await self.runner.event(*lines)

    async def live(self, seconds: float, start: int = 0) -> int:
        """The publisher sends and the runner answers at 25 fps; returns the pictures that it were."""
        count = round(seconds / FRAME_S)
        for unit in pictures(count, start=start):
            self.session.push(unit, self.now())
            await self.reply([moved(unit, self.session.outputs.in_pts)])
            await asyncio.sleep(FRAME_S)
        return count

    def sent_on(self) -> bytes:
        """What a runner can read from the ring of `in`."""
        return written(self.session, "in")

    def delivered(self) -> list[AccessUnit]:
        """What a viewer can read from the ring of `play`."""
        return units_of(written(self.session, "play"))


def hear(session: BridgeSession, kind: str, /, **fields: object) -> None:
    """Whichever runner has the session says something on `events`."""
    event = parse(json.dumps({"type": kind, **fields}).encode())
    assert event is not None
    assert not isinstance(event, Status)
    if session.heard.take(event, session._now_s()):
        session.changed.set(None)


@dataclass(frozen=True, slots=True)
class Seen:
    """A unit as a viewer gets it, and when."""

    at_s: float
    unit: AccessUnit

    @property
    def sound(self) -> bool:
        return self.unit.codec is not Codec.H264


async def view(stage: Stage, seen: list[Seen]) -> None:
    """Watch to the end, as a viewer does; what comes is added to `seen`."""
    demuxer = Demuxer()
    async for segment in stage.session.watch():
        async for data in segment:
            seen += [Seen(stage.now(), unit) for unit in demuxer.feed(data)]
        seen += [Seen(stage.now(), unit) for unit in demuxer.end_segment()]


def written(session: BridgeSession, kind: str) -> bytes:
    segments = session._channels[kind].channel._segments
    return b"".join(b"".join(segments[index].pieces) for index in sorted(segments))


async def settled() -> None:
    """Let the session take in what is there."""
    for _ in range(10):
        await asyncio.sleep(0)


@asynccontextmanager
async def staged(
    identity: Identity = IDENTITY,
    disk: Disk | None = None,
    now_s: Callable[[], float] | None = None,
    **settings: Any,
) -> AsyncIterator[Stage]:
    stage = Stage(identity, disk or Disk(), now_s, **settings)
    running = asyncio.ensure_future(stage.session.run())
    try:
        yield stage
    finally:
        stage.session.close("stopped", "")
        await running


def output(count: int, *, after: int = 0, every: int = 25) -> list[AccessUnit]:
    """What a runner returns of the session's pictures from the one numbered `after` on."""
    return pictures(count, start=ORIGIN_TICKS + after * FRAME, every=every)


def times(units: Iterable[AccessUnit], codec: Codec = Codec.H264) -> list[int]:
    return [unit.pts for unit in units if unit.codec is codec]
