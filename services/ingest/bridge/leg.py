"""One runner's part in a session: its channels, what it writes there, and what is said to it.

The rule it keeps: a leg that is closed is heard no more. Its addresses are its own, so whoever still writes
to them, such as a runner that was frozen and wakes, reaches nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from services.common.errors import InvalidError, SluiceError
from services.common.frame_drops import FRAME_DROPS
from services.common.media.mpegts import AccessUnit, Codec, Demuxer
from services.common.trickle.channel import Channel, SegmentReader
from services.common.trickle.registry import OpenChannel
from services.ingest.bridge.channels import JSON, LINES, SNAPSHOT_BYTES, SessionChannels
from services.ingest.bridge.events import Event, parse
from services.ingest.bridge.heard import Heard
from services.ingest.bridge.metrics import BAD_EVENTS
from services.ingest.bridge.requests import RunnerRequests

EVENT_MAX_BYTES: Final = 64 * 1024
Take: TypeAlias = Callable[["Leg", Sequence[AccessUnit]], None]


@dataclass(frozen=True, slots=True)
class Ears:
    """Who is told what a leg reads. `take` gets media, `hear` an event, `relay` lines of the pipeline."""

    take: Take
    hear: Callable[[Leg, Event], None]
    relay: Callable[[Leg, bytes], None]
    changed: Callable[[], None]  # its output ended, or broke


class Leg:
    """One epoch. `run` reads what its runner writes; everything else is called from the same loop."""

    def __init__(
        self,
        channels: SessionChannels,
        epoch: int,
        runner: str,
        *,
        heard: Heard,
        now_s: Callable[[], float],
        restore: bytes | None,
        ears: Ears,
    ) -> None:
        """`restore`: the pipeline's snapshot from the leg before, if it made one."""
        self.epoch: Final = epoch
        self.runner = runner
        self.heard = heard
        self.streams: tuple[Codec, ...] = ()  # what the tables of its output list
        self.snapshot = restore
        self.dropped = 0  # pictures, as it says
        self.dropped_unseen = 0  # of these, before viewers got its output
        self.infer_ms = 0.0
        self.ended = False  # its output, in order
        self.closed = False
        self._channels = channels
        self._ears = ears
        self.opened: dict[str, OpenChannel] = {}
        try:
            self._out = self._open("out", channels.media(self._kind("out")))
            control = self._open("control", channels.messages(self._kind("control"), JSON))
            self._events = self._open("events", channels.messages(self._kind("events"), JSON))
            self._data = self._open("data", channels.messages(self._kind("data"), LINES))
            self._state = self._open("state", channels.snapshots(self._kind("state")))
            if restore is not None:
                kept = self._open("restore", channels.snapshots(self._kind("restore")))
                with kept.begin_segment() as writer:
                    writer.write(restore)
        except SluiceError:
            self.close()
            raise
        self._out.on_broken = ears.changed
        self.requests = RunnerRequests(control, now_s)

    def _kind(self, name: str) -> str:
        return f"{name}-{self.epoch}"

    def _open(self, name: str, channel: Channel) -> Channel:
        self.opened[name] = self._channels[self._kind(name)]
        return channel

    @property
    def broken(self) -> bool:
        """The connection that wrote the output broke, and no other came since."""
        return self._out.broken

    @property
    def addresses(self) -> Mapping[str, OpenChannel]:
        """What its runner reads and writes, by kind."""
        return {"in": self._channels["in"], **self.opened}

    async def run(self) -> None:
        """Read until the leg is closed."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._read_output(), name="output")
            group.create_task(self._read_events(), name="events")
            group.create_task(self._read_data(), name="data")
            group.create_task(self._read_state(), name="state")

    async def _read_output(self) -> None:
        demuxer = Demuxer()
        async for segment in self._out.read(0):
            if segment.lost:
                FRAME_DROPS.labels("output_segments").inc(segment.lost)
            async for data in segment:
                self._take(demuxer, demuxer.feed(data))
            self._take(demuxer, demuxer.end_segment())
        self.ended = True
        if not self.closed:
            self._ears.changed()

    def _take(self, demuxer: Demuxer, units: Sequence[AccessUnit]) -> None:
        self.streams = demuxer.streams
        if not self.closed:
            self._ears.take(self, units)
        elif units:
            FRAME_DROPS.labels("closed_epoch").inc(len(units))

    async def _read_events(self) -> None:
        async for segment in self._events.read(0):
            for line in (await _read(segment, EVENT_MAX_BYTES)).splitlines():
                try:
                    event = parse(line)
                except InvalidError:
                    BAD_EVENTS.inc()
                    continue
                if event is not None and not self.closed:
                    self._ears.hear(self, event)

    async def _read_data(self) -> None:
        async for segment in self._data.read(0):
            said = await _read(segment, self._data.limits.segment_bytes)
            if said and not self.closed:
                self._ears.relay(self, said)

    async def _read_state(self) -> None:
        async for segment in self._state.read(0):
            snapshot = await _read(segment, SNAPSHOT_BYTES)
            if snapshot and not segment.cut and not self.closed:
                self.snapshot = snapshot

    def close(self) -> None:
        """Nobody writes or reads its channels any more. Again is harmless."""
        self.closed = True
        self._channels.forget(*(self._kind(name) for name in self.opened))


async def _read(segment: SegmentReader, most: int) -> bytes:
    """A whole segment of messages; what is beyond `most` bytes is left out."""
    read = bytearray()
    async for data in segment:
        read += data[: most - len(read)]
    return bytes(read)
