"""What a runner says of itself on NATS, without an engine: its advert, its heartbeats, its claims."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from uuid import uuid4

from protos.events.v1.events_pb2 import (
    RUNNER_STATE_READY,
    Heartbeat,
    PipelineOffer,
    RunnerAdvert,
    RunnerFault,
    RunnerState,
    SlotClaim,
)
from services.common.bus import Bus
from services.common.lifecycle import Bulkhead
from services.common.topology import RUNNERS, heartbeat, runner_fault


class FakeRunner:
    """Use it as the block that `fake_runner` yields. Assign to `advert` or `state`, then `announce`."""

    def __init__(self, bus: Bus, advert: RunnerAdvert, every_s: float) -> None:
        self.advert = advert
        self.state: RunnerState.ValueType = RUNNER_STATE_READY
        self.claims: dict[int, SlotClaim] = {}
        self.frame_us = 0
        self._bus = bus
        self._every_s = every_s
        self._alive = asyncio.Event()

    @property
    def name(self) -> str:
        return self.advert.runner

    async def announce(self) -> None:
        """Write the advert and beat at once."""
        bucket = await self._bus.bucket(RUNNERS, 1)
        await bucket.change(self.name, lambda _: self.advert.SerializeToString())
        await self.beat()

    async def leave(self) -> None:
        """Go as a runner goes that drained: the advert deleted, then silence."""
        self.kill()
        await (await self._bus.bucket(RUNNERS, 1)).delete(self.name)

    async def beat(self) -> None:
        beat = Heartbeat(
            runner=self.name,
            boot_id=self.advert.boot_id,
            state=self.state,
            claims=[self.claims[slot] for slot in sorted(self.claims)],
            frame_us=self.frame_us,
        )
        await self._bus.publish(heartbeat(self.name), beat.SerializeToString())

    async def fail(self, session: str, reason: str = "stalled") -> None:
        """What a session-manager says when it moved a session away because the runner failed it."""
        fault = RunnerFault(runner=self.name, boot_id=self.advert.boot_id, session=session, reason=reason)
        await self._bus.publish(runner_fault(self.name), fault.SerializeToString())

    async def claim(self, slot: int, session: str, slot_epoch: int) -> None:
        """Say at once that the slot is taken, as after an attach."""
        self.claims[slot] = SlotClaim(slot=slot, session=session, slot_epoch=slot_epoch)
        await self.beat()

    async def free(self, slot: int) -> None:
        del self.claims[slot]
        await self.beat()

    def kill(self) -> None:
        """No more heartbeats, and nobody is told."""
        self._alive.clear()

    def revive(self) -> None:
        self._alive.set()

    async def live(self) -> None:
        self._alive.set()
        while True:
            await self._alive.wait()
            await self.beat()
            await asyncio.sleep(self._every_s)


@asynccontextmanager
async def fake_runner(
    bus: Bus,
    name: str,
    *,
    slots: int = 1,
    pipelines: Sequence[PipelineOffer] = (PipelineOffer(name="passthrough", version="1.0", warm=True),),
    region: str = "",
    gpu_class: str = "cpu",
    micro_per_second: int = 0,
    every_s: float = 1.0,
) -> AsyncIterator[FakeRunner]:
    """A runner that is announced and beats until the block ends; its advert stays, as after a crash."""
    advert = RunnerAdvert(
        runner=name,
        boot_id=uuid4().hex,
        address=f"{name}.test:7004",
        slots=slots,
        pipelines=pipelines,
        region=region,
        gpu_class=gpu_class,
        micro_per_second=micro_per_second,
    )
    runner = FakeRunner(bus, advert, every_s)
    await runner.announce()
    async with Bulkhead(_broken) as tasks:
        tasks.start(name, runner.live())
        yield runner


def _broken(name: str, error: Exception) -> None:
    raise AssertionError(f"the fake runner {name} broke") from error
