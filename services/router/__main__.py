"""`python -m services.router`: the object graph, stacked in the order of dependence, stopped in reverse."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random, SystemRandom

from protos.router.v1.router_pb2_grpc import add_RouterServicer_to_server
from services.common import lifecycle
from services.common.bus import Bus, connect
from services.common.grpc_server import serve_grpc
from services.common.lifecycle import background, until_terminated
from services.common.settings import read
from services.common.telemetry import telemetry
from services.common.topology import PROBE, RUNNERS, SLOTS, WAITERS
from services.router.fleet import Fleet
from services.router.line import Line
from services.router.server import RouterServicer
from services.router.settings import RouterSettings
from services.router.slots import Slots
from services.router.waiting import Queue


@dataclass(frozen=True, slots=True)
class Parts:
    """A router without its gRPC server."""

    fleet: Fleet
    line: Line
    slots: Slots
    queue: Queue


@asynccontextmanager
async def routing(bus: Bus, settings: RouterSettings, random: Random) -> AsyncIterator[Parts]:
    """A router's parts on an open connection, at work until the block ends."""
    adverts = await bus.bucket(RUNNERS, settings.nats_replicas)
    keys = await bus.bucket(SLOTS, settings.nats_replicas)
    waiters = await bus.bucket(WAITERS, settings.nats_replicas)
    fleet = Fleet(settings, lambda: bus.healthy_for_s, random)
    slots = Slots(keys, adverts, fleet)
    queue = Queue(waiters, f"router-{random.getrandbits(64):016x}")
    async with asyncio.TaskGroup() as tasks:  # outlives the calls: what they took, it gives back
        line = Line(fleet, slots, queue, tasks, settings)
        async with background(
            follow_adverts=adverts.follow(fleet.adverts),
            follow_slots=keys.follow(fleet.slots),
            follow_waiters=waiters.follow(queue.view),
            listen=fleet.listen(bus),
            listen_faults=fleet.listen_faults(bus),
            keep_time=fleet.keep_time(),
            keep_alive=queue.keep_alive(),
            offer_places=line.follow(fleet.changed),
            offer_turns=line.follow(queue.changed),
            forget_gone=slots.forget_gone(),
        ):
            yield Parts(fleet, line, slots, queue)


@asynccontextmanager
async def serve(bus: Bus, settings: RouterSettings, random: Random) -> AsyncIterator[int]:
    """A router on an open connection, until the block ends; yields the bound port."""
    async with routing(bus, settings, random) as parts:
        servicer = RouterServicer(parts.fleet, parts.line, parts.slots, parts.queue)
        async with serve_grpc(
            lambda server: add_RouterServicer_to_server(servicer, server),
            settings.listen,
            settings.shutdown_grace_s,
        ) as port:
            yield port


async def run(settings: RouterSettings) -> None:
    """Serve until terminated."""
    async with (
        telemetry("router", settings) as health,
        connect(settings.nats_url, "router") as bus,
        serve(bus, settings, SystemRandom()),
    ):
        await bus.ensure_stream(PROBE, settings.nats_replicas)
        health.ready(lambda: bus.stores)  # without a store it can grant nothing
        await until_terminated()


if __name__ == "__main__":
    lifecycle.run(run(read(RouterSettings)))
